//! What is said while a lock is waited for.

use std::convert::Infallible;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{sleep, timeout};

use super::text::{printable, tell};
use crate::lock::any_lock::AnyLock;
use crate::{Holder, Lock};

/// Shorter waits are not spoken of.
const UNTOLD: Duration = Duration::from_millis(100);

/// Between two looks at the holder.
const LOOK: Duration = Duration::from_secs(1);

/// Between two steps of the spinner.
const STEP: Duration = Duration::from_millis(100);

/// Say on standard error what `lock` is waited for, until the future is dropped: on a
/// terminal in a line that moves and goes away with it, else once, and once more where the
/// holder is known later.
pub(super) async fn tell_of_waiting(lock: &AnyLock) -> Infallible {
    sleep(UNTOLD).await;
    let mut seen = Seen::of(lock).await;
    if !matches!(seen, Seen::Holder(_)) {
        sleep(LOOK).await;
        seen = Seen::of(lock).await;
    }
    if std::io::stderr().is_terminal() {
        return keep_line(lock, seen).await;
    }
    tell(waiting_for(lock, &seen));
    while !matches!(seen, Seen::Holder(_)) {
        sleep(LOOK).await;
        seen = Seen::of(lock).await;
        if let Seen::Holder(_) = seen {
            tell(waiting_for(lock, &seen));
        }
    }
    std::future::pending().await
}

async fn keep_line(lock: &AnyLock, mut seen: Seen) -> Infallible {
    let line = Line::new();
    loop {
        line.0.set_message(printable(waiting_for(lock, &seen)));
        sleep(LOOK).await;
        match Seen::of(lock).await {
            Seen::Ours => {}
            now => seen = now,
        }
    }
}

/// What a look at a lock shows that is waited for.
enum Seen {
    Holder(Holder),
    /// A file that this process made, and watches before it counts.
    Ours,
    /// It cannot be told, or was released at this moment.
    Unknown,
}

impl Seen {
    async fn of(lock: &AnyLock) -> Self {
        let looked = timeout(LOOK, lock.holder()).await;
        match looked.unwrap_or(Ok(None)) {
            Ok(Some(holder)) if is_ours(&holder) => Seen::Ours,
            Ok(Some(holder)) => Seen::Holder(holder),
            Ok(None) | Err(_) => Seen::Unknown,
        }
    }
}

fn is_ours(holder: &Holder) -> bool {
    holder.hold_id.is_some() && holder.pid == Some(std::process::id())
}

fn waiting_for(lock: &AnyLock, seen: &Seen) -> String {
    let name = lock.name();
    match seen {
        Seen::Holder(holder) => {
            format!("waiting for {name}, held by {holder} ({})", holder.evidence)
        }
        Seen::Ours | Seen::Unknown => format!("waiting for {name}"),
    }
}

struct Line(ProgressBar);

impl Line {
    fn new() -> Self {
        let style = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}");
        let line = ProgressBar::new_spinner();
        line.set_style(style.expect("BUG: the template of the waiting line is wrong"));
        line.enable_steady_tick(STEP);
        Self(line)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
