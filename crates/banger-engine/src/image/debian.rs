//! The default image: Debian with systemd, an ssh server, git and curl, made by `mmdebstrap` from Debian's packages; and other
//! releases of it and of Ubuntu, in the same way ([`suites`]).
//!
//! As root, mmdebstrap works in mount and process namespaces of its own, so that killing it leaves neither a process nor
//! a mount. As a user it works in a user namespace, which needs a range of ids that the administrator has set aside
//! (subuid(5), package `uidmap`). Either way it writes an archive, which goes the way of every archive, see
//! [`super::rootfs`]. What makes the tree an image is in `debian/customize.sh`.

mod suites;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hostkit::exec::{ExecError, Stream, Tool};
use hostkit::ext4::populate::Options;
use hostkit::rootfs_tar::Limits;

pub use suites::Distribution;

use super::rootfs::{self, Rootfs, RootfsError};
use super::work::Reporter;

const CUSTOMIZE: &str = include_str!("debian/customize.sh");
const MIRROR: &str = include_str!("debian/mirror.sh");

/// Beyond what is essential: a system, the ways into it, and what people reach for in the first minute. Names of a
/// machine's own are resolved by `libnss-myhostname`; `libpam-systemd` makes logins sessions.
const PACKAGES: [&str; 19] = [
    "systemd-sysv",
    "dbus",
    "libpam-systemd",
    "libnss-myhostname",
    "kmod",
    "openssh-server",
    "rsync",
    "git",
    "curl",
    "ca-certificates",
    "iproute2",
    "iputils-ping",
    "netbase",
    "procps",
    "less",
    "sudo",
    "vim-tiny",
    "xz-utils",
    "bash-completion",
];
/// Runs a command with a temporary directory of its own, passes a SIGTERM on to everything that the command has started,
/// and removes the directory when all of it has ended.
const END_WITH_PARENT: &str = r#"
    TMPDIR=$(mktemp -d "$TMPDIR/.bgr-tmp-XXXXXXXX") && export TMPDIR && chmod 0755 "$TMPDIR" || exit
    trap 'trap "" TERM; kill -TERM 0; wait' TERM
    "$@" &
    wait $!; status=$?
    wait; rm -rf "$TMPDIR"; exit $status"#;
/// Mirrors may be slow; it takes about a minute where they are not.
const TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// Why the image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DebianError {
    /// mmdebstrap, or one of the programs around it, is not installed.
    #[error("the program {program} is needed to make a Debian image (package {package})")]
    NoTool {
        /// The program.
        program: &'static str,
        /// The Debian package it is in.
        package: &'static str,
        /// Where it was looked for.
        #[source]
        source: Box<ExecError>,
    },
    /// This user has no range of user and group ids to build with.
    #[error(
        "user {user} has no range of ids to make a Debian image with (an administrator can give one: \
         `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}`)"
    )]
    NoIds {
        /// Name or number of the user.
        user: String,
    },
    /// mmdebstrap failed.
    #[error("failed to install {distribution} {suite}")]
    Install {
        /// `Debian`.
        distribution: &'static str,
        /// `bookworm`.
        suite: &'static str,
        /// The cause.
        #[source]
        source: Box<ExecError>,
    },
    /// There is no such release, or none that can be made.
    #[error("{distribution} {suite:?} is not known; there are {}", known.join(", "))]
    Suite {
        /// `Debian`.
        distribution: &'static str,
        /// As given.
        suite: String,
        /// Those that are.
        known: &'static [&'static str],
    },
    /// What is fetched could not be verified.
    #[error(
        "there is no key to verify packages of {distribution} with: {path} is missing (package {package})"
    )]
    NoKeyring {
        /// `Ubuntu`.
        distribution: &'static str,
        /// The file.
        path: &'static str,
        /// The Debian package it is in.
        package: &'static str,
    },
    /// A package's name is none.
    #[error("{package:?} is no name of a package")]
    Package {
        /// As given.
        package: String,
    },
    /// The mirror is not the address of one.
    #[error("invalid mirror {mirror:?}: an http, https or file address is needed")]
    Mirror {
        /// As given.
        mirror: String,
    },
    /// A file could not be read or written.
    #[error("failed to use {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// How to make the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebianOptions {
    /// Whose packages.
    pub distribution: Distribution,
    /// Which release; the usual one without.
    pub suite: Option<String>,
    /// The mirror to fetch packages from; the distribution's own without, which the image names whichever was used.
    pub mirror: Option<String>,
    /// Packages to install beyond the usual ones.
    pub packages: Vec<String>,
    /// Take no file for newer than this, in seconds since 1970, so that the same packages give the same archive.
    pub source_date: Option<u64>,
    /// A directory that every user may pass through, which building as a user needs.
    pub temporary: PathBuf,
}

impl Default for DebianOptions {
    fn default() -> Self {
        Self {
            distribution: Distribution::Debian,
            suite: None,
            mirror: None,
            packages: Vec::new(),
            source_date: None,
            temporary: "/tmp".into(),
        }
    }
}

/// Who builds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Builder {
    Root,
    User { id: u32, name: Option<String> },
}

/// Refuses what cannot be made, before anything is done.
pub(super) fn check(options: &DebianOptions) -> Result<(), DebianError> {
    options.distribution.suite(options.suite.as_deref())?;
    if let Some(mirror) = &options.mirror {
        check_mirror(mirror)?;
    }
    options.packages.iter().try_for_each(|name| check_package(name))?;
    options.distribution.check_key()
}

/// Makes the image as the directory `target`. Programs are looked for in `tool_dirs`. Stages: `install`, then those of
/// [`rootfs::from_tar`].
pub async fn bootstrap(
    target: &Path,
    options: &DebianOptions,
    tool_dirs: &[PathBuf],
    progress: &Reporter,
) -> Result<Rootfs, RootfsError> {
    let builder = builder()?;
    // Found before minutes of work, not after.
    find("mke2fs", "e2fsprogs", tool_dirs)?;
    check(options)?;
    let suite = options.distribution.suite(options.suite.as_deref())?;
    if let Builder::User { id, name } = &builder {
        check_user(*id, name.as_deref(), tool_dirs)?;
    }
    let work = rootfs::new_work(target)?;
    let archive = work.path().join("debian.tar");
    install(
        &builder,
        work.path(),
        &archive,
        (options, suite),
        tool_dirs,
        progress,
    )
    .await?;
    let options = Options {
        label: options.distribution.as_str(),
        slack: 0,
    };
    rootfs::from_tar_in(
        work,
        target,
        &archive,
        Limits::default(),
        &options,
        tool_dirs,
        progress,
    )
    .await
}

/// Whether a user can have a namespace with enough ids.
fn check_user(id: u32, name: Option<&str>, tool_dirs: &[PathBuf]) -> Result<(), DebianError> {
    find("newuidmap", "uidmap", tool_dirs)?;
    for path in ["/etc/subuid", "/etc/subgid"] {
        let table = match std::fs::read_to_string(path) {
            Ok(table) => table,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => {
                return Err(DebianError::Io {
                    path: path.into(),
                    source,
                });
            }
        };
        if !has_range(&table, id, name) {
            let user = name.map_or_else(|| id.to_string(), str::to_owned);
            return Err(DebianError::NoIds { user });
        }
    }
    Ok(())
}

/// Runs mmdebstrap, which writes the new file `archive`.
async fn install(
    builder: &Builder,
    work: &Path,
    archive: &Path,
    (options, suite): (&DebianOptions, &'static str),
    tool_dirs: &[PathBuf],
    progress: &Reporter,
) -> Result<(), DebianError> {
    let (distribution, title) = (options.distribution, options.distribution.title());
    let mmdebstrap = find("mmdebstrap", "mmdebstrap", tool_dirs)?;
    let out = std::fs::File::create_new(archive).map_err(|source| DebianError::Io {
        path: archive.to_owned(),
        source,
    })?;
    progress.step("install", format!("installing {title} {suite}"));
    let report = progress.clone();
    let command = match builder {
        // Everything below dies with the first process of the namespace, and that one with its parent.
        Builder::Root => find("unshare", "util-linux", tool_dirs)?
            .command()
            .args([
                "--mount",
                "--propagation=private",
                "--pid",
                "--fork",
                "--kill-child=KILL",
                "--mount-proc",
                "--",
            ])
            .arg(mmdebstrap.path())
            .arg("--mode=root")
            .env("TMPDIR", work),
        // A user cannot remove what belongs to the ids of the namespace, but mmdebstrap does so itself when it and its
        // children are asked to end, as a terminal would. So it runs in a session of its own, out of reach of the
        // signal that kills it dead, below a shell that the kernel tells when its parent was killed.
        Builder::User { .. } => find("setsid", "util-linux", tool_dirs)?
            .command()
            .args(["--fork", "--wait"])
            .arg(find("setpriv", "util-linux", tool_dirs)?.path())
            .args([
                "--pdeathsig",
                "TERM",
                "--",
                "/bin/sh",
                "-c",
                END_WITH_PARENT,
                "sh",
            ])
            .arg(mmdebstrap.path())
            .arg("--mode=unshare")
            .env("TMPDIR", &options.temporary),
    };
    // Its own programs are looked for where ours are: users' paths lack the directories of system programs.
    let path = std::env::join_paths(tool_dirs).unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let mut command = command
        .env("PATH", path)
        .args(arguments(options, suite))
        .env("BANGER_CUSTOMIZE_HOOK", CUSTOMIZE)
        .output_file(out)
        .timeout(TIMEOUT)
        .on_line(move |stream, line| match stream {
            Stream::Stderr => {
                if let Some(message) = line.strip_prefix("I: ") {
                    report.step("install", message);
                }
            }
            Stream::Stdout => {}
        });
    if let Some(mirror) = &options.mirror {
        command = command
            .env("BANGER_MIRROR_HOOK", MIRROR)
            .env("BANGER_MIRROR", mirror)
            .env("BANGER_KEY", distribution.key_option())
            .env("BANGER_COMPONENTS", distribution.components())
            .env("BANGER_SUITE", suite);
    }
    if let Some(seconds) = options.source_date {
        command = command.env("SOURCE_DATE_EPOCH", seconds.to_string());
    }
    command.run().await.map_err(|source| DebianError::Install {
        distribution: title,
        suite,
        source: Box::new(source),
    })?;
    Ok(())
}

/// mmdebstrap's arguments after the mode. The suite alone, without a mirror, is what makes it write Debian's usual
/// sources, updates and security included, into the image; another distribution's are given line by line.
fn arguments(options: &DebianOptions, suite: &str) -> Vec<String> {
    let packages: Vec<&str> = PACKAGES
        .into_iter()
        .chain(options.packages.iter().map(String::as_str))
        .collect();
    let mut arguments: Vec<String> = [
        "--variant=minbase",
        "--format=tar",
        "--skip=output/dev",
        "--architectures=amd64",
    ]
    .map(str::to_owned)
    .into();
    arguments.push(format!("--include={}", packages.join(",")));
    // A tree that is thrown away if anything fails need not be synced file by file. (Leaving out documentation this way
    // as well would start a filter for every package; customize.sh removes it at once.)
    arguments.push("--dpkgopt=force-unsafe-io".to_owned());
    if options.mirror.is_some() {
        arguments.push(hook("setup", "BANGER_MIRROR_HOOK"));
    }
    arguments.push(hook("customize", "BANGER_CUSTOMIZE_HOOK"));
    arguments.extend([suite.to_owned(), "-".to_owned()]);
    arguments.extend(options.distribution.sources(suite));
    arguments
}

/// Runs a script that is in a variable: as a file it could not be read from within a user's namespace, and written out
/// it would fill every message about the command.
fn hook(stage: &str, variable: &str) -> String {
    format!("--{stage}-hook=sh -c \"${variable}\" {stage} \"$1\"")
}

fn find(program: &'static str, package: &'static str, dirs: &[PathBuf]) -> Result<Tool, DebianError> {
    Tool::find(program, dirs).map_err(|source| DebianError::NoTool {
        program,
        package,
        source: Box::new(source),
    })
}

fn builder() -> Result<Builder, DebianError> {
    let id = rustix::process::geteuid().as_raw();
    if id == 0 {
        return Ok(Builder::Root);
    }
    let path = Path::new("/etc/passwd");
    let table = std::fs::read_to_string(path).map_err(|source| DebianError::Io {
        path: path.to_owned(),
        source,
    })?;
    Ok(Builder::User {
        id,
        name: user_name(&table, id),
    })
}

/// The name of a user in the lines of passwd(5).
fn user_name(table: &str, id: u32) -> Option<String> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    })
}

/// Whether subuid(5) gives a user 65536 ids in a row, as mmdebstrap insists on.
fn has_range(table: &str, id: u32, name: Option<&str>) -> bool {
    table.lines().any(|line| {
        let mut fields = line.split(':');
        let owner = fields.next().unwrap_or_default();
        let count = fields
            .nth(1)
            .and_then(|count| count.trim().parse::<u64>().ok())
            .unwrap_or(0);
        (Some(owner) == name || owner == id.to_string()) && count >= 65_536
    })
}

/// It becomes one of a list with commas, and a word on a command line: the rule of Debian Policy 5.6.1, and an architecture.
fn check_package(name: &str) -> Result<(), DebianError> {
    let (package, architecture) = name.split_once(':').unwrap_or((name, "all"));
    let word = |word: &str, others: &[u8]| {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || others.contains(&byte);
        word.len() > 1
            && word.len() < 200
            && !others.contains(&word.as_bytes()[0])
            && word.bytes().all(allowed)
    };
    match word(package, b"+-.") && word(architecture, b"-") {
        true => Ok(()),
        false => Err(DebianError::Package {
            package: name.chars().take(80).collect(),
        }),
    }
}

/// It becomes a line of sources.list(5), so it must be one word.
fn check_mirror(mirror: &str) -> Result<(), DebianError> {
    let known = ["http://", "https://", "file:/"]
        .iter()
        .any(|scheme| mirror.starts_with(scheme));
    if known && mirror.len() < 1000 && mirror.chars().all(|c| c.is_ascii_graphic()) {
        Ok(())
    } else {
        Err(DebianError::Mirror {
            mirror: mirror.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_all_that_mmdebstrap_writes_to_standard_output() {
        let options = DebianOptions {
            packages: vec!["jq".to_owned()],
            ..DebianOptions::default()
        };
        let arguments = arguments(&options, "trixie");
        assert_eq!(arguments.last().map(String::as_str), Some("-"));
        assert!(
            arguments
                .iter()
                .any(|argument| argument.starts_with("--include=") && argument.ends_with(",jq"))
        );
        assert!(
            !arguments
                .iter()
                .any(|argument| argument.starts_with("--setup-hook"))
        );
        // Without a scheme or a path in it: mmdebstrap has to choose Debian's own.
        assert_eq!(
            arguments.get(arguments.len() - 2).map(String::as_str),
            Some("trixie")
        );
    }

    #[test]
    fn ubuntu_is_fetched_from_where_it_is_and_with_its_key() {
        let options = DebianOptions {
            distribution: Distribution::Ubuntu,
            ..DebianOptions::default()
        };
        let arguments = arguments(&options, "noble");
        let from = arguments.iter().position(|word| word == "noble").unwrap();
        assert_eq!(arguments[from + 1], "-");
        let sources = &arguments[from + 2..];
        let suites = ["noble ", "noble-updates ", "noble-security "];
        assert_eq!(sources.len(), suites.len());
        for (line, suite) in sources.iter().zip(suites) {
            let key = "deb [signed-by=/usr/share/keyrings/ubuntu-archive-keyring.gpg] http://";
            assert!(line.starts_with(key) && line.contains(suite), "{line}");
            assert!(line.ends_with(" main universe"), "{line}");
        }
    }

    #[test]
    fn what_cannot_be_made_is_refused_before_anything_is_done() {
        let of = |distribution, suite: Option<&str>, packages: &[&str]| {
            let options = DebianOptions {
                distribution,
                suite: suite.map(str::to_owned),
                packages: packages.iter().map(|&name| name.to_owned()).collect(),
                ..DebianOptions::default()
            };
            check(&options).map_err(|e| e.to_string())
        };
        assert_eq!(of(Distribution::Debian, None, &[]), Ok(()));
        assert_eq!(
            of(Distribution::Debian, Some("trixie"), &["g++", "libc6:i386"]),
            Ok(())
        );
        let unknown = of(Distribution::Debian, Some("noble"), &[]);
        let told = "Debian \"noble\" is not known; there are bookworm, trixie, sid";
        assert_eq!(unknown, Err(told.to_owned()));
        for wrong in ["", "-o", "a,b", "A", "jq\n", "jq:", "./jq", "jq*"] {
            of(Distribution::Debian, None, &[wrong]).unwrap_err();
        }
        // Where the host has the key, it can be made.
        let key = Path::new("/usr/share/keyrings/ubuntu-archive-keyring.gpg").is_file();
        let ubuntu = of(Distribution::Ubuntu, Some("noble"), &[]);
        assert_eq!(ubuntu.is_ok(), key, "{ubuntu:?}");
        assert!(key || ubuntu.is_err_and(|told| told.contains("package ubuntu-keyring")));
    }

    /// Minutes of work and a download, so only where it is asked for.
    #[tokio::test]
    async fn a_real_bootstrap_leaves_no_trace_of_this_host() {
        if std::env::var_os("BANGER_TEST_BOOTSTRAP").is_none() {
            testkit::skip::<()>("BANGER_TEST_BOOTSTRAP is not set");
            return;
        }
        let dirs = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
        let top = tempfile::tempdir().unwrap();
        let images = top.path().join("images");
        let options = DebianOptions::default();
        let made = bootstrap(&images.join("debian"), &options, &dirs, &Reporter::silent())
            .await
            .unwrap();
        assert!(made.size < 450 << 20, "{} bytes", made.size);
        assert_eq!(made.os.id, "debian");
        assert_eq!(made.init.as_deref(), Some("/sbin/init"));
        assert_eq!(
            std::fs::read_dir(&images).unwrap().count(),
            1,
            "nothing unfinished is left"
        );
        let tools = hostkit::ext4::E2fsTools::find(&dirs).unwrap();
        for (path, wanted) in [
            ("/etc/machine-id", ""),
            ("/etc/resolv.conf", ""),
            ("/etc/fstab", ""),
        ] {
            let text = tools.read(&made.path, path, 1 << 16).await.unwrap();
            assert_eq!(text.as_deref(), Some(wanted.as_bytes()), "{path}");
        }
        for path in [
            "/etc/hostname",
            "/etc/ssh/ssh_host_ed25519_key",
            "/etc/apt/apt.conf.d/99mmdebstrap",
        ] {
            assert!(!tools.exists(&made.path, path).await.unwrap(), "{path}");
        }
        for path in [
            "/dev",
            "/proc",
            "/sys",
            "/run",
            "/tmp",
            "/usr/sbin/sshd",
            "/usr/bin/git",
            "/usr/bin/curl",
        ] {
            assert!(tools.exists(&made.path, path).await.unwrap(), "{path}");
        }
        Tool::find("e2fsck", &dirs)
            .unwrap()
            .command()
            .arg("-fn")
            .arg(&made.path)
            .run()
            .await
            .unwrap();
    }

    /// mmdebstrap goes on with the host's apt, and empties the host's lists, where its configuration in the tree is gone.
    #[test]
    fn mmdebstraps_own_files_are_left_to_it() {
        for line in CUSTOMIZE
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
        {
            for own in ["$root\"/tmp", "$root/tmp", "/var/lib/apt", "/var/cache/apt"] {
                assert!(!line.contains(own), "{line}");
            }
        }
    }

    #[test]
    fn ranges_of_ids_are_found() {
        let table = "someone:100000:65536\nme:165536:65536\n1001:231072:65536\nshort:1:100\nodd\n";
        assert!(has_range(table, 1000, Some("me")));
        assert!(has_range(table, 1001, None));
        assert!(!has_range(table, 1000, Some("you")));
        assert!(!has_range(table, 1000, Some("short")));
        let passwd = "root:x:0:0:root:/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n";
        assert_eq!(user_name(passwd, 1000).as_deref(), Some("me"));
        assert_eq!(user_name(passwd, 1001), None);
    }

    #[test]
    fn mirrors_are_one_word() {
        check_mirror("http://127.0.0.1:3142/debian").unwrap();
        for wrong in ["", "example", "ftp://x", "http://a b", "http://a\ndeb http://b"] {
            assert!(
                matches!(check_mirror(wrong), Err(DebianError::Mirror { .. })),
                "{wrong:?}"
            );
        }
    }
}
