//! Packet filter rules (nftables) through the program `nft`, which turns its language into the kernel's.
//!
//! A script is applied whole or not at all: `nft` makes one transaction of it. Rules belong to the network namespace of
//! the thread that has the program started.

mod watch;

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::exec::{ExecError, Tool};
pub use watch::Watch;

/// Where system programs are that a user's `PATH` may not name.
const SYSTEM: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// A table of a thousand machines takes a tenth of a second; but the first after a boot waits for the kernel's modules, half
/// a minute on a slow host that is busy booting.
const PATIENCE: Duration = Duration::from_secs(120);
/// More rules than this are not ours.
const OUTPUT: usize = 8 << 20;

/// The families of tables (nft(8)) that are used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 and IPv6 packets that the host routes, sends and receives.
    Inet,
    /// IPv4 packets alone: the rules of iptables.
    Ip,
    /// Frames that a bridge forwards.
    Bridge,
}

impl Family {
    /// As `nft` calls it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Bridge => "bridge",
        }
    }
}

/// What `nft list tables` shows: tables of all families, ours and others'.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// `inet`, `ip`, `bridge` …
    pub family: String,
    /// Its name.
    pub name: String,
}

/// Why rules could not be dealt with.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The program is not installed.
    #[error("find the program nft (nftables)")]
    Missing {
        /// Where it was looked for.
        source: ExecError,
    },
    /// It takes `CAP_NET_ADMIN`.
    #[error("{action}: this takes the capability CAP_NET_ADMIN")]
    Permission {
        /// `apply rules`, `list tables` …
        action: &'static str,
        /// What the program said.
        source: ExecError,
    },
    /// The kernel was built without nftables, or lacks a module that the rules need.
    #[error("{action}: this kernel lacks what they need")]
    Lacking {
        /// `apply rules`, `list tables` …
        action: &'static str,
        /// What the program said.
        source: ExecError,
    },
    /// It failed otherwise: the rules are wrong, or it took too long.
    #[error("{action}")]
    Failed {
        /// `apply rules`, `list tables` …
        action: &'static str,
        /// What the program said.
        source: ExecError,
    },
    /// Changes to rules are not told.
    #[error("listen for changes to rules")]
    Watch {
        /// The kernel's word.
        source: io::Error,
    },
    /// A table's name that would mean something else to the program.
    #[error("use {name:?} as a table's name: 1 to 64 letters, digits and `_`, the first a letter")]
    Name {
        /// As given.
        name: String,
    },
}

impl NftError {
    fn of(action: &'static str, source: ExecError) -> Self {
        let said = match &source {
            ExecError::Failed { stderr, .. } => stderr.join("\n"),
            ExecError::NotFound { .. }
            | ExecError::Start { .. }
            | ExecError::Io { .. }
            | ExecError::TimedOut { .. }
            | ExecError::TooMuchOutput { .. } => String::new(),
        };
        // Messages of strerror(3), which the program prints; it runs in the C locale.
        if said.contains("Operation not permitted") || said.contains("Permission denied") {
            Self::Permission { action, source }
        } else if said.contains("not supported") || said.contains("Unable to initialize Netlink socket") {
            Self::Lacking { action, source }
        } else {
            Self::Failed { action, source }
        }
    }
}

/// The program `nft`, found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nft {
    tool: Tool,
}

impl Nft {
    /// Looks for it in the directories of a `PATH`-like list, then in those for system programs.
    pub fn find(path: Option<&OsStr>) -> Result<Self, NftError> {
        let listed = path.into_iter().flat_map(std::env::split_paths);
        // A relative entry would mean whatever directory we happen to be in.
        let places = listed
            .filter(|place| place.is_absolute())
            .chain(SYSTEM.map(PathBuf::from));
        match Tool::find("nft", places) {
            Ok(tool) => Ok(Self { tool }),
            Err(source) => Err(NftError::Missing { source }),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.tool.path()
    }

    /// Applies a script in nft's language, all of it or nothing. An error has the program's own words, which point at the
    /// line.
    pub async fn apply(&self, script: &str) -> Result<(), NftError> {
        self.feed("apply rules", &[], script).await
    }

    /// Whether the kernel would take a script, without applying it: the rules are put to it, and taken back.
    pub async fn check(&self, script: &str) -> Result<(), NftError> {
        self.feed("check rules", &["--check"], script).await
    }

    /// All tables of this network namespace.
    pub async fn tables(&self) -> Result<Vec<Table>, NftError> {
        let listing = self.list("list tables", &["list", "tables"]).await?;
        // One a line: `table FAMILY NAME`.
        let parse = |line: &str| {
            let mut words = line.split_whitespace();
            match (words.next(), words.next(), words.next()) {
                (Some("table"), Some(family), Some(name)) => Some(Table {
                    family: family.to_owned(),
                    name: name.to_owned(),
                }),
                _ => None,
            }
        };
        Ok(listing.lines().filter_map(parse).collect())
    }

    /// A table's rules as the program writes them, counters left out; `None` where there is no such table.
    pub async fn table(&self, family: Family, name: &str) -> Result<Option<String>, NftError> {
        check_name(name)?;
        let there = self.tables().await?;
        if !there
            .iter()
            .any(|table| table.family == family.as_str() && table.name == name)
        {
            return Ok(None);
        }
        let arguments = ["--stateless", "list", "table", family.as_str(), name];
        self.list("list a table", &arguments).await.map(Some)
    }

    /// Removes a table with all that is in it; one that is gone already is fine.
    pub async fn remove_table(&self, family: Family, name: &str) -> Result<(), NftError> {
        check_name(name)?;
        let family = family.as_str();
        // In one transaction: made if it is not there, so that it can be deleted.
        let script = format!("add table {family} {name}\ndelete table {family} {name}\n");
        self.feed("remove a table", &[], &script).await
    }

    async fn feed(&self, action: &'static str, options: &[&str], script: &str) -> Result<(), NftError> {
        let command = self.tool.command().args(options.iter().copied());
        let command = command.args(["-f", "-"]).input(script);
        match command.timeout(PATIENCE).run().await {
            Ok(_) => Ok(()),
            Err(source) => Err(NftError::of(action, source)),
        }
    }

    async fn list(&self, action: &'static str, arguments: &[&str]) -> Result<String, NftError> {
        let command = self.tool.command().args(arguments.iter().copied());
        let run = command.capture_limit(OUTPUT).timeout(PATIENCE).run().await;
        match run {
            Ok(output) => Ok(output.text()),
            Err(source) => Err(NftError::of(action, source)),
        }
    }
}

fn check_name(name: &str) -> Result<(), NftError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let letter = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
    if letter && name.len() <= 64 && name.bytes().all(plain) {
        Ok(())
    } else {
        Err(NftError::Name {
            name: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const RULES: &str = "table inet banger {\n\tchain input {\n\t\ttype filter hook input priority filter; policy accept;\n\
                         \t\ttcp dport 53 counter accept\n\t}\n}\n";

    pub(super) fn in_namespace(work: impl AsyncFnOnce(Nft) + Send) {
        if testkit::program("BANGER_TEST_NFT", "nft").is_none() {
            return;
        }
        testkit::in_network_namespace_async(async || {
            let path = std::env::var_os("PATH");
            work(Nft::find(path.as_deref()).unwrap()).await;
        });
    }

    #[test]
    fn applied_read_back_and_removed() {
        in_namespace(async |nft| {
            assert_eq!(nft.tables().await.unwrap(), []);
            nft.apply(RULES).await.unwrap();
            let listed = nft.table(Family::Inet, "banger").await.unwrap().unwrap();
            assert!(listed.contains("tcp dport 53 counter accept"), "{listed}");
            assert_eq!(nft.table(Family::Bridge, "banger").await.unwrap(), None);
            nft.apply("table bridge banger { }\n").await.unwrap();
            let tables = nft.tables().await.unwrap();
            let shown: Vec<_> = tables
                .iter()
                .map(|table| format!("{} {}", table.family, table.name))
                .collect();
            assert_eq!(shown, ["inet banger", "bridge banger"]);
            nft.remove_table(Family::Inet, "banger").await.unwrap();
            nft.remove_table(Family::Inet, "banger").await.unwrap();
            assert_eq!(nft.tables().await.unwrap().len(), 1);
        });
    }

    #[test]
    fn a_script_with_a_mistake_changes_nothing_and_is_explained() {
        in_namespace(async |nft| {
            let wrong = format!("{RULES}table inet other {{ chain c {{ nonsense }} }}\n");
            let error = nft.apply(&wrong).await.unwrap_err();
            let NftError::Failed { source, .. } = &error else {
                panic!("{error:?}");
            };
            assert!(source.to_string().contains("syntax error"), "{source}");
            assert_eq!(nft.tables().await.unwrap(), []);
            // Right as a text, refused by the kernel.
            let error = nft
                .apply(&format!("{RULES}delete table inet other\n"))
                .await
                .unwrap_err();
            assert!(matches!(error, NftError::Failed { .. }), "{error:?}");
            assert_eq!(nft.tables().await.unwrap(), []);
        });
    }

    #[test]
    fn what_the_kernel_would_not_take_is_told_without_applying_anything() {
        in_namespace(async |nft| {
            nft.check(RULES).await.unwrap();
            let error = nft.check("add rule inet none none accept\n").await.unwrap_err();
            assert!(matches!(error, NftError::Failed { .. }), "{error:?}");
            assert_eq!(nft.tables().await.unwrap(), []);
        });
    }

    #[test]
    fn names_are_words() {
        for good in ["banger", "banger_bgr0"] {
            assert!(check_name(good).is_ok());
        }
        for bad in ["", "0a", "a b", "a;", "a\n", "ä", &"a".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn looked_for_in_the_right_places() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("nft");
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let found = Nft::find(Some(dir.path().as_os_str())).unwrap();
        assert_eq!(found.path(), program);
    }
}
