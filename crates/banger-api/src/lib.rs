//! The daemon's contract: methods, wire types, errors and the Unix-socket transport.
