//! The log: one line an event on standard error, as text or JSON. Whoever starts the daemon keeps it: the journal, or a
//! file that the command line names.

use std::io::IsTerminal;

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry, fmt};

use crate::config::{LogFormat, LogLevel};

/// Our own crates, which follow the configured level. Others say warnings and errors only: their details are not ours.
const OURS: [&str; 7] = [
    "bangerd",
    "banger_agent_api",
    "banger_api",
    "banger_engine",
    "banger_store",
    "banger_vmm",
    "hostkit",
];

/// Starts logging. Called once.
pub(crate) fn start(level: LogLevel, format: LogFormat) {
    let level = match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    };
    let others = LevelFilter::WARN.min(level.into());
    let filter = Targets::new()
        .with_default(others)
        .with_targets(OURS.map(|target| (target, level)));
    let layer = match format {
        LogFormat::Text => fmt::layer()
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr)
            .boxed(),
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(std::io::stderr)
            .boxed(),
    };
    let subscriber = Registry::default().with(layer.with_filter(filter));
    // Fails only where a subscriber is set already, which main does not do.
    tracing::subscriber::set_global_default(subscriber).unwrap_or_else(|e| eprintln!("bangerd: {e}"));
    // A release build aborts on a panic; the log must say where.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message");
        tracing::error!(place, message, "panic");
    }));
}
