//! How an operation gets on, on standard error: a spinner or bar on a terminal, plain lines elsewhere.
//!
//! Quick things say nothing: the spinner appears after 300 ms, the first line after a second. Notices (a slow mode and
//! its reason) are said once, in either form.

use std::time::Duration;

use banger_api::types::Operation;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::error::printable;
use crate::stdio::say;

/// When the spinner appears.
const SPINNER_AFTER: Duration = Duration::from_millis(300);

/// When the first line is printed.
const LINE_AFTER: Duration = Duration::from_secs(1);

/// Draws one operation. Dropping it clears the spinner.
#[derive(Debug)]
pub(crate) struct Progress {
    form: Form,
    began: Instant,
    notices: usize,
    latest: Option<Operation>,
}

#[derive(Debug)]
enum Form {
    Silent,
    /// The stage last printed.
    Lines(Option<String>),
    Terminal(Option<ProgressBar>),
}

impl Progress {
    /// Begins to draw; `quiet` draws nothing at all.
    pub(crate) fn new(quiet: bool) -> Self {
        let form = match (quiet, crate::terminal::stderr_is_terminal()) {
            (true, _) => Form::Silent,
            (false, true) => Form::Terminal(None),
            (false, false) => Form::Lines(None),
        };
        Self {
            form,
            began: Instant::now(),
            notices: 0,
            latest: None,
        }
    }

    /// When [`Progress::draw`] wants to be called although nothing changed.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        match &self.form {
            Form::Lines(None) => Some(self.began + LINE_AFTER),
            Form::Terminal(None) => Some(self.began + SPINNER_AFTER),
            Form::Silent | Form::Lines(Some(_)) | Form::Terminal(Some(_)) => None,
        }
    }

    /// Takes in a change.
    pub(crate) fn update(&mut self, operation: Operation) {
        if !matches!(self.form, Form::Silent) {
            for notice in operation.notices.iter().skip(self.notices) {
                self.line(&format!("note: {}", printable(notice)));
            }
        }
        self.notices = self.notices.max(operation.notices.len());
        self.latest = Some(operation);
        self.draw();
    }

    /// Draws what is due.
    pub(crate) fn draw(&mut self) {
        let elapsed = self.began.elapsed();
        let Some(operation) = &self.latest else { return };
        match &mut self.form {
            Form::Silent => {}
            Form::Lines(printed) => {
                let stage = describe(operation);
                if elapsed >= LINE_AFTER
                    && !operation.state.ended()
                    && printed.as_ref() != Some(&operation.stage)
                {
                    say!("{}: {stage}", printable(&operation.subject));
                    *printed = Some(operation.stage.clone());
                }
            }
            Form::Terminal(bar) => {
                if elapsed >= SPINNER_AFTER && !operation.state.ended() {
                    let bar = bar.get_or_insert_with(|| spinner(elapsed));
                    show(bar, operation);
                }
            }
        }
    }

    /// Prints a line beside whatever is drawn.
    pub(crate) fn line(&self, text: &str) {
        match &self.form {
            Form::Terminal(Some(bar)) => bar.suspend(|| say!("{text}")),
            Form::Silent | Form::Lines(_) | Form::Terminal(None) => say!("{text}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Form::Terminal(Some(bar)) = &self.form {
            bar.finish_and_clear();
        }
    }
}

/// `booting`, or `downloading: linux-image-6.1`.
fn describe(operation: &Operation) -> String {
    match &operation.message {
        Some(message) => format!("{}: {}", printable(&operation.stage), printable(message)),
        None => printable(&operation.stage),
    }
}

fn spinner(elapsed: Duration) -> ProgressBar {
    let bar =
        ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10)).with_elapsed(elapsed);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// The templates are constants, checked by a test; a broken one would leave indicatif's default.
const SPINNER: &str = "{spinner} {prefix}: {wide_msg} {elapsed}";
const BAR: &str = "{spinner} {prefix}: {msg} [{bar:24}] {percent}% {elapsed}";

fn show(bar: &ProgressBar, operation: &Operation) {
    let style = |template| {
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
    };
    match (operation.done, operation.total) {
        (Some(done), Some(total)) if total > 0 => {
            bar.set_style(style(BAR));
            bar.set_length(total);
            bar.set_position(done.min(total));
        }
        (_, _) => bar.set_style(style(SPINNER)),
    }
    bar.set_prefix(printable(&operation.subject));
    bar.set_message(describe(operation));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_sound() {
        for template in [SPINNER, BAR] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
