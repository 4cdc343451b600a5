//! The version handshake: may this daemon and that agent talk?
//!
//! Each side states the protocol version it speaks and the oldest one it still understands. A guest which was booted
//! by the previous release goes on running under a newer daemon, so one release of skew has to work both ways.

/// The protocol version this release speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// The oldest protocol version this release still understands.
pub const MIN_PROTOCOL_VERSION: u32 = 1;

/// The two ranges have no version in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "agree on a protocol version: the guest's agent speaks {their_min} to {theirs}, this side {our_min} to {ours}"
)]
pub struct Incompatible {
    /// The newest version this side speaks.
    pub ours: u32,
    /// The oldest version this side understands.
    pub our_min: u32,
    /// The newest version the peer speaks.
    pub theirs: u32,
    /// The oldest version the peer understands.
    pub their_min: u32,
}

/// The version to use with a peer that speaks `their_min` to `theirs`: the newest one both understand.
///
/// # Errors
///
/// [`Incompatible`] when there is none, or when the peer's range makes no sense (zero, or upside down).
pub fn negotiate(theirs: u32, their_min: u32) -> Result<u32, Incompatible> {
    common(PROTOCOL_VERSION, MIN_PROTOCOL_VERSION, theirs, their_min)
}

fn common(ours: u32, our_min: u32, theirs: u32, their_min: u32) -> Result<u32, Incompatible> {
    let newest = ours.min(theirs);
    let sane = their_min > 0 && their_min <= theirs;
    if sane && newest >= our_min && newest >= their_min {
        Ok(newest)
    } else {
        Err(Incompatible {
            ours,
            our_min,
            theirs,
            their_min,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_release_of_skew_works_both_ways() {
        // A newer daemon (3, understands 2) with an older agent (2, understands 1), and the reverse.
        assert_eq!(common(3, 2, 2, 1), Ok(2));
        assert_eq!(common(2, 1, 3, 2), Ok(2));
        assert_eq!(common(2, 1, 2, 1), Ok(2));
    }

    #[test]
    fn two_releases_do_not() {
        assert!(common(4, 3, 2, 1).is_err());
        assert!(common(2, 1, 4, 3).is_err());
    }

    #[test]
    fn nonsense_from_the_guest_is_refused() {
        assert!(common(1, 1, 0, 0).is_err());
        assert!(common(1, 1, 1, 0).is_err());
        assert!(common(1, 1, 1, 2).is_err());
        assert_eq!(common(1, 1, u32::MAX, 1), Ok(1));
    }

    #[test]
    fn this_release_talks_to_itself() {
        assert_eq!(
            negotiate(PROTOCOL_VERSION, MIN_PROTOCOL_VERSION),
            Ok(PROTOCOL_VERSION)
        );
    }
}
