//! What can go wrong, and what to say about it.
//!
//! One enum for the engine, because its callers treat failures alike: they pass on the [`Kind`] (which fixes an exit
//! code), the message with its causes, a hint, and the lines under the message. What is peculiar to a subsystem stays in
//! that subsystem's own error and is the source here.

mod oci;

use std::path::PathBuf;

use banger_store::StoreError;
use serde::{Deserialize, Serialize};

use crate::limits::bytes;
use crate::vm::policy::Refusal;

/// What sort of failure it is; stable, kept with finished operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is described at its namesake in the contract")]
pub enum Kind {
    InvalidArgument,
    NotFound,
    AlreadyExists,
    WrongState,
    InUse,
    Busy,
    MissingPrerequisite,
    OutOfResources,
    StartFailed,
    GuestUnavailable,
    PermissionDenied,
    TimedOut,
    Cancelled,
    Internal,
}

/// A failed check before a start: nothing was touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong, one line.
    pub message: String,
    /// How to mend it.
    pub fix: Option<String>,
}

/// Why the engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing of that name.
    #[error("no {what} {name:?}")]
    Missing {
        /// `machine`, `image`, `kernel`, `operation`, `file`.
        what: &'static str,
        /// As asked for.
        name: String,
        /// A known name like it.
        near: Option<String>,
    },
    /// Several things are called so.
    #[error("{reference:?} may be any of {} images", matches.len())]
    Ambiguous {
        /// As asked for.
        reference: String,
        /// Each with what sets it apart.
        matches: Vec<String>,
    },
    /// A name that breaks the rules.
    #[error("{name:?} cannot name {} {what}: {problem}", article(what))]
    BadName {
        /// `machine`, `image`, `kernel`, `label`.
        what: &'static str,
        /// Its beginning.
        name: String,
        /// Which rule.
        problem: &'static str,
    },
    /// A value out of range.
    #[error("{field} of {value} is {problem}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// As given, for people.
        value: String,
        /// `below the minimum of 64MiB`.
        problem: String,
    },
    /// A disk only grows.
    #[error("{field} cannot shrink from {from} to {to}")]
    Shrink {
        /// `disk`, `work_disk`.
        field: &'static str,
        /// As it is.
        from: String,
        /// As asked for.
        to: String,
    },
    /// Values that cannot be together, or not now.
    #[error("{problem}")]
    Contradiction {
        /// Which.
        problem: String,
        /// The way out.
        hint: String,
    },
    /// A recipe that cannot be built from.
    #[error(transparent)]
    Recipe(Box<banger_recipe::Errors>),
    /// A step of a build that failed.
    #[error("line {line}: `{text}` ended with exit code {code}")]
    Step {
        /// Of the recipe.
        line: u32,
        /// As written.
        text: String,
        /// As a shell has it.
        code: u8,
    },
    /// An operation that was part of this one.
    #[error("{}", .0.message)]
    Part(Report),
    /// A file that cannot be what it was given for.
    #[error("{} cannot be used as a {what}: {problem}", path.display())]
    BadFile {
        /// `root file system`, `kernel`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// Where something is to come from, or its checksum, as the caller gave it.
    #[error("{text:?} cannot be used as a {what}: {problem}")]
    BadSource {
        /// `URL`, `SHA-256`.
        what: &'static str,
        /// Its beginning.
        text: String,
        /// Why.
        problem: String,
    },
    /// A file could not be downloaded.
    #[error("{what} {name:?} could not be downloaded")]
    Download {
        /// `kernel`, `runtime`, `file`.
        what: &'static str,
        /// Its name.
        name: String,
        /// Why.
        source: Box<banger_oci::download::DownloadError>,
    },
    /// A kernel that images get which name none.
    #[error("kernel {name:?} is the default of images that name none")]
    DefaultKernel {
        /// Its name.
        name: String,
    },
    /// The state machine says no.
    #[error("machine {vm:?} {refusal}")]
    Refused {
        /// Its name.
        vm: String,
        /// Why not.
        refusal: Refusal,
    },
    /// Too much waits already.
    #[error("machine {vm:?} has too many requests waiting")]
    Busy {
        /// Its name.
        vm: String,
    },
    /// Another operation makes the same thing already.
    #[error("{subject:?} is being made by operation {operation}")]
    AtWork {
        /// What is being made.
        subject: String,
        /// The operation's id.
        operation: String,
    },
    /// Checks before the start failed; nothing was touched.
    #[error("machine {vm:?} cannot be started: {}", problems.iter().map(|p| p.message.as_str()).collect::<Vec<_>>().join("; "))]
    Preflight {
        /// Its name.
        vm: String,
        /// All of them.
        problems: Vec<Problem>,
    },
    /// A session is not in the state that is needed.
    #[error("session {session:?} of machine {vm:?} {refusal}")]
    Session {
        /// Machine's name.
        vm: String,
        /// Session's name.
        session: String,
        /// Where it stands.
        refusal: &'static str,
    },
    /// The machine is not running, and must be for this.
    #[error("machine {vm:?} is not running")]
    NotRunning {
        /// Its name.
        vm: String,
    },
    /// The VMM did not come up.
    #[error("machine {vm:?} did not start")]
    Launch {
        /// Its name.
        vm: String,
        /// The driver's word.
        source: banger_vmm::LaunchError,
    },
    /// The VMM could not be ended.
    #[error("machine {vm:?} could not be killed")]
    Kill {
        /// Its name.
        vm: String,
        /// The driver's word.
        source: banger_vmm::KillError,
    },
    /// The VMM ended before the guest answered.
    #[error("machine {vm:?} stopped while it was starting: {cause}")]
    DiedStarting {
        /// Its name.
        vm: String,
        /// How: a guest kernel panic, the VMM's exit.
        cause: String,
        /// The last lines of its console.
        console: Vec<String>,
    },
    /// The guest's agent did not answer in time.
    #[error("machine {vm:?} did not answer within {seconds} s of its start")]
    Silent {
        /// Its name.
        vm: String,
        /// The time allowed.
        seconds: u64,
        /// The last lines of its console.
        console: Vec<String>,
        /// What its processes have used of the processor: whether the guest works, waits, or never ran.
        busy: Vec<String>,
    },
    /// The guest's agent answered, but failed or does not fit.
    #[error("the agent of machine {vm:?} failed")]
    Agent {
        /// Its name.
        vm: String,
        /// The protocol's word.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A companion binary or artifact is missing.
    #[error("{what} was not found; looked in {}", looked.join(", "))]
    Asset {
        /// `the guest agent (banger-agent)`.
        what: String,
        /// Places.
        looked: Vec<String>,
        /// How to get it.
        fix: String,
    },
    /// No VMM can be used.
    #[error("no VMM can be used: {reason}")]
    NoVmm {
        /// Why.
        reason: String,
    },
    /// An image or kernel could not be made.
    #[error("{what} {name:?} could not be made")]
    Make {
        /// `image`, `kernel`.
        what: &'static str,
        /// Its name.
        name: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An image could not be had from a registry or an archive.
    #[error("image {name:?} could not be had")]
    Oci {
        /// Its name, or the archive's.
        name: String,
        /// Why.
        source: Box<banger_oci::Error>,
    },
    /// Files of images are not what they were.
    #[error("{} of {of} files of images are damaged", damaged.len())]
    Damaged {
        /// How many were read.
        of: usize,
        /// Which, whose, and what is wrong.
        damaged: Vec<String>,
    },
    /// A registered file is not what it was.
    #[error("image {image:?} cannot be used: {} {problem}", path.display())]
    Registered {
        /// The image's name.
        image: String,
        /// The user's file.
        path: PathBuf,
        /// `is missing`.
        problem: String,
        /// The machines of the image.
        machines: Vec<String>,
    },
    /// Less room than is kept free.
    #[error(
        "not enough space: {} free on the file system of the state directory, {} would be written, {} are kept free",
        bytes(free),
        bytes(writes),
        bytes(floor)
    )]
    NoRoom {
        /// Bytes that can be written.
        free: u64,
        /// Bytes that would be at once.
        writes: u64,
        /// Bytes that are kept free.
        floor: u64,
    },
    /// This host cannot do what was asked for by name.
    #[error("{what} cannot be had here: {reason}")]
    Unavailable {
        /// `a system disk of kind "reflink"`.
        what: String,
        /// Why not.
        reason: String,
        /// What would help.
        fix: String,
    },
    /// A port of the host cannot be listened at.
    #[error("port {port} {problem}")]
    Port {
        /// `127.0.0.1:8080/tcp`.
        port: String,
        /// `is taken by nginx (process 123)`.
        problem: String,
        /// What sort of failure that is.
        kind: Kind,
        /// The way out.
        fix: String,
    },
    /// The host refused a file operation.
    #[error("failed to {action} {}", path.display())]
    Io {
        /// `create`, `remove`, `read`.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// The kernel's word.
        source: std::io::Error,
    },
    /// A tool of the host failed.
    #[error("failed to {action}")]
    Host {
        /// What was to be done.
        action: &'static str,
        /// The tool's word.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store failed or refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Cancelled; what had been made is removed.
    #[error("cancelled")]
    Cancelled,
    /// The daemon is shutting down.
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// The daemon ended in the middle of it.
    #[error("the daemon was interrupted while it was {stage}")]
    Interrupted {
        /// The stage.
        stage: String,
    },
}

/// An error in the form that is kept and sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What sort.
    pub kind: Kind,
    /// The message with its causes.
    pub message: String,
    /// What to try.
    pub hint: Option<String>,
    /// Lines that belong under the message.
    pub details: Vec<String>,
}

/// Whether one of an error's causes is a file above its file system's limit (EFBIG).
fn is_too_large(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |e| e.source())
        .filter_map(|e| e.downcast_ref::<std::io::Error>())
        .any(|e| e.kind() == std::io::ErrorKind::FileTooLarge)
}

/// Whether one of an error's causes is a full file system (ENOSPC, EDQUOT) or a tool's word of one.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(e) = next {
        if let Some(io) = e.downcast_ref::<std::io::Error>()
            && matches!(
                io.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            )
        {
            return true;
        }
        if matches!(e.downcast_ref::<StoreError>(), Some(StoreError::Full)) {
            return true;
        }
        if e.to_string().contains("No space left on device") {
            return true;
        }
        next = e.source();
    }
    false
}

impl Error {
    /// What sort of failure it is.
    pub fn kind(&self) -> Kind {
        if is_full(self) {
            return Kind::OutOfResources;
        }
        match self {
            Self::Missing { .. } | Self::Store(StoreError::Missing { .. }) => Kind::NotFound,
            Self::BadName { .. }
            | Self::Ambiguous { .. }
            | Self::OutOfRange { .. }
            | Self::Shrink { .. }
            | Self::Contradiction { .. }
            | Self::Recipe(_)
            | Self::Step { .. }
            | Self::BadFile { .. }
            | Self::BadSource { .. } => Kind::InvalidArgument,
            Self::Download { source, .. } => crate::fetch::kind(source),
            Self::DefaultKernel { .. } => Kind::InUse,
            Self::Refused { .. } | Self::NotRunning { .. } | Self::Session { .. } => Kind::WrongState,
            Self::Busy { .. } | Self::AtWork { .. } => Kind::Busy,
            Self::Preflight { .. }
            | Self::Asset { .. }
            | Self::NoVmm { .. }
            | Self::Unavailable { .. }
            | Self::Registered { .. } => Kind::MissingPrerequisite,
            Self::NoRoom { .. } | Self::Store(StoreError::Exhausted { .. }) => Kind::OutOfResources,
            Self::Part(report) => report.kind,
            Self::Port { kind, .. } => *kind,
            Self::Oci { source, .. } => oci::kind(source),
            Self::Launch { .. } | Self::DiedStarting { .. } => Kind::StartFailed,
            Self::Silent { .. } => Kind::TimedOut,
            Self::Agent { .. } => Kind::GuestUnavailable,
            Self::Store(StoreError::Exists { .. }) => Kind::AlreadyExists,
            Self::Store(StoreError::InUse { .. } | StoreError::PortTaken { .. }) => Kind::InUse,
            Self::Store(StoreError::Full) => Kind::OutOfResources,
            Self::Cancelled | Self::ShuttingDown => Kind::Cancelled,
            Self::Kill { .. }
            | Self::Make { .. }
            | Self::Damaged { .. }
            | Self::Io { .. }
            | Self::Host { .. }
            | Self::Interrupted { .. }
            | Self::Store(
                StoreError::ReadOnly
                | StoreError::Corrupt { .. }
                | StoreError::Sqlite(_)
                | StoreError::Closed,
            ) => Kind::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        if is_too_large(self) {
            return Some(
                "the file system of the state directory holds no file of that size (ext4: not quite 16TiB): give a \
                 smaller --disk or --work-disk"
                    .to_owned(),
            );
        }
        if is_full(self) {
            return Some("free space on the file system of the state directory, then try again".to_owned());
        }
        match self {
            Self::Missing { near: Some(near), .. } => Some(format!("did you mean {near:?}?")),
            Self::Missing {
                what: "image",
                near: None,
                ..
            } => Some("`banger image ls` lists them; `banger image bootstrap debian` makes one".to_owned()),
            Self::Missing {
                what: "machine",
                near: None,
                ..
            } => Some("`banger vm ls` lists them".to_owned()),
            Self::Missing {
                what: "kernel",
                near: None,
                ..
            } => Some("`banger kernel ls` lists them; `banger kernel add` adds one".to_owned()),
            Self::Missing {
                what: "operation",
                near: None,
                ..
            } => Some("`banger op ls` lists them; one that has ended is kept for a day".to_owned()),
            Self::Missing {
                what: "published port",
                near: None,
                ..
            } => Some("`banger vm show VM` lists those of a machine".to_owned()),
            Self::Oci { source, .. } => oci::hint(source),
            Self::Download { source, .. } => crate::fetch::hint(source),
            Self::DefaultKernel { .. } => Some(
                "choose another with `banger kernel default NAME`, or the configured one with `--reset`".to_owned(),
            ),
            Self::Damaged { .. } => Some(
                "make them anew: `banger image rm` and `pull` or `import`, `register --replace`, `bootstrap --replace`; a \
                 machine goes over to another image with `banger vm reset --image`"
                    .to_owned(),
            ),
            Self::Registered { image, .. } => Some(crate::image::registered::way_out(image)),
            Self::Part(report) => report.hint.clone(),
            Self::Session { vm, session, refusal } => Some(match *refusal {
                "has ended" => format!("`banger session show {vm} {session}` says how"),
                _ => format!("`banger session signal {vm} {session}` ends it, `banger session rm --force` kills it"),
            }),
            Self::Missing {
                what: "session",
                near: None,
                ..
            } => Some("`banger session ls VM` lists those of a machine".to_owned()),
            Self::Ambiguous { .. } => Some("give more of the digest".to_owned()),
            Self::NotRunning { vm } => Some(format!("start it: banger vm start {vm}")),
            Self::Agent { vm, .. } => Some(format!("`banger vm health {vm}` says what is wrong")),
            Self::Refused { vm, refusal } => refusal.hint(vm),
            Self::Shrink { .. } => Some(
                "a disk only grows: copy out what is needed with `banger cp` and create a machine with a smaller one"
                    .to_owned(),
            ),
            Self::Contradiction { hint, .. } => Some(hint.clone()),
            Self::AtWork { operation, .. } => Some(format!(
                "`banger op watch {operation}` waits for it, `banger op cancel {operation}` ends it"
            )),
            Self::Store(StoreError::Exists { what, name }) => match *what {
                "machine" => Some(format!(
                    "give another name, or use that one: `banger vm start {name}`; `banger vm rm {name}` frees it"
                )),
                "image" => Some(
                    "`--replace` gives the name to the new one; machines of the former keep what they have".to_owned(),
                ),
                "kernel" => Some(format!("`banger kernel rm {name}` frees the name")),
                "session" => Some("give another name, or free this one: `banger session rm`".to_owned()),
                _ => None,
            },
            Self::Busy { .. } => Some("wait for what it is doing, then try again".to_owned()),
            Self::Asset { fix, .. } | Self::Unavailable { fix, .. } | Self::Port { fix, .. } => Some(fix.clone()),
            Self::NoRoom { .. } => Some(
                "remove machines or images, or keep less free: `space_floor` under `[daemon]` in the configuration"
                    .to_owned(),
            ),
            Self::Preflight { problems, .. } => match problems.as_slice() {
                [Problem { fix, .. }] => fix.clone(),
                _ => Some("`banger doctor` checks the whole host".to_owned()),
            },
            Self::NoVmm { .. } => Some("`banger doctor` says what each VMM needs".to_owned()),
            Self::Silent { console, .. } => {
                let longer = "a slow host may need longer: `--timeout SECS`, or `start_timeout` under `[vm]` in the \
                              configuration";
                Some(match console.is_empty() {
                    true => format!("{longer}; the console is empty"),
                    false => format!("{longer}; the console's last lines are above"),
                })
            }
            Self::Store(StoreError::PortTaken { held, vm, .. }) => Some(format!(
                "take another port of the host, or take this one back: banger vm unpublish {vm} {held}"
            )),
            Self::Store(StoreError::InUse { .. }) => Some("remove what uses it first".to_owned()),
            Self::Store(StoreError::Exhausted { .. }) => Some(
                "remove machines, or set a larger `subnet` under `[network]` in the configuration".to_owned(),
            ),
            Self::Store(StoreError::ReadOnly) => {
                Some("make the state directory writable again; nothing was changed".to_owned())
            }
            Self::Interrupted { .. } => Some("what it had begun was cleaned up; try again".to_owned()),
            Self::Missing { .. }
            | Self::BadName { .. }
            | Self::OutOfRange { .. }
            | Self::Recipe(_)
            | Self::Step { .. }
            | Self::BadFile { .. }
            | Self::BadSource { .. }
            | Self::Launch { .. }
            | Self::Kill { .. }
            | Self::DiedStarting { .. }
            | Self::Make { .. }
            | Self::Io { .. }
            | Self::Host { .. }
            | Self::Store(_)
            | Self::Cancelled
            | Self::ShuttingDown => None,
        }
    }

    fn details(&self) -> Vec<String> {
        match self {
            Self::DiedStarting { console, .. } => console.clone(),
            Self::Silent { console, busy, .. } => console.iter().chain(busy).cloned().collect(),
            Self::Ambiguous { matches, .. } => matches.clone(),
            Self::Part(report) => report.details.clone(),
            Self::Damaged { damaged, .. } => damaged.clone(),
            Self::Registered { machines, .. } if !machines.is_empty() => {
                vec![format!("machines of it: {}", machines.join(", "))]
            }
            Self::Preflight { problems, .. } if problems.len() > 1 => problems
                .iter()
                .map(|p| match &p.fix {
                    Some(fix) => format!("{} (fix: {fix})", p.message),
                    None => p.message.clone(),
                })
                .collect(),
            Self::Preflight { .. }
            | Self::Registered { .. }
            | Self::Missing { .. }
            | Self::BadName { .. }
            | Self::OutOfRange { .. }
            | Self::Shrink { .. }
            | Self::Contradiction { .. }
            | Self::Recipe(_)
            | Self::Step { .. }
            | Self::BadFile { .. }
            | Self::BadSource { .. }
            | Self::Download { .. }
            | Self::DefaultKernel { .. }
            | Self::Refused { .. }
            | Self::Session { .. }
            | Self::Busy { .. }
            | Self::AtWork { .. }
            | Self::NotRunning { .. }
            | Self::Launch { .. }
            | Self::Kill { .. }
            | Self::Agent { .. }
            | Self::Asset { .. }
            | Self::NoVmm { .. }
            | Self::Make { .. }
            | Self::Oci { .. }
            | Self::NoRoom { .. }
            | Self::Unavailable { .. }
            | Self::Port { .. }
            | Self::Io { .. }
            | Self::Host { .. }
            | Self::Store(_)
            | Self::Cancelled
            | Self::ShuttingDown
            | Self::Interrupted { .. } => Vec::new(),
        }
    }

    fn message(&self) -> String {
        if let Self::Agent { vm, source } = self {
            // What the protocol says follows "failed to"; see `AgentError`.
            return format!("machine {vm:?}: failed to {}", chain(source.as_ref()));
        }
        chain(self)
    }

    /// The form that is kept and sent: the message has all its causes in it.
    pub fn report(&self) -> Report {
        Report {
            kind: self.kind(),
            message: self.message(),
            hint: self.hint(),
            details: self.details(),
        }
    }
}

/// `a` or `an`, by the first letter of the word that follows.
fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // A transparent wrapper repeats its source; saying it once is enough.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// Shorthand for [`Error::Io`].
pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.into();
    move |source| Error::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_system_is_recognised_through_its_causes() {
        let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = Error::Make {
            what: "image",
            name: "x".into(),
            source: Box::new(source),
        };
        assert_eq!(error.kind(), Kind::OutOfResources);
        assert!(error.report().hint.is_some());
    }

    #[test]
    fn a_file_above_the_file_systems_limit_is_told_of_with_the_way_out() {
        let limit = std::io::Error::from(std::io::ErrorKind::FileTooLarge);
        let hint = io("extend", "disk.img")(limit).report().hint;
        assert!(hint.unwrap_or_default().contains("a smaller --disk"));
    }

    #[test]
    fn a_silent_guest_is_told_as_it_was() {
        let hint = |console: &[&str]| {
            let report = Error::Silent {
                vm: "dev".into(),
                seconds: 1,
                console: console.iter().map(|line| (*line).to_owned()).collect(),
                busy: Vec::new(),
            }
            .report();
            assert_eq!(report.details, console);
            report.hint.unwrap_or_default()
        };
        assert!(hint(&[]).ends_with("the console is empty"));
        assert!(hint(&["Linux"]).ends_with("are above"));
        assert!(hint(&[]).contains("`--timeout SECS`"));
    }

    #[test]
    fn names_are_refused_in_english() {
        let bad = |what| {
            Error::BadName {
                what,
                name: "-".into(),
                problem: "no",
            }
            .to_string()
        };
        assert_eq!(bad("image"), r#""-" cannot name an image: no"#);
        assert_eq!(bad("machine"), r#""-" cannot name a machine: no"#);
    }

    #[test]
    fn the_chain_says_each_cause_once() {
        let error = Error::Store(StoreError::Sqlite(rusqlite_like()));
        assert!(chain(&error).starts_with("the state file failed: "));
        assert_eq!(
            chain(&Error::Store(StoreError::Full)),
            "no space left for the state file"
        );
    }

    fn rusqlite_like() -> banger_store::SqliteError {
        banger_store::SqliteError::InvalidQuery
    }
}
