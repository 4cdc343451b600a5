//! How an operation gets on, on standard error: a spinner or bar on a terminal, plain lines elsewhere.
//!
//! Quick things say nothing: the spinner appears after 300 ms, the first line after a second. Notices are said once, in
//! either form; that of a slow mode, which is so for every start, once a day.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use banger_api::types::Operation;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::error::printable;
use crate::stdio::say;
use crate::told;

/// When the spinner appears.
const SPINNER_AFTER: Duration = Duration::from_millis(300);

/// When the first line is printed.
const LINE_AFTER: Duration = Duration::from_secs(1);

/// How a notice begins that is about the host, and so the same whatever is done.
const OF_THE_HOST: &str = "slow";

/// Where the operations of a command are drawn, below each other.
#[derive(Debug, Clone)]
pub(crate) struct Screen {
    form: ScreenForm,
    /// Notices said already: what is so for ten machines is said once.
    said: Arc<Mutex<BTreeSet<String>>>,
}

#[derive(Debug, Clone)]
enum ScreenForm {
    Silent,
    Lines(Duration),
    Terminal(MultiProgress),
}

impl Screen {
    /// A screen for a command's own operations; `quiet` draws nothing at all.
    pub(crate) fn new(quiet: bool) -> Self {
        Self::of(match (quiet, crate::terminal::stderr_is_terminal()) {
            (true, _) => ScreenForm::Silent,
            (false, true) => ScreenForm::Terminal(MultiProgress::with_draw_target(target())),
            (false, false) => ScreenForm::Lines(LINE_AFTER),
        })
    }

    /// A screen for whoever wants to see every stage, however short.
    pub(crate) fn eager(quiet: bool) -> Self {
        let screen = Self::new(quiet);
        match screen.form {
            ScreenForm::Lines(_) => Self::of(ScreenForm::Lines(Duration::ZERO)),
            ScreenForm::Silent | ScreenForm::Terminal(_) => screen,
        }
    }

    fn of(form: ScreenForm) -> Self {
        Self {
            form,
            said: Arc::default(),
        }
    }

    /// Prints a line beside whatever is drawn.
    pub(crate) fn line(&self, text: &str) {
        match &self.form {
            ScreenForm::Terminal(bars) => bars.suspend(|| say!("{text}")),
            ScreenForm::Silent | ScreenForm::Lines(_) => say!("{text}"),
        }
    }

    /// Runs what prints by itself while nothing is drawn.
    pub(crate) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.form {
            ScreenForm::Terminal(bars) => bars.suspend(print),
            ScreenForm::Silent | ScreenForm::Lines(_) => print(),
        }
    }

    fn notice(&self, text: &str) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(self.form, ScreenForm::Silent)
            && said.insert(text.to_owned())
            && (!text.starts_with(OF_THE_HOST) || told::is_news(text))
        {
            self.line(&format!("note: {}", printable(text)));
        }
    }

    /// Draws nothing until what is returned is dropped: a question needs the place.
    pub(crate) fn pause(&self) -> Paused<'_> {
        if let ScreenForm::Terminal(bars) = &self.form {
            // A screen that cannot be cleared is overwritten.
            bars.clear().ok();
            bars.set_draw_target(ProgressDrawTarget::hidden());
        }
        Paused(self)
    }
}

/// A screen that draws nothing.
#[derive(Debug)]
pub(crate) struct Paused<'a>(&'a Screen);

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        if let ScreenForm::Terminal(bars) = &self.0.form {
            bars.set_draw_target(target());
        }
    }
}

fn target() -> ProgressDrawTarget {
    ProgressDrawTarget::stderr_with_hz(10)
}

/// Draws one operation. Dropping it clears the spinner.
#[derive(Debug)]
pub(crate) struct Progress {
    screen: Screen,
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
    /// Begins to draw.
    pub(crate) fn new(screen: &Screen) -> Self {
        Self {
            screen: screen.clone(),
            form: match screen.form {
                ScreenForm::Silent => Form::Silent,
                ScreenForm::Lines(_) => Form::Lines(None),
                ScreenForm::Terminal(_) => Form::Terminal(None),
            },
            began: Instant::now(),
            notices: 0,
            latest: None,
        }
    }

    /// When [`Progress::draw`] wants to be called although nothing changed.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        match &self.form {
            Form::Lines(None) => Some(self.began + self.line_after()),
            Form::Terminal(None) => Some(self.began + SPINNER_AFTER),
            Form::Silent | Form::Lines(Some(_)) | Form::Terminal(Some(_)) => None,
        }
    }

    fn line_after(&self) -> Duration {
        match self.screen.form {
            ScreenForm::Lines(after) => after,
            ScreenForm::Silent | ScreenForm::Terminal(_) => LINE_AFTER,
        }
    }

    /// Takes in a change.
    pub(crate) fn update(&mut self, operation: Operation) {
        for notice in operation.notices.iter().skip(self.notices) {
            self.screen.notice(notice);
        }
        self.notices = self.notices.max(operation.notices.len());
        self.latest = Some(operation);
        self.draw();
    }

    /// Draws what is due.
    pub(crate) fn draw(&mut self) {
        let elapsed = self.began.elapsed();
        let line_after = self.line_after();
        let Some(operation) = &self.latest else { return };
        match &mut self.form {
            Form::Silent => {}
            Form::Lines(printed) => {
                let stage = describe(operation);
                if elapsed >= line_after
                    && !operation.state.ended()
                    && printed.as_ref() != Some(&operation.stage)
                {
                    say!("{}: {stage}", printable(&operation.subject));
                    *printed = Some(operation.stage.clone());
                }
            }
            Form::Terminal(bar) => {
                if elapsed >= SPINNER_AFTER && !operation.state.ended() {
                    let bar = bar.get_or_insert_with(|| spinner(&self.screen, elapsed));
                    show(bar, operation);
                }
            }
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

fn spinner(screen: &Screen, elapsed: Duration) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()).with_elapsed(elapsed);
    let bar = match &screen.form {
        ScreenForm::Terminal(bars) => bars.add(bar),
        ScreenForm::Silent | ScreenForm::Lines(_) => bar,
    };
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
