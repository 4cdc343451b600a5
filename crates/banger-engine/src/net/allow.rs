//! What a guest may reach beyond the host's own way out. Nothing, unless its machine says so.

use std::fmt;
use std::str::FromStr;

/// What a machine allows its guest. Each is off unless it was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Allow {
    /// Other machines that allow it too.
    pub guests: bool,
    /// Services of the host.
    pub host: bool,
    /// The host's own networks and all private ones.
    pub lan: bool,
}

/// A word that allows nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is nothing that can be allowed: guests, host and lan are")]
pub struct UnknownAllow(pub String);

impl Allow {
    /// Its words, in order.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        [(self.guests, "guests"), (self.host, "host"), (self.lan, "lan")]
            .into_iter()
            .filter_map(|(is, word)| is.then_some(word))
    }

    /// Of a row. A word of a newer release allows nothing.
    pub(crate) fn of(row: &str) -> Self {
        let mut allow = Self::default();
        for word in row.split(',') {
            // What is not known is not allowed.
            drop(allow.add(word));
        }
        allow
    }

    /// Allows one thing more.
    pub fn add(&mut self, word: &str) -> Result<(), UnknownAllow> {
        match word {
            "guests" => self.guests = true,
            "host" => self.host = true,
            "lan" => self.lan = true,
            _ => return Err(UnknownAllow(word.chars().take(40).collect())),
        }
        Ok(())
    }

    /// As its row keeps it.
    pub(crate) fn as_row(self) -> String {
        self.words().collect::<Vec<_>>().join(",")
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self == Self::default() {
            true => f.write_str("none"),
            false => f.write_str(&self.as_row()),
        }
    }
}

impl FromStr for Allow {
    type Err = UnknownAllow;

    /// Words separated by commas, or `none`.
    fn from_str(text: &str) -> Result<Self, UnknownAllow> {
        let mut allow = Self::default();
        if text != "none" {
            for word in text.split(',') {
                allow.add(word)?;
            }
        }
        Ok(allow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_and_go_as_they_were() {
        for text in ["none", "guests", "host,lan", "guests,host,lan"] {
            let allow: Allow = text.parse().unwrap();
            assert_eq!(allow.to_string(), text);
            assert_eq!(Allow::of(&allow.as_row()), allow);
        }
        assert_eq!(Allow::of("host,teleport"), "host".parse().unwrap());
        for text in ["", "all", "guests,", "GUESTS", "none,host"] {
            assert!(text.parse::<Allow>().is_err(), "{text:?}");
        }
    }
}
