//! This program once more, as one of several processes.

use std::io::{Read, Write};
use std::ops::{Deref, DerefMut};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

const ROLE: &str = "LOCKKEEPER_BENCH_ROLE";

/// What this process was started for, if not to be the bench.
pub(crate) fn mine() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// Killed when dropped.
pub(crate) struct Player(Child);

pub(crate) fn start(role: &str) -> Player {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.env(ROLE, role).stdin(Stdio::piped()).stdout(Stdio::piped());
    Player(command.spawn().expect("a process"))
}

impl Player {
    pub(crate) fn ask_to_end(&mut self) {
        drop(self.0.stdin.take());
    }
}

impl Deref for Player {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Player {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Until the bench closes the input. What was measured is told at the end alone.
pub(crate) async fn until_asked_to_end<F>(mut once: F)
where
    F: AsyncFnMut() -> Option<(u64, u64)>,
{
    let mut measured = Vec::new();
    let mut asked = asked_to_end();
    loop {
        tokio::select! {
            biased;
            _ = &mut asked => break,
            found = once() => measured.extend(found),
        }
    }
    let lines: String = measured.iter().map(|(from, to)| format!("{from} {to}\n")).collect();
    say(&lines);
}

/// When the bench closes the input.
pub(crate) fn asked_to_end() -> tokio::sync::oneshot::Receiver<()> {
    let (send, receive) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = send.send(());
    });
    receive
}

pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).expect("the bench listens");
}

/// Nanoseconds by a clock that all processes share.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let since = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.try_into().expect("less"));
    since.as_nanos() as u64
}
