//! Text of strangers, made fit for errors and logs.

/// Without control characters, in one line, cut after `limit` characters.
pub(crate) fn tame(text: &str, limit: usize) -> String {
    let mut tamed: String = text
        .chars()
        .map(|c| {
            if c.is_control() || is_bidirectional(c) {
                ' '
            } else {
                c
            }
        })
        .take(limit)
        .collect();
    if text.chars().nth(limit).is_some() {
        tamed.push('…');
    }
    tamed.trim().to_owned()
}

/// Marks that change the order in which a terminal shows what follows (Unicode Standard Annex #9).
fn is_bidirectional(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_would_steer_a_terminal_is_gone() {
        assert_eq!(super::tame("a\x1b[31m\nb\u{202e}c", 80), "a [31m b c");
        assert_eq!(super::tame("äöü", 2), "äö…");
    }
}
