//! Ids: ten characters of `a-z0-9`, drawn at random (51 bits), for machines, images and operations.

/// Characters of an id.
const LENGTH: usize = 10;
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// The prefix of every host object's name, by which an orphan is known.
pub(crate) const PREFIX: &str = "bgr";

/// A new id. Uniqueness is the store's to enforce; a clash is one in 10^15.
pub(crate) fn new() -> String {
    let mut id = String::with_capacity(LENGTH);
    while id.len() < LENGTH {
        let mut bytes = [0_u8; 32];
        fill(&mut bytes);
        // 252 is the largest multiple of 36 below 256: values above it would favour the first letters.
        let usable = bytes.iter().filter(|b| **b < 252).take(LENGTH - id.len());
        id.extend(usable.map(|b| char::from(ALPHABET[usize::from(b % 36)])));
    }
    id
}

/// `bgr` and the id: the name of a machine's host objects.
pub(crate) fn token(id: &str) -> String {
    format!("{PREFIX}{id}")
}

/// The id within a token, if it is one.
pub(crate) fn of_token(token: &str) -> Option<&str> {
    token
        .strip_prefix(PREFIX)
        .filter(|id| id.len() == LENGTH && id.bytes().all(|b| ALPHABET.contains(&b)))
}

/// Random bytes from the kernel (getrandom(2)), which cannot fail for so few once the host has booted.
pub(crate) fn fill(bytes: &mut [u8]) {
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("the kernel gives no random bytes: {e}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_distinct_and_survive_their_token() {
        let ids: std::collections::HashSet<_> = (0..10_000).map(|_| new()).collect();
        assert_eq!(ids.len(), 10_000);
        for id in ids {
            assert_eq!(of_token(&token(&id)), Some(id.as_str()));
        }
        assert_eq!(of_token("bgr"), None);
        assert_eq!(of_token("bgrABCDEFGHIJ"), None);
    }
}
