//! The server and the client together over real sockets, with a service of canned behaviours.

mod access;
mod documents;
mod ending;
mod harness;
mod limits;
mod streams;
mod toy;
