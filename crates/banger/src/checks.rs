//! Checks with their outcomes, as `doctor`, `vm health` and `vm start --dry-run` print them.

use std::fmt::Write as _;

use banger_api::types::{Check, CheckState};

use crate::error::printable;

/// Columns of a line. What is longer, such as a list of places that were looked in, goes on below itself.
const COLUMNS: usize = 100;

/// A heading, then its checks, each with its fix below it.
pub(crate) fn section(heading: &str, checks: &[Check]) -> String {
    let checks: Vec<&Check> = checks.iter().collect();
    section_of(heading, &checks, width(&checks))
}

/// Checks below the names of their groups, which come in the order in which they first appear.
pub(crate) fn by_group(checks: &[Check]) -> String {
    let mut groups: Vec<&str> = Vec::new();
    for check in checks {
        if !groups.contains(&check.group.as_str()) {
            groups.push(&check.group);
        }
    }
    let width = width(&checks.iter().collect::<Vec<_>>());
    groups
        .into_iter()
        .map(|group| {
            let members: Vec<&Check> = checks.iter().filter(|check| check.group == group).collect();
            section_of(group, &members, width)
        })
        .collect()
}

fn width(checks: &[&Check]) -> usize {
    checks
        .iter()
        .map(|check| check.name.chars().count())
        .max()
        .unwrap_or(0)
}

fn section_of(heading: &str, checks: &[&Check], width: usize) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(text, "{}", printable(heading));
    for check in checks {
        let (mark, word) = match check.state {
            CheckState::Ok => ('✓', "ok"),
            CheckState::Warning => ('!', "warning"),
            CheckState::Failure => ('✗', "failure"),
        };
        let name = printable(&check.name);
        let indent = 2 + 2 + 7 + 2 + width + 2;
        let reason = wrap(&printable(&check.reason), indent);
        let _ = writeln!(text, "  {mark} {word:<7}  {name:<width$}  {reason}");
        if let Some(fix) = &check.fix {
            let fix = wrap(&format!("fix: {}", printable(fix)), indent);
            let _ = writeln!(text, "{:<indent$}{fix}", "");
        }
    }
    text
}

/// Breaks a line between words, so that it ends before [`COLUMNS`]; what follows is indented. A word that is too long
/// stays whole: it is a path, which somebody will copy.
fn wrap(line: &str, indent: usize) -> String {
    let room = COLUMNS.saturating_sub(indent).max(20);
    let mut text = String::with_capacity(line.len());
    let mut used = 0;
    for word in line.split(' ') {
        let length = word.chars().count();
        if used == 0 {
            used = length;
        } else if used + 1 + length > room {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', indent));
            used = length;
        } else {
            text.push(' ');
            used += 1 + length;
        }
        text.push_str(word);
    }
    text
}

/// A check, for tests of how they are printed.
#[cfg(test)]
pub(crate) fn example(group: &str, name: &str, state: CheckState, reason: &str, fix: Option<&str>) -> Check {
    Check {
        group: group.into(),
        name: name.into(),
        state,
        reason: reason.into(),
        fix: fix.map(Into::into),
    }
}

/// Checks of a machine, likewise.
#[cfg(test)]
pub(crate) fn examples() -> Vec<Check> {
    use example as check;
    vec![
        check("system disk", "image", CheckState::Ok, "debian, 370MiB", None),
        check(
            "system disk",
            "space",
            CheckState::Warning,
            "2.1GiB left of 40GiB",
            Some("free space in /var/lib/banger"),
        ),
        check(
            "vmm",
            "qemu",
            CheckState::Failure,
            "qemu-system-x86_64 was not found",
            Some("apt install qemu-system-x86"),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_reasons_go_on_below_themselves() {
        let places: Vec<String> = (0..12).map(|n| format!("/some/where/{n}")).collect();
        let reason = format!("firecracker was not found in {}", places.join(", "));
        let fix = Some("put it on PATH");
        let check = example("vmm", "firecracker", CheckState::Warning, &reason, fix);
        let text = section("vmm", &[check]);
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert!(
            words(&text).ends_with(&words("/some/where/11 fix: put it on PATH")),
            "{text}"
        );
        assert_eq!(wrap(&"x".repeat(300), 30), "x".repeat(300));
        assert_eq!(wrap("", 30), "");
    }

    #[test]
    fn grouped() {
        let text = by_group(&examples());
        assert_eq!(text.lines().filter(|line| !line.starts_with(' ')).count(), 2);
        assert!(
            text.starts_with("system disk\n  ✓ ok       image  debian"),
            "{text}"
        );
    }
}
