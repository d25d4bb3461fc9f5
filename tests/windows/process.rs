//! Other processes, directories, patience.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// What must happen, happens within this time, even on a machine that is busy.
pub(crate) const VERY_LONG: Duration = Duration::from_secs(60);

/// A period that no test lives to see the end of.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// What must not happen would have happened within this time.
pub(crate) const QUIET: Duration = Duration::from_millis(400);

const ROLE: &str = "LOCKKEEPER_TEST_ROLE";
const PATH: &str = "LOCKKEEPER_TEST_PATH";

/// Set by `tests/wine/run.sh`.
const WINE: &str = "LOCKKEEPER_WINE";

/// The names in a directory, sorted.
pub(crate) fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("a directory to list");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// By a runtime of its own, on this thread. What never ends fails.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(2 * VERY_LONG, future).await.expect("an end") })
}

/// The part this process was started to play, and the path it was given.
pub(crate) fn role() -> Option<(String, PathBuf)> {
    let role = std::env::var(ROLE).ok()?;
    Some((role, PathBuf::from(std::env::var_os(PATH)?)))
}

/// Tell the process that started this one.
pub(crate) fn tell(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "@{line}").and_then(|()| out.flush()).expect("a listener");
}

/// Wait for a line from the process that started this one; `None` if it is gone.
pub(crate) fn told() -> Option<String> {
    let mut line = String::new();
    let length = std::io::stdin().lock().read_line(&mut line).expect("standard input");
    (length > 0).then(|| line.trim_end().to_owned())
}

/// Another process of this program; killed when dropped.
pub(crate) struct Process {
    child: Child,
    input: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    /// A word in its command line that no other process has.
    word: String,
}

impl Process {
    /// Start the player of a role, which the test `roles` dispatches.
    pub(crate) fn play(role: &str, path: &Path) -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let word = format!("no-test-{}-{number}-", std::process::id());
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["roles", "--exact", "--nocapture", "--test-threads=1", "--skip", &word]);
        command.env(ROLE, role).env(PATH, path);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = child.stdout.take().expect("its output");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || forward(output, &sender));
        Self { input: child.stdin.take(), child, lines, word }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Wait for its next line.
    #[track_caller]
    pub(crate) fn next(&self) -> String {
        self.lines.recv_timeout(VERY_LONG).expect("a line from the other process")
    }

    /// Wait for its next line, which must be this one.
    #[track_caller]
    pub(crate) fn expect(&self, line: &str) {
        assert_eq!(self.next(), line);
    }

    /// It says nothing for a while.
    #[track_caller]
    pub(crate) fn expect_quiet(&self) {
        let heard = self.lines.recv_timeout(QUIET);
        assert_eq!(heard, Err(mpsc::RecvTimeoutError::Timeout), "it should have stayed quiet");
    }

    /// Send it a line.
    pub(crate) fn tell(&mut self, line: &str) {
        let input = self.input.as_mut().expect("its input is closed");
        writeln!(input, "{line}").and_then(|()| input.flush()).expect("it listens");
    }

    /// `TerminateProcess`, and wait until it is gone.
    pub(crate) fn terminate(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// Kill it as the process that it is of the system below, where there is one: without
    /// wine's knowledge. Whether there is.
    pub(crate) fn kill_below(&mut self) -> bool {
        if std::env::var_os(WINE).is_none() {
            println!("skipped: this is no wine");
            return false;
        }
        let script = format!("kill -9 $(pgrep -f -- '{}')", self.word);
        let mut command = Command::new("cmd");
        command.args(["/c", "start", "/unix", "/bin/sh", "-c", &script]);
        command.stdout(Stdio::null()).status().expect("a shell of the system below");
        self.child.wait().expect("it ends");
        true
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn forward(output: ChildStdout, to: &mpsc::Sender<String>) {
    for line in BufReader::new(output).lines() {
        let Ok(line) = line else { return };
        // What the test framework writes has no end of line before it.
        if let Some((_, ours)) = line.split_once('@') {
            if to.send(ours.to_owned()).is_err() {
                return;
            }
        }
    }
}
