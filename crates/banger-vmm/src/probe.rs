//! Asking a program for its version.

use std::time::Duration;

use hostkit::exec::Tool;

use crate::error::ProbeError;

/// How long a program may take to say its version; a cold disk and a loaded host included.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `tool --version` and takes what follows `marker` on the first line up to a space, a leading `v` left out.
pub(crate) async fn version(program: &'static str, tool: &Tool, marker: &str) -> Result<String, ProbeError> {
    let output = tool
        .command()
        .arg("--version")
        .timeout(PATIENCE)
        .run()
        .await
        .map_err(|source| ProbeError::Run { program, source })?;
    let text = output.text();
    parse(&text, marker).ok_or_else(|| ProbeError::Version {
        path: tool.path().to_owned(),
        output: text.chars().take(100).collect(),
    })
}

fn parse(output: &str, marker: &str) -> Option<String> {
    let (_, rest) = output.lines().next()?.split_once(marker)?;
    let version = rest.split_whitespace().next()?.trim_start_matches('v');
    version
        .starts_with(|first: char| first.is_ascii_digit())
        .then(|| version.to_owned())
}

/// The first two numbers of a version.
pub(crate) fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_the_programs_say_them() {
        let qemu = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) 2003-2022";
        assert_eq!(parse(qemu, "version ").unwrap(), "7.2.22");
        assert_eq!(
            parse("vhost-device-vsock 0.3.0", "vhost-device-vsock ").unwrap(),
            "0.3.0"
        );
        assert_eq!(parse("Firecracker v1.12.1\n", "Firecracker ").unwrap(), "1.12.1");
        assert_eq!(
            parse("Firecracker v1.13.0-dev\n", "Firecracker ").unwrap(),
            "1.13.0-dev"
        );
        assert_eq!(parse("usage: version of something", "version "), None);
        assert_eq!(parse("", "version "), None);
        assert_eq!(major_minor("7.2.22"), Some((7, 2)));
        assert_eq!(major_minor("10.0"), Some((10, 0)));
        assert_eq!(major_minor("next"), None);
    }
}
