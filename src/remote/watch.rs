//! The status of the lock each time that it changes, as the daemon sends it.
//!
//! A task on the thread of `lease::io` follows the daemon's events, and leaves the last
//! status, or error, for the reader. The reader passes over what equals the item before.

use std::future::{Future, poll_fn};
use std::io;
use std::mem::{Discriminant, discriminant};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::no_response::NoResponse;
use super::response::Refusal;
use super::status;
use super::target::Target;
use crate::lease::{Exhausted, RESPONSE_LIMIT, Running, io};
use crate::local::timer::Standing;
use crate::lock::changes::{self, Change};
use crate::lock::error::Error;
use crate::lock::holder::Status;
use crate::sys::mutex::Mutex;
use crate::wire::List;

const DOING: &str = "watching";

/// Between two connections to a daemon that is known to be away. If larger, its return is
/// noticed later.
const ABSENCE: Duration = Duration::from_millis(500);

pub(super) struct Watcher {
    target: Arc<Target>,
    /// The last item.
    told: Option<Told>,
    following: Option<Following>,
}

/// An error by its kind: how long a daemon was away makes no other item.
type Told = Result<Status, Discriminant<Error>>;

/// The task that reads the daemon's events.
struct Following {
    latest: Arc<Latest>,
    task: Running<()>,
}

impl Watcher {
    pub(super) fn new(target: Arc<Target>) -> Self {
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
    fn start(target: &Arc<Target>) -> io::Result<Self> {
        let latest = Arc::new(Latest::default());
        let task = io()?.run(follow(Arc::clone(target), Arc::clone(&latest)));
        Ok(Self { latest, task })
    }

    /// `None` in a forked child, which has to follow by itself. (R7)
    async fn heard(&self) -> Option<Change> {
        let mut change = pin!(self.latest.take());
        poll_fn(|context| match self.task.is_of_this_process() {
            true => change.as_mut().poll(context).map(Some),
            false => Poll::Ready(None),
        })
        .await
    }
}

impl changes::Watcher for Watcher {
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
struct Latest {
    change: Mutex<Option<Change>>,
    is_there: Notify,
}

impl Latest {
    fn put(&self, change: Change) {
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

/// How the events of one connection ended.
enum End {
    /// Another connection may fare better; `was_there`: events came over this one.
    Broken {
        error: io::Error,
        was_there: bool,
    },
    Hopeless(Error),
}

/// Until another connection would fare no better.
async fn follow(target: Arc<Target>, latest: Arc<Latest>) {
    let mut patience = target.patience();
    loop {
        let begun = Instant::now();
        let error = match follow_once(&target, &latest).await {
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

async fn follow_once(target: &Target, latest: &Latest) -> End {
    let broken = |error| End::Broken { error, was_there: false };
    let opened = timeout(RESPONSE_LIMIT, target.events()).await;
    let mut events = match opened.unwrap_or_else(|_| Err(NoResponse::silence())) {
        Ok(Ok(events)) => events,
        Ok(Err(response)) => {
            let refusal = Refusal::read(&response);
            return match refusal.is_passing() {
                true => broken(io::Error::other(refusal.message)),
                false => End::Hopeless(target.refused(DOING, refusal)),
            };
        }
        Err(failure) if failure.is_final() => {
            return End::Hopeless(target.hopeless(DOING, failure));
        }
        Err(failure) => return broken(failure.error),
    };
    let mut was_there = false;
    loop {
        let data = match events.next().await {
            Ok(data) => data,
            Err(error) => return End::Broken { error, was_there },
        };
        let Ok(list) = serde_json::from_slice::<List>(&data) else {
            let found = "an event that is no list of locks".to_owned();
            return End::Hopeless(target.strange(DOING, found));
        };
        was_there = true;
        let shown = list.locks.into_iter().find(|lock| lock.resource == target.resource);
        latest.put(Ok(shown.map_or(Status::Free, |shown| Status::Held(status::holder(shown)))));
    }
}
