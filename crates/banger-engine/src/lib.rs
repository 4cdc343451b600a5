//! What Banger does: machines, images, guests, and the state of the host they need.

pub mod image;
