//! Users and groups of the guest, from its `/etc/passwd` and `/etc/group`.
//!
//! The agent is statically linked and knows no NSS: users from elsewhere (LDAP, systemd-homed) are reached by number.
//! Both files belong to the guest, hence are hostile: bounded, and lines that make no sense are skipped, as glibc does.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Largest passwd or group file read, in bytes.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// `NGROUPS_MAX` of the kernel.
const MAX_GROUPS: usize = 65536;

/// Who a command runs as, or whose a file becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, `gid` included; empty when a group was given explicitly.
    pub(crate) groups: Vec<u32>,
    /// The login name; the number's digits for a uid without an entry.
    pub(crate) name: OsString,
    pub(crate) home: PathBuf,
    pub(crate) shell: PathBuf,
}

/// Why a user specification leads to nobody.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccountError {
    /// No such name in `/etc/passwd`, and not a number.
    #[error("find the user {name:?} in the guest")]
    UnknownUser {
        /// As asked for.
        name: String,
    },
    /// No such name in `/etc/group`, and not a number.
    #[error("find the group {name:?} in the guest")]
    UnknownGroup {
        /// As asked for.
        name: String,
    },
    /// Not of the form `user`, `user:group`.
    #[error("read the user {spec:?}: it is not NAME, UID, NAME:GROUP or UID:GID")]
    Malformed {
        /// As asked for.
        spec: String,
    },
    /// The file is there but cannot be read.
    #[error("read {}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Finds the account for `""` (root), `name`, `uid`, `name:group` or `uid:gid`.
///
/// Names win over numbers. A uid without an entry is allowed; it has group 0 and home `/`.
pub(crate) fn find(spec: &str) -> Result<Account, AccountError> {
    let passwd = read(Path::new("/etc/passwd"))?;
    let group = read(Path::new("/etc/group"))?;
    resolve(spec, &passwd, &group)
}

/// Reads a whole file; a missing one (an image without users) is empty.
fn read(path: &Path) -> Result<Vec<u8>, AccountError> {
    let mut bytes = Vec::new();
    let result = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
    match result {
        Ok(_) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(bytes),
        Err(source) => Err(AccountError::Unreadable {
            path: path.to_owned(),
            source,
        }),
    }
}

fn resolve(spec: &str, passwd: &[u8], group: &[u8]) -> Result<Account, AccountError> {
    let (user, chosen_group) = match spec.split_once(':') {
        None => (spec, None),
        Some((user, group)) if !user.is_empty() && !group.is_empty() && !group.contains(':') => {
            (user, Some(group))
        }
        Some(_) => {
            return Err(AccountError::Malformed {
                spec: spec.to_owned(),
            });
        }
    };
    if spec.contains(['\0', '\n']) {
        return Err(AccountError::Malformed {
            spec: spec.to_owned(),
        });
    }
    let mut account = find_user(user, passwd)?;
    match chosen_group {
        Some(name) => {
            account.gid = find_group(name, group)?;
            account.groups = Vec::new();
        }
        None => account.groups = memberships(account.name.as_encoded_bytes(), account.gid, group),
    }
    Ok(account)
}

fn find_user(user: &str, passwd: &[u8]) -> Result<Account, AccountError> {
    let by_name = |entry: &Account| entry.name.as_encoded_bytes() == user.as_bytes();
    if user.is_empty() {
        let root = users(passwd).find(|entry| entry.uid == 0);
        return Ok(root.unwrap_or_else(|| nameless(0)));
    }
    if let Some(entry) = users(passwd).find(by_name) {
        return Ok(entry);
    }
    match number(user.as_bytes()) {
        Some(uid) => Ok(users(passwd)
            .find(|entry| entry.uid == uid)
            .unwrap_or_else(|| nameless(uid))),
        None => Err(AccountError::UnknownUser {
            name: user.to_owned(),
        }),
    }
}

/// The account of a uid which `/etc/passwd` does not know.
fn nameless(uid: u32) -> Account {
    let (name, home) = if uid == 0 {
        ("root".to_owned(), "/root")
    } else {
        (uid.to_string(), "/")
    };
    Account {
        uid,
        gid: 0,
        groups: Vec::new(),
        name: name.into(),
        home: PathBuf::from(home),
        shell: PathBuf::from("/bin/sh"),
    }
}

/// The lines of `passwd(5)` that make sense.
fn users(passwd: &[u8]) -> impl Iterator<Item = Account> {
    passwd.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let uid = number(fields.next()?)?;
        let gid = number(fields.next()?)?;
        let _gecos = fields.next()?;
        let home = fields.next()?;
        let shell = fields.next()?;
        if fields.next().is_some() {
            return None;
        }
        let path = |bytes: &[u8], default: &str| {
            let sane = bytes.starts_with(b"/") && !bytes.contains(&0);
            if sane {
                PathBuf::from(OsString::from_vec(bytes.to_vec()))
            } else {
                PathBuf::from(default)
            }
        };
        let name = OsString::from_vec(name.to_vec());
        Some(Account {
            uid,
            gid,
            groups: Vec::new(),
            name,
            home: path(home, "/"),
            shell: path(shell, "/bin/sh"),
        })
    })
}

/// The lines of `group(5)` that make sense: name, gid, members.
fn groups(group: &[u8]) -> impl Iterator<Item = (&[u8], u32, &[u8])> {
    group.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let gid = number(fields.next()?)?;
        let members = fields.next()?;
        fields.next().is_none().then_some((name, gid, members))
    })
}

fn find_group(name: &str, group: &[u8]) -> Result<u32, AccountError> {
    groups(group)
        .find_map(|(entry, gid, _)| (entry == name.as_bytes()).then_some(gid))
        .or_else(|| number(name.as_bytes()))
        .ok_or_else(|| AccountError::UnknownGroup {
            name: name.to_owned(),
        })
}

/// What initgroups(3) gives: the own group, then every group which lists the user.
fn memberships(user: &[u8], own: u32, group: &[u8]) -> Vec<u32> {
    let mut all = vec![own];
    for (_, gid, members) in groups(group) {
        let member = members.split(|byte| *byte == b',').any(|name| name == user);
        if member && !all.contains(&gid) && all.len() < MAX_GROUPS {
            all.push(gid);
        }
    }
    all
}

/// A decimal uid or gid. The kernel means "no change" by 2³²−1, so that is none.
fn number(digits: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(digits).ok()?;
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| plain && *number != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n\
        broken line\n\
        daemon:x:1:1::/usr/sbin:/usr/sbin/nologin\n\
        toor:x:0:0::/:\n\
        dev:x:1000:1000:Dev,,,:/home/dev:/bin/zsh\n\
        2000:x:2001:2001::relative:\n\
        huge:x:4294967295:1::/:/bin/sh\n\
        extra:x:1:1::/:/bin/sh:more\n";
    const GROUP: &[u8] =
        b"root:x:0:\nadm:x:4:syslog,dev\nsudo:x:27:dev\ndev:x:1000:dev\nno:x:5:developer\nbad\n";

    fn account(spec: &str) -> Result<Account, AccountError> {
        resolve(spec, PASSWD, GROUP)
    }

    #[test]
    fn names_numbers_and_groups() {
        let dev = account("dev").expect("known");
        assert_eq!(
            (dev.uid, dev.gid, dev.groups.as_slice()),
            (1000, 1000, &[1000, 4, 27][..])
        );
        assert_eq!(
            (dev.home.to_str(), dev.shell.to_str()),
            (Some("/home/dev"), Some("/bin/zsh"))
        );
        assert_eq!(account("1000").expect("known"), dev);
        let adm = account("dev:adm").expect("known");
        assert_eq!((adm.uid, adm.gid, adm.groups.len()), (1000, 4, 0));
        assert_eq!(account("1000:77").expect("numbers").gid, 77);
        assert_eq!(account("").expect("root").name, "root");
    }

    #[test]
    fn a_name_of_digits_wins_over_the_number() {
        let account = account("2000").expect("by name");
        assert_eq!((account.uid, account.home.to_str()), (2001, Some("/")));
    }

    #[test]
    fn a_uid_without_an_entry_is_allowed() {
        let stranger = account("4242").expect("any number");
        assert_eq!(
            (stranger.uid, stranger.gid, stranger.home.to_str()),
            (4242, 0, Some("/"))
        );
        let root = resolve("", b"", b"").expect("an image without users");
        assert_eq!((root.uid, root.home.to_str()), (0, Some("/root")));
    }

    #[test]
    fn who_is_not_there_is_named() {
        assert!(matches!(account("nobody"), Err(AccountError::UnknownUser { name }) if name == "nobody"));
        assert!(matches!(account("dev:wheel"), Err(AccountError::UnknownGroup { name }) if name == "wheel"));
        for spec in ["huge", "extra", "4294967295", "4294967296", "-1", "+1"] {
            assert!(
                matches!(account(spec), Err(AccountError::UnknownUser { .. })),
                "{spec}"
            );
        }
        for spec in [":", "dev:", ":adm", "a:b:c", "dev\n", "\0"] {
            assert!(
                matches!(account(spec), Err(AccountError::Malformed { .. })),
                "{spec:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn hostile_files_never_panic_and_never_invent_a_name(
            spec in "[a-z0-9:]{0,8}",
            passwd in "([a-z0-9]{0,2}(:[a-z0-9/]{0,3}){0,8}\n?){0,6}",
            group: Vec<u8>,
        ) {
            if let Ok(found) = resolve(&spec, passwd.as_bytes(), &group) {
                let user = spec.split(':').next().unwrap_or_default();
                let listed = found.name.to_str() == Some(user);
                prop_assert!(user.is_empty() || listed || number(user.as_bytes()).is_some());
                prop_assert!(found.uid != u32::MAX && found.gid != u32::MAX);
                prop_assert!(found.home.is_absolute() && found.shell.is_absolute());
            }
        }
    }
}
