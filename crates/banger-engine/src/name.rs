//! Names that people choose, and the nearest known one when they mistype.

use banger_oci::Reference;

use crate::error::Error;
use crate::image::build::RESERVED;

/// A machine's name is a DNS label (RFC 1123), because it becomes the guest's host name.
pub(crate) fn machine(name: &str) -> Result<(), Error> {
    label_of_dns(name).map_err(|problem| bad("machine", name, problem))
}

/// What is wrong with a label, which has to begin with a letter here.
fn label_of_dns(name: &str) -> Result<(), &'static str> {
    let problem = if name.is_empty() {
        "it is empty"
    } else if name.len() > 63 {
        "it is longer than 63 characters"
    } else if !name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    {
        "only a-z, 0-9 and `-` may be in it"
    } else if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        "it must begin with a letter"
    } else if name.ends_with('-') {
        "it must not end with `-`"
    } else {
        return Ok(());
    };
    Err(problem)
}

/// A session's name is made as a machine's is.
pub(crate) fn session(name: &str) -> Result<(), Error> {
    label_of_dns(name).map_err(|problem| bad("session", name, problem))
}

/// An image's name is a reference as in OCI: a repository, perhaps with its registry, perhaps with a tag or a digest.
pub(crate) fn image(name: &str) -> Result<(), Error> {
    match Reference::parse(name) {
        Ok(_) => Ok(()),
        Err(error) => Err(bad("image", name, error.reason)),
    }
}

/// An image's name as it is kept and shown: of all that mean the same, the shortest. `docker.io/library/debian:latest` is
/// `debian`. What is no reference is as it is.
pub(crate) fn familiar(name: &str) -> String {
    Reference::parse(name).map_or_else(|_| name.to_owned(), |reference| reference.familiar())
}

/// Whether a name is as a pattern says: `*` is anything, also nothing, `?` any one character.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    // Where to go on when what follows the last `*` does not fit: one character later. Linear in each, and no recursion.
    let (mut p, mut n, mut again) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                again = Some((p + 1, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => (p, n) = (p + 1, n + 1),
            Some(_) | None => match &mut again {
                Some((after, from)) => {
                    *from += 1;
                    (p, n) = (*after, *from);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// A kernel's name becomes a directory.
pub(crate) fn kernel(name: &str) -> Result<(), Error> {
    let problem = if name.is_empty() {
        "it is empty"
    } else if name.len() > 63 {
        "it is longer than 63 characters"
    } else if !name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
    {
        "only a-z, 0-9, `-` and `.` may be in it"
    } else if !name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()) {
        "it must begin with a letter or digit"
    } else {
        return Ok(());
    };
    Err(bad("kernel", name, problem))
}

/// A label's key and value.
pub(crate) fn label(key: &str, value: &str) -> Result<(), Error> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'/' | b'-');
    let problem = if key.is_empty() || key.len() > 63 {
        "the key must have 1 to 63 characters"
    } else if !key.bytes().all(fits) {
        "only a-z, 0-9 and `.`, `_`, `/`, `-` may be in the key"
    } else if key.starts_with(RESERVED) {
        "labels that begin with `banger.` are Banger's own"
    } else if value.len() > 255 {
        "the value is longer than 255 bytes"
    } else if value.chars().any(char::is_control) {
        "the value has control characters in it"
    } else {
        return Ok(());
    };
    Err(bad("label", key, problem))
}

fn bad(what: &'static str, name: &str, problem: &'static str) -> Error {
    // A name may be anything: megabytes, escape sequences. The message shows its beginning, escaped.
    let shown: String = name.chars().take(80).collect();
    Error::BadName {
        what,
        name: shown,
        problem,
    }
}

/// The known name that a mistyped one most likely meant: the one that the fewest slips of the fingers lead to, where two
/// letters in the wrong order are one slip and capitals are none. Of equally near ones, that with the likelier beginning.
pub(crate) fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    // Names have at most 128 characters; what was typed may have megabytes, and the distance takes their product.
    if typed.len() > 256 {
        return None;
    }
    let typed = typed.to_lowercase();
    let length = typed.chars().count();
    // A slip in four letters or fewer, one more for each further three. All letters being wrong is no slip.
    let slips = (length.saturating_sub(1) / 3)
        .max(1)
        .min(length.saturating_sub(1));
    known
        .into_iter()
        .map(|name| {
            let distance = strsim::osa_distance(&typed, name);
            (distance, strsim::jaro_winkler(&typed, name), name)
        })
        // What was cut short is far in letters and likely all the same.
        .filter(|(distance, likeness, _)| *distance <= slips || *likeness > 0.75)
        .min_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)))
        .map(|(_, _, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn machine_names() {
        for good in ["a", "dev", "dev-2", &"a".repeat(63)] {
            machine(good).unwrap();
        }
        for bad in [
            "",
            "-a",
            "a-",
            "1a",
            "Dev",
            "a.b",
            "a/b",
            "a b",
            "a_b",
            "ä",
            "..",
            &"a".repeat(64),
        ] {
            assert!(machine(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn image_names() {
        let digest = format!("debian@sha256:{}", "0a".repeat(32));
        for good in [
            "debian",
            "debian:12",
            "a/b/c",
            "x_y.z-1",
            "debian:12-Slim_1.0",
            "localhost:5000/a/b:v1",
            &digest,
        ] {
            image(good).unwrap();
        }
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            "a..b",
            "../a",
            "A",
            "a b",
            "a:",
            ":a",
            "a:.b",
            "a:b c",
            "a@sha256:00",
            "a@md5:00",
            &"a".repeat(256),
        ] {
            assert!(image(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_that_mean_the_same_are_the_same() {
        for (name, short) in [
            ("debian", "debian"),
            ("debian:latest", "debian"),
            ("docker.io/library/debian", "debian"),
            ("docker.io/library/debian:latest", "debian"),
            ("index.docker.io/library/debian:12", "debian:12"),
            ("docker.io/grafana/grafana", "grafana/grafana"),
            ("localhost:5000/debian:latest", "localhost:5000/debian"),
            ("ghcr.io/library/debian", "ghcr.io/library/debian"),
        ] {
            assert_eq!(familiar(name), short);
            assert_eq!(familiar(short), short);
        }
    }

    #[test]
    fn patterns() {
        for (pattern, name) in [
            ("debian", "debian"),
            ("*", "debian:12"),
            ("deb*", "debian"),
            ("*:12", "debian:12"),
            ("d?bian*", "debian"),
            ("*a*a*", "banana"),
            ("***", ""),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("", "debian"),
            ("debia", "debian"),
            ("debian?", "debian"),
            ("*:12", "debian"),
            ("*a*a*a*a*", "banana"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        // What would take a naive matcher for ever.
        assert!(!matches(&"*a".repeat(60), &"a".repeat(59)));
    }

    #[test]
    fn a_near_match_is_found_and_a_far_one_is_not() {
        assert_eq!(
            nearest("debain", ["busybox", "debian"]).as_deref(),
            Some("debian")
        );
        assert_eq!(nearest("zzz", ["busybox", "debian"]), None);
        // The README's own, and its relatives.
        for typed in ["dve", "deb", "dee", "devv", "Dev", "ev"] {
            assert_eq!(nearest(typed, ["ci", "dev"]).as_deref(), Some("dev"), "{typed}");
        }
        assert_eq!(
            nearest("deva", ["development", "deva-2", "dev"]).as_deref(),
            Some("dev")
        );
        assert_eq!(
            nearest("busyb", ["busybox"]).as_deref(),
            Some("busybox"),
            "cut short"
        );
        for typed in ["", "x", "xy", "ci-runner", &"dev".repeat(1000)] {
            assert_eq!(nearest(typed, ["a", "dev"]), None, "{typed}");
        }
    }

    proptest! {
        #[test]
        fn an_accepted_name_is_a_safe_file_name(name in ".{0,70}") {
            if machine(&name).is_ok() || kernel(&name).is_ok() {
                prop_assert!(!name.contains('/') && name != "." && name != ".." && !name.starts_with('-'));
            }
        }
    }
}
