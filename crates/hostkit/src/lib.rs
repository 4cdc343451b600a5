//! Typed access to Linux host facilities, one file per facility.
