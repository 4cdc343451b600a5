//! What the methods carry. Sizes are in bytes unless the name says otherwise; times are RFC 3339 in UTC.
//!
//! Parameter types refuse unknown fields, so that a misspelt option is an error and not a silent default. Result types
//! do not, so that an older client can read a newer daemon's answer.

mod build;
mod change;
mod daemon;
mod figures;
mod guest;
mod image;
mod network;
mod operation;
mod ports;
mod runtime;
mod session;
mod ssh;
mod vm;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use build::*;
pub use change::*;
pub use daemon::*;
pub use figures::*;
pub use guest::*;
pub use image::*;
pub use network::*;
pub use operation::*;
pub use ports::*;
pub use runtime::*;
pub use session::*;
pub use ssh::*;
pub use vm::*;

/// No parameters, or no result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Empty {}
