//! What is told to somebody who waits.

use std::convert::Infallible;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::sleep;

use super::text::{printable, tell};
use crate::{AsyncFileLock, Holder};

/// Shorter waits are not told of.
const UNTOLD: Duration = Duration::from_millis(100);

/// Between two looks at who is waited for.
const LOOK: Duration = Duration::from_secs(1);

/// Between two steps of the spinner.
const STEP: Duration = Duration::from_millis(100);

/// Tell whom `lock` is waited for, until the future is dropped: on a terminal
/// in a line that moves and goes away with it, else once.
pub(super) async fn tell_of_waiting(lock: &AsyncFileLock) -> Infallible {
    sleep(UNTOLD).await;
    let holder = loop {
        match other_holder(lock).await {
            Some(holder) => break holder,
            None => sleep(LOOK).await,
        }
    };
    if std::io::stderr().is_terminal() {
        return keep_line(lock, holder).await;
    }
    tell(waiting_for(lock, &holder));
    std::future::pending().await
}

async fn keep_line(lock: &AsyncFileLock, mut holder: Holder) -> Infallible {
    let line = Line::new();
    loop {
        line.0.set_message(printable(waiting_for(lock, &holder)));
        sleep(LOOK).await;
        holder = other_holder(lock).await.unwrap_or(holder);
    }
}

fn waiting_for(lock: &AsyncFileLock, holder: &Holder) -> String {
    format!("waiting for {}, held by {holder} ({})", lock.path().display(), holder.evidence)
}

/// `None` also for this process, which may be watching a file that it made.
async fn other_holder(lock: &AsyncFileLock) -> Option<Holder> {
    let holder = lock.holder().await.ok().flatten();
    holder.filter(|holder| holder.is_foreign() || holder.pid != Some(std::process::id()))
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
