//! Compared with another tool.
