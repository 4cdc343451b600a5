//! `cargo xtask proto [--check]`: banger-agent-api's `src/generated.rs` from its `proto/agent.proto`.
//!
//! The generated file is committed, so that ordinary builds need neither `protoc` nor the generator's dependencies,
//! which are many; here they are behind the cargo feature `proto`. `--check` writes nothing and fails when the
//! committed file is not what the schema gives.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const PROTO: &str = "agent.proto";
/// prost names its output after the protobuf package.
const OUTPUT: &str = "banger.agent.v1.rs";
const HEADER: &str = "// Generated from proto/agent.proto by `cargo xtask proto`. Do not edit.\n\n";

/// Why the generated code was not written, or not found in step.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProtoError {
    /// The schema does not compile; the message is the compiler's, with line and column.
    #[error("compile {}:\n{message}", path.display())]
    Schema {
        /// The schema.
        path: PathBuf,
        /// protox's report.
        message: String,
    },
    /// The generator, or reading and writing files.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `--check` found a difference.
    #[error("{} is not what proto/{PROTO} gives: run `cargo xtask proto` and commit it", path.display())]
    OutOfStep {
        /// The committed file.
        path: PathBuf,
    },
}

/// Writes `generated.rs`, or with `check` only compares it.
///
/// # Errors
///
/// As [`ProtoError`] says; nothing is written unless the whole generation succeeded.
pub(crate) fn run(check: bool) -> Result<(), ProtoError> {
    let krate = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/banger-agent-api");
    let committed = krate.join("src/generated.rs");
    let fresh = generate(&krate.join("proto"))?;
    if check {
        let current = fs::read_to_string(&committed).map_err(|source| ProtoError::Io {
            doing: "read",
            path: committed.clone(),
            source,
        })?;
        return if current == fresh {
            Ok(())
        } else {
            Err(ProtoError::OutOfStep { path: committed })
        };
    }
    fs::write(&committed, fresh).map_err(|source| ProtoError::Io {
        doing: "write",
        path: committed,
        source,
    })
}

/// The text of `generated.rs`.
fn generate(proto_dir: &Path) -> Result<String, ProtoError> {
    let schema = proto_dir.join(PROTO);
    let descriptors = protox::compile([PROTO], [proto_dir]).map_err(|error| ProtoError::Schema {
        path: schema.clone(),
        // protox prints its source excerpt with Debug.
        message: format!("{error:?}"),
    })?;
    let out_dir = tempfile::tempdir().map_err(|source| ProtoError::Io {
        doing: "make a temporary directory for",
        path: schema.clone(),
        source,
    })?;
    tonic_prost_build::configure()
        .out_dir(out_dir.path())
        // `bytes::Bytes` rather than `Vec<u8>`: a chunk goes from the socket's buffer to the pipe without a copy.
        .bytes(".")
        // Deterministic order, so that an environment encodes the same way every time.
        .btree_map(".")
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .client_mod_attribute(".", "#[cfg(feature = \"client\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        .compile_fds(descriptors)
        .map_err(|source| ProtoError::Io {
            doing: "generate code from",
            path: schema,
            source,
        })?;
    let output = out_dir.path().join(OUTPUT);
    let text = fs::read_to_string(&output).map_err(|source| ProtoError::Io {
        doing: "read",
        path: output,
        source,
    })?;
    Ok(format!("{HEADER}{text}"))
}
