//! What a root file system says it is: os-release(5), read without trusting it.

/// The fields that are shown to people. Each is at most 64 printable characters; an absent one is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OsRelease {
    /// `ID`, such as `debian`.
    pub id: String,
    /// `PRETTY_NAME`, or else `NAME`.
    pub name: String,
    /// `VERSION_ID`, such as `12`.
    pub version: String,
}

impl OsRelease {
    /// Reads the file's contents; lines that mean nothing are skipped.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let value = |wanted: &str| {
            text.lines()
                .filter_map(|line| line.trim().split_once('='))
                .filter(|(key, _)| *key == wanted)
                .map(|(_, value)| unquote(value))
                .next_back()
                .unwrap_or_default()
        };
        let pretty = value("PRETTY_NAME");
        Self {
            id: value("ID"),
            name: if pretty.is_empty() { value("NAME") } else { pretty },
            version: value("VERSION_ID"),
        }
    }

    /// Such as `debian-12`; `None` where it says nothing.
    #[must_use]
    pub fn suggested_name(&self) -> Option<String> {
        as_name(&format!("{}-{}", self.id, self.version)).filter(|_| !self.id.is_empty())
    }
}

/// Values may be in single or double quotes, in the latter with backslashes before `"`, `$`, `` ` `` and `\`.
fn unquote(value: &str) -> String {
    let inner = ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote))
        .unwrap_or(value);
    let mut characters = inner.chars();
    let mut plain = String::new();
    while let Some(character) = characters.next() {
        let character = if character == '\\' {
            characters.next().unwrap_or('\\')
        } else {
            character
        };
        if !character.is_control() {
            plain.push(character);
        }
    }
    plain.chars().take(64).collect()
}

/// Lowercase letters, digits and single dashes, starting with a letter; `None` where nothing is left.
pub(super) fn as_name(text: &str) -> Option<String> {
    let mut name = String::new();
    for character in text.chars().take(63) {
        match character.to_ascii_lowercase() {
            letter @ ('a'..='z' | '0'..='9') => name.push(letter),
            _ if !name.is_empty() && !name.ends_with('-') => name.push('-'),
            _ => {}
        }
    }
    let name = name.trim_end_matches('-');
    name.starts_with(|c: char| c.is_ascii_lowercase())
        .then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_and_cleaned() {
        let os = OsRelease::parse(
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=x\n# ID=no\nVERSION_ID=\"12\"\nID=debian\n=\nodd\n",
        );
        assert_eq!((os.id.as_str(), os.version.as_str()), ("debian", "12"));
        assert_eq!(os.name, "Debian GNU/Linux 12 (bookworm)");
        assert_eq!(os.suggested_name().as_deref(), Some("debian-12"));
        let hostile = OsRelease::parse(&format!("ID='a\x1b[31m'\nNAME=\"q\\\"{}\"\n", "x".repeat(1000)));
        assert_eq!(hostile.id, "a[31m");
        assert!(hostile.name.starts_with("q\"x") && hostile.name.len() == 64);
        assert_eq!(OsRelease::parse("").suggested_name(), None);
    }

    #[test]
    fn names_are_made_of_anything() {
        assert_eq!(as_name("My Image_v2.0!").as_deref(), Some("my-image-v2-0"));
        assert_eq!(as_name("../..").as_deref(), None);
        assert_eq!(as_name("9lives"), None);
    }
}
