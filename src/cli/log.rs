//! What is logged on standard error, and what says how much.

use std::fmt;
use std::io::IsTerminal;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{DefaultFields, Format};
use tracing_subscriber::fmt::{MakeWriter, SubscriberBuilder};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::text::tell;

/// `usual` is the level where no variable says otherwise.
pub(super) fn to_stderr(usual: LevelFilter) {
    let wanted = wanted(usual, |message| tell(message));
    builder(std::io::stderr).without_time().finish().with(wanted).init();
}

/// Writes to standard error, by this writer.
pub(super) fn builder<W>(writer: W) -> SubscriberBuilder<DefaultFields, Format, LevelFilter, W>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(writer)
        .with_ansi(std::io::stderr().is_terminal())
        // Saying that standard error is closed, on standard error, panics.
        .log_internal_errors(false)
}

/// What is logged. `tell` writes a line of what is wrong with the environment.
pub(super) fn wanted(usual: LevelFilter, tell: impl Fn(fmt::Arguments<'_>)) -> Targets {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let text = |value: std::ffi::OsString| value.to_string_lossy().into_owned();
    let all = |level| Targets::new().with_default(level);
    if let Some(level) = variable("LOCKKEEPER_LOG").map(text) {
        return all(level.parse().unwrap_or_else(|_| {
            tell(format_args!("LOCKKEEPER_LOG: {level:?} is unknown, {usual} is used"));
            usual
        }));
    }
    variable("RUST_LOG").and_then(|value| directives(&text(value), usual)).unwrap_or(all(usual))
}

/// `RUST_LOG` is often meant for CMD. So what it says of other programs takes nothing
/// from our warnings, and what cannot be read here is no fault: spans can be chosen
/// there as well, which would take a crate for regular expressions.
fn directives(text: &str, usual: LevelFilter) -> Option<Targets> {
    let read: Targets = text.parse().ok()?;
    let others = read.default_level().unwrap_or(usual);
    Some(read.with_default(others))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn rust_log_chooses_for_us_and_leaves_our_warnings_when_it_means_others() {
        let enables = |text: &str, level: Level| {
            directives(text, LevelFilter::WARN).unwrap().would_enable("lockkeeper::lock", &level)
        };
        for text in ["lockkeeper=debug", "debug", "info,lockkeeper=debug", "hyper=off,debug"] {
            assert!(enables(text, Level::DEBUG) && !enables(text, Level::TRACE), "{text}");
        }
        for text in ["my_program=trace", "my_program", "my_program=off"] {
            assert!(enables(text, Level::WARN) && !enables(text, Level::INFO), "{text}");
        }
        assert!(!enables("off", Level::ERROR) && !enables("lockkeeper=off", Level::ERROR));
        assert!(directives("my_program[span]=nonsense", LevelFilter::WARN).is_none());
    }
}
