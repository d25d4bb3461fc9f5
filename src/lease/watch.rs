//! The status of a lock each time that it changes, as its server sends it.
//!
//! A task on the thread of (L1) follows what the server sends, and leaves the last status,
//! or error, for the reader. The reader passes over what equals the item before.

use std::future::{Future, poll_fn};
use std::io;
use std::mem::{Discriminant, discriminant};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::contender::RESPONSE_LIMIT;
use super::io::{Running, io};
use super::retry::{Exhausted, Patience};
use crate::local::timer::Standing;
use crate::lock::changes::{self, Change};
use crate::lock::error::Error;
use crate::lock::holder::Status;
use crate::sys::mutex::Mutex;

const DOING: &str = "watching";

/// Between two connections to a server that is known to be away. If larger, its return is
/// noticed later.
const ABSENCE: Duration = Duration::from_millis(500);

/// A lock whose status a server sends.
pub(crate) trait Watched: Send + Sync + 'static {
    fn patience(&self) -> Patience;

    /// No answer came for too long.
    fn unreachable(&self, doing: &'static str, tried: Duration, source: io::Error) -> Error;

    /// Leave what the server sends for the reader, until that breaks off.
    fn follow(&self, latest: &Latest) -> impl Future<Output = End> + Send;
}

pub(crate) struct Watcher<T> {
    target: Arc<T>,
    /// The last item.
    told: Option<Told>,
    following: Option<Following>,
}

/// An error by its kind: how long a server was away makes no other item.
type Told = Result<Status, Discriminant<Error>>;

/// The task that reads what the server sends.
struct Following {
    latest: Arc<Latest>,
    task: Running<()>,
}

impl<T: Watched> Watcher<T> {
    pub(crate) fn new(target: Arc<T>) -> Self {
        Self { target, told: None, following: None }
    }

    async fn heard(&mut self) -> Change {
        loop {
            let failed = |error| self.target.unreachable(DOING, Duration::ZERO, error);
            let following = match self.following.take() {
                Some(following) => following,
                None => Following::start(&self.target).map_err(failed)?,
            };
            if let Some(change) = self.following.insert(following).heard().await {
                return change;
            }
            self.following = None;
        }
    }
}

impl Following {
    fn start<T: Watched>(target: &Arc<T>) -> io::Result<Self> {
        let latest = Arc::new(Latest::default());
        let task = io()?.run(follow(Arc::clone(target), Arc::clone(&latest)));
        Ok(Self { latest, task })
    }

    /// `None` in a forked child, which has to follow by itself. (L2)
    async fn heard(&self) -> Option<Change> {
        let mut change = pin!(self.latest.take());
        poll_fn(|context| match self.task.is_of_this_process() {
            true => change.as_mut().poll(context).map(Some),
            false => Poll::Ready(None),
        })
        .await
    }
}

impl<T: Watched> changes::Watcher for Watcher<T> {
    async fn next(mut self) -> (Option<Self>, Change) {
        let _standing = self.told.is_none().then(|| Standing::at_most(RESPONSE_LIMIT));
        loop {
            let change = self.heard().await;
            let told = change.as_ref().map(Status::clone).map_err(discriminant);
            if self.told.as_ref() == Some(&told) {
                if change.is_err() {
                    // What failed so may have been no request: there was no time in it.
                    sleep(ABSENCE).await;
                }
                continue;
            }
            self.told = Some(told);
            let is_over = matches!(&change, Err(error) if !is_passing(error));
            return ((!is_over).then_some(self), change);
        }
    }
}

fn is_passing(error: &Error) -> bool {
    matches!(error, Error::Unreachable { .. })
}

/// What the reader has not taken yet.
#[derive(Default)]
pub(crate) struct Latest {
    change: Mutex<Option<Change>>,
    is_there: Notify,
}

impl Latest {
    pub(crate) fn put(&self, change: Change) {
        *self.change.lock() = Some(change);
        self.is_there.notify_one();
    }

    async fn take(&self) -> Change {
        loop {
            if let Some(change) = self.change.lock().take() {
                return change;
            }
            self.is_there.notified().await;
        }
    }
}

/// How following ended.
pub(crate) enum End {
    /// Another try may fare better; `was_there`: the server sent something.
    Broken {
        error: io::Error,
        was_there: bool,
    },
    Hopeless(Error),
}

/// Until another try would fare no better.
async fn follow<T: Watched>(target: Arc<T>, latest: Arc<Latest>) {
    let mut patience = target.patience();
    loop {
        let begun = Instant::now();
        let error = match target.follow(&latest).await {
            End::Hopeless(error) => return latest.put(Err(error)),
            End::Broken { error, was_there } => {
                if was_there {
                    patience.renew(begun.elapsed());
                }
                error
            }
        };
        if let Err(Exhausted { tried, error }) = patience.pause(begun, error).await {
            latest.put(Err(target.unreachable(DOING, tried, error)));
            sleep(ABSENCE).await;
            patience = target.patience();
        }
    }
}
