//! Banger's state in one SQLite file.
