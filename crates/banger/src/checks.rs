//! Checks with their outcomes, as `doctor`, `vm health` and `vm start --dry-run` print them.

use std::fmt::Write as _;

use banger_api::types::{Check, CheckState};

use crate::error::printable;

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
        let _ = writeln!(
            text,
            "  {mark} {word:<7}  {name:<width$}  {}",
            printable(&check.reason)
        );
        if let Some(fix) = &check.fix {
            let _ = writeln!(text, "    {:<7}  {:<width$}  fix: {}", "", "", printable(fix));
        }
    }
    text
}

/// Checks of a machine, for tests of how they are printed.
#[cfg(test)]
pub(crate) fn examples() -> Vec<Check> {
    let check = |group: &str, name: &str, state, reason: &str, fix: Option<&str>| Check {
        group: group.into(),
        name: name.into(),
        state,
        reason: reason.into(),
        fix: fix.map(Into::into),
    };
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
    fn grouped() {
        let text = by_group(&examples());
        assert_eq!(text.lines().filter(|line| !line.starts_with(' ')).count(), 2);
        assert!(
            text.starts_with("system disk\n  ✓ ok       image  debian"),
            "{text}"
        );
    }
}
