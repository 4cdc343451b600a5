//! `KEY=VALUE` arguments: the environment of a command, a machine's labels, and the selection by label.

/// Longest label key and value in bytes, as the contract has it.
const LONGEST_KEY: usize = 63;
const LONGEST_VALUE: usize = 255;

/// Why a pair was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PairError {
    #[error("`{0}` is not of the form KEY=VALUE")]
    NoValue(String),
    #[error("the key is empty")]
    NoKey,
    #[error("label key `{0}` may hold 1 to 63 of a-z 0-9 . _ / -")]
    LabelKey(String),
    #[error("the label's value is longer than 255 bytes")]
    LabelValue,
}

/// `-e KEY=VALUE`, or `-e KEY` for the value it has here (as with docker). `None`: it has none here, so it is not
/// passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EnvVar {
    pub(crate) key: String,
    pub(crate) value: Option<String>,
}

impl std::str::FromStr for EnvVar {
    type Err = PairError;

    fn from_str(text: &str) -> Result<Self, PairError> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (text, std::env::var(text).ok()),
        };
        if key.is_empty() {
            return Err(PairError::NoKey);
        }
        Ok(Self {
            key: key.to_owned(),
            value,
        })
    }
}

/// `--label KEY=VALUE` of a new machine. `KEY` alone has an empty value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) key: String,
    pub(crate) value: String,
}

impl std::str::FromStr for Label {
    type Err = PairError;

    fn from_str(text: &str) -> Result<Self, PairError> {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| PairError::NoValue(text.to_owned()))?;
        check_key(key)?;
        if value.len() > LONGEST_VALUE {
            return Err(PairError::LabelValue);
        }
        Ok(Self {
            key: key.to_owned(),
            value: value.to_owned(),
        })
    }
}

/// `--unlabel KEY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LabelKey(pub(crate) String);

impl std::str::FromStr for LabelKey {
    type Err = PairError;

    fn from_str(text: &str) -> Result<Self, PairError> {
        check_key(text)?;
        Ok(Self(text.to_owned()))
    }
}

/// `--label KEY[=VALUE]` of a listing: an absent value matches any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selector {
    pub(crate) key: String,
    pub(crate) value: String,
}

impl std::str::FromStr for Selector {
    type Err = PairError;

    fn from_str(text: &str) -> Result<Self, PairError> {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        check_key(key)?;
        Ok(Self {
            key: key.to_owned(),
            value: value.to_owned(),
        })
    }
}

fn check_key(key: &str) -> Result<(), PairError> {
    if key.is_empty() {
        return Err(PairError::NoKey);
    }
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._/-".contains(&b);
    if key.len() > LONGEST_KEY || !key.bytes().all(fits) {
        return Err(PairError::LabelKey(key.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn environment() {
        let var = |key: &str, value: &str| {
            Ok(EnvVar {
                key: key.into(),
                value: Some(value.into()),
            })
        };
        assert_eq!("A=1".parse(), var("A", "1"));
        assert_eq!("A=".parse(), var("A", ""));
        assert_eq!("A=b=c".parse(), var("A", "b=c"));
        assert_eq!("=x".parse::<EnvVar>(), Err(PairError::NoKey));
        assert_eq!("".parse::<EnvVar>(), Err(PairError::NoKey));
        // cargo sets this one for every test.
        assert_eq!("CARGO_PKG_NAME".parse(), var("CARGO_PKG_NAME", "banger"));
        assert_eq!(
            "BANGER_NO_SUCH_VARIABLE".parse(),
            Ok(EnvVar {
                key: "BANGER_NO_SUCH_VARIABLE".into(),
                value: None
            })
        );
    }

    #[test]
    fn labels() {
        assert_eq!(
            "team/x=red".parse(),
            Ok(Label {
                key: "team/x".into(),
                value: "red".into()
            })
        );
        assert_eq!("team".parse::<Label>(), Err(PairError::NoValue("team".into())));
        assert_eq!("Team=x".parse::<Label>(), Err(PairError::LabelKey("Team".into())));
        assert_eq!(
            format!("{}=x", "a".repeat(64)).parse::<Label>(),
            Err(PairError::LabelKey("a".repeat(64)))
        );
        assert_eq!(
            format!("a={}", "x".repeat(256)).parse::<Label>(),
            Err(PairError::LabelValue)
        );
        assert_eq!(
            "team".parse(),
            Ok(Selector {
                key: "team".into(),
                value: String::new()
            })
        );
        assert_eq!("".parse::<Selector>(), Err(PairError::NoKey));
    }

    proptest! {
        #[test]
        fn good_labels_survive(key in "[a-z0-9._/-]{1,63}", value in "[ -~]{0,255}") {
            prop_assert_eq!(format!("{key}={value}").parse(), Ok(Label { key, value }));
        }
    }
}
