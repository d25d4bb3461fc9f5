//! The log of the daemon, on standard error, which may be a pipe without a reader.
//!
//! Lines are put into a queue of bounded length, and one thread writes them. A
//! line that finds no room is dropped and counted, and the count is a line once
//! the log flows again. No request waits for the log, and its reader cannot stop the
//! daemon.

use std::collections::VecDeque;
use std::fmt::Display;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, MutexGuard};
use std::time::Duration;

use tracing::Level;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::log;
use super::log_line::{Json, LogFormat, Now};

use crate::sys::mutex::Mutex;

/// What waits to be written, in bytes: some 10 000 lines. More would only be old.
const QUEUE_BYTES: usize = 1024 * 1024;

/// How long the end of the daemon waits for its last lines to be read.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The log. Clones are the same.
#[derive(Clone)]
pub(super) struct Log(Arc<Shared>);

struct Shared {
    format: LogFormat,
    queue: Mutex<Queue>,
    changed: Condvar,
    dropped: Arc<AtomicU64>,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    dropped: u64,
    /// The thread has a line that is not written yet.
    is_writing: bool,
}

impl Log {
    /// Starts the thread, which writes to `out`.
    pub(super) fn start(out: impl Write + Send + 'static, format: LogFormat) -> io::Result<Self> {
        let (queue, changed, dropped) = (Mutex::default(), Condvar::new(), Arc::default());
        let log = Self(Arc::new(Shared { format, queue, changed, dropped }));
        let shared = Arc::clone(&log.0);
        let write = move || shared.write_all(out);
        std::thread::Builder::new().name("lockkeeper-log".to_owned()).spawn(write)?;
        Ok(log)
    }

    /// Have all that this process logs come here; `usual` is the level where no variable
    /// says otherwise.
    pub(super) fn listen(&self, usual: LevelFilter) {
        let wanted = log::wanted(usual, |message| self.tell(Level::WARN, message));
        let builder = log::builder(self.clone());
        match self.0.format {
            LogFormat::Text => builder.with_timer(Now).finish().with(wanted).init(),
            LogFormat::Json => builder.event_format(Json).finish().with(wanted).init(),
        }
    }

    /// A line as of the other commands, whatever is to be logged else.
    pub(super) fn tell(&self, level: Level, message: impl Display) {
        self.0.push(self.0.format.line(level, message));
    }

    /// How many lines were dropped in all.
    pub(super) fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.0.dropped)
    }

    /// Waits until all is written, but not long for a reader that does not read.
    pub(super) fn flush(&self) {
        let is_unwritten = |queue: &mut Queue| queue.is_writing || !queue.lines.is_empty();
        let flushed = self.0.changed.wait_timeout_while(self.0.queue(), LAST_WORDS, is_unwritten);
        // What is left is lost, and there is no place left to say so.
        drop(flushed);
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    fn push(&self, line: Vec<u8>) {
        let mut queue = self.queue();
        if queue.bytes + line.len() > QUEUE_BYTES {
            queue.dropped += 1;
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line);
        drop(queue);
        self.changed.notify_all();
    }

    fn write_all(&self, mut out: impl Write) {
        loop {
            let line = self.next();
            // A reader that is gone for good is as one that does not read.
            let _ = out.write_all(&line);
            self.queue().is_writing = false;
            self.changed.notify_all();
        }
    }

    /// The next line, and first how many were dropped before it.
    fn next(&self) -> Vec<u8> {
        let has_none = |queue: &mut Queue| queue.lines.is_empty() && queue.dropped == 0;
        let waited = self.changed.wait_while(self.queue(), has_none);
        let mut queue = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        queue.is_writing = true;
        if let Some(line) = queue.lines.pop_front() {
            queue.bytes -= line.len();
            return line;
        }
        let dropped = std::mem::take(&mut queue.dropped);
        let what = if dropped == 1 { "line" } else { "lines" };
        let why = "standard error was not read fast enough";
        self.format
            .line(Level::WARN, format_args!("{dropped} {what} of the log dropped here: {why}"))
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { log: self, bytes: Vec::new() }
    }
}

/// A line that is being made; queued when dropped.
pub(super) struct Line<'a> {
    log: &'a Log,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.log.0.push(std::mem::take(&mut self.bytes));
        }
    }
}
