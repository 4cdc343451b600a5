//! Questions to whoever sits at the terminal: on standard error, answered on standard input by a line.
//!
//! An open question can be dropped at any time: then nothing of the input is taken, so that a session that follows
//! gets all of it.

use std::io::{PipeReader, PipeWriter};
use std::os::fd::AsFd as _;

use rustix::event::{PollFd, PollFlags, poll};

use crate::error::CliError;
use crate::{stdio, terminal};

/// Longest line of an answer that is looked at, in bytes.
const LONGEST: usize = 256;

/// One of the answers to a question: its letter or its word.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice {
    letter: char,
    word: &'static str,
}

impl Choice {
    pub(crate) fn new(letter: char, word: &'static str) -> Self {
        Self { letter, word }
    }
}

/// Asks until the answer is one of the choices. `None`: nothing but Return, or the input's end.
pub(crate) async fn choose(question: &str, choices: &[Choice]) -> Option<char> {
    loop {
        let open = Open::new(question);
        let line = open.line().await;
        let answer = line.as_deref().map_or("", str::trim).to_lowercase();
        if answer.is_empty() {
            return None;
        }
        if let Some(letter) = parse(&answer, choices) {
            return Some(letter);
        }
    }
}

fn parse(answer: &str, choices: &[Choice]) -> Option<char> {
    let yes_or_no = match answer {
        "yes" => Some('y'),
        "no" => Some('n'),
        _ => None,
    };
    choices
        .iter()
        .find(|choice| {
            answer.chars().eq([choice.letter]) || answer == choice.word || yes_or_no == Some(choice.letter)
        })
        .map(|choice| choice.letter)
}

/// Asks whether to do what cannot be undone. Without a terminal there is nobody to ask: `--yes` is needed.
pub(crate) async fn confirm(question: &str, yes: bool) -> Result<(), CliError> {
    if yes {
        return Ok(());
    }
    if !terminal::stdin_is_terminal() || !terminal::stderr_is_terminal() {
        return Err(
            CliError::usage(format!("{question}? nobody is here to answer")).hint("confirm with --yes")
        );
    }
    let choices = [Choice::new('y', "yes"), Choice::new('n', "no")];
    match choose(&format!("{question}? [y/N] "), &choices).await {
        Some('y') => Ok(()),
        Some(_) | None => Err(CliError::interrupted("nothing was done")),
    }
}

/// A question that has been asked. Dropping it closes its line.
struct Open {
    /// Closing it tells the reading thread that nobody waits any more.
    closed: Option<PipeWriter>,
    wake: Option<PipeReader>,
    answered: bool,
}

impl Open {
    fn new(question: &str) -> Self {
        // Over what the terminal itself has echoed of Ctrl-C.
        stdio::say_part(&format!("\r\x1b[K{question}"));
        let (wake, closed) =
            std::io::pipe().map_or((None, None), |(wake, closed)| (Some(wake), Some(closed)));
        Self {
            closed,
            wake,
            answered: false,
        }
    }

    /// The answer; `None` where the input has ended.
    async fn line(mut self) -> Option<String> {
        // Without a pipe there is no file descriptor left, and the answer is the one that Return gives.
        let wake = self.wake.take()?;
        let line = tokio::task::spawn_blocking(move || read(&wake))
            .await
            .ok()
            .flatten();
        self.answered = line.is_some();
        line
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.closed = None;
        if !self.answered {
            stdio::say_part("\n");
        }
    }
}

/// Reads a line of a terminal, which gives lines whole (termios(3), canonical mode).
fn read(wake: &PipeReader) -> Option<String> {
    let stdin = rustix::stdio::stdin();
    loop {
        let mut ready = [
            PollFd::from_borrowed_fd(stdin, PollFlags::IN),
            PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) if !ready[1].revents().is_empty() => return None,
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    let mut buffer = [0; LONGEST];
    match rustix::io::read(stdin, &mut buffer) {
        Ok(0) | Err(_) => None,
        Ok(length) => Some(String::from_utf8_lossy(&buffer[..length]).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let choices = [
            Choice::new('y', "cancel"),
            Choice::new('n', "go on"),
            Choice::new('d', "detach"),
        ];
        for (answer, letter) in [
            ("y", Some('y')),
            ("yes", Some('y')),
            ("cancel", Some('y')),
            ("no", Some('n')),
            ("d", Some('d')),
            ("detach", Some('d')),
            ("x", None),
            ("yn", None),
        ] {
            assert_eq!(parse(answer, &choices), letter, "{answer}");
        }
    }
}
