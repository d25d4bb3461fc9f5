//! How the daemon's log is written: each line with its time, as text or as JSON.

#![expect(clippy::disallowed_methods, reason = "the time of day that a log line says")]

use std::fmt;
use std::time::SystemTime;

use clap::ValueEnum;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::text::printable;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

impl LogFormat {
    /// A line of this program's own words, its end included.
    pub(super) fn line(self, level: Level, message: impl fmt::Display) -> Vec<u8> {
        let line = match self {
            Self::Text => format!("{} lockkeeper: {}\n", now(), printable(message)),
            Self::Json => {
                let mut fields = Fields::new(level, env!("CARGO_PKG_NAME"));
                fields.insert("message", message.to_string());
                format!("{fields}\n")
            }
        };
        line.into_bytes()
    }
}

/// RFC 3339, UTC, with milliseconds.
fn now() -> impl fmt::Display {
    humantime::format_rfc3339_millis(SystemTime::now())
}

/// The time of a line of text.
pub(super) struct Now;

impl FormatTime for Now {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{}", now())
    }
}

/// One object a line: `timestamp`, `level`, `target`, and the fields of the event,
/// with the text `message`.
pub(super) struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let about = event.metadata();
        let mut fields = Fields::new(*about.level(), about.target());
        event.record(&mut fields);
        writeln!(writer, "{fields}")
    }
}

/// What one object has.
struct Fields(Map<String, Value>);

impl Fields {
    fn new(level: Level, target: &str) -> Self {
        let mut fields = Self(Map::new());
        fields.insert("timestamp", now().to_string());
        fields.insert("level", level.as_str());
        fields.insert("target", target);
        fields
    }

    fn insert(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }
}

impl fmt::Display for Fields {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&serde_json::to_string(&self.0).map_err(|_| fmt::Error)?)
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field.name(), format!("{value:?}"));
    }
}
