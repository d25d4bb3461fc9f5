//! An acquisition that is dropped after any number of polls leaves nothing.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::mpsc;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use lockkeeper::{Lock, Wait};
use tokio_util::sync::CancellationToken;

use crate::another_process::start;
use crate::kinds::{GuardOf, Kind, Place, acquired, release};
use crate::support::{HOUR, Process, block_on};

for_every_kind! {
    a_free_lock_can_be_left_at_each_await
    a_lock_that_a_task_holds_can_be_left_at_each_await
    a_lock_that_a_process_holds_can_be_left_at_each_await
    a_run_can_be_left_at_each_await
}

/// So many numbers of polls are tried one by one, and from there on each half as large
/// again: a kernel lock that is taken over and over polls itself for 0.2 ms at times.
const ONE_BY_ONE: usize = 24;

/// More polls than any acquisition takes.
const POLLS_MAX: usize = 1 << 20;

/// Time for the waiter to be polled before the lock is released. Elsewhere than on Linux, a
/// look at a process takes milliseconds.
pub const HELD_FOR: Duration =
    Duration::from_millis(if cfg!(lockkeeper_generic_unix) { 40 } else { 4 });

/// After the last poll, so that the lock may have come unseen.
const LINGERS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(8)];

type Acquiring<G> = BoxFuture<'static, Option<G>>;

/// Every way to acquire.
fn verbs<L: Lock>(lock: &L) -> [Acquiring<L::Guard>; 5] {
    let token = CancellationToken::new();
    let (acquire, limited) = (lock.acquire(), lock.acquire_timeout(HOUR));
    let (with, within) = (lock.acquire_with(&token), lock.acquire_within(Wait::Forever));
    let try_once = lock.try_acquire();
    [
        async move { Some(acquire.await.expect("the lock")) }.boxed(),
        async move { Some(limited.await.expect("the lock")) }.boxed(),
        async move { Some(with.await.expect("the lock")) }.boxed(),
        async move { within.await.expect("the lock").held() }.boxed(),
        async move { try_once.await.expect("an answer") }.boxed(),
    ]
}

fn numbers_of_polls() -> impl Iterator<Item = usize> {
    let further = |polls: &usize| Some(polls + if *polls < ONE_BY_ONE { 1 } else { polls / 2 });
    std::iter::successors(Some(0), further)
        .inspect(|polls| assert!(*polls < POLLS_MAX, "it never ends"))
}

/// Poll as often as told, or to the end, and then drop it. `None` if it did not end.
async fn polled<T>(mut future: BoxFuture<'static, T>, times: usize, linger: Duration) -> Option<T> {
    let mut left = times;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match Pin::new(&mut future).poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left > 0 => Poll::Pending,
            Poll::Pending => {
                std::thread::sleep(linger);
                Poll::Ready(None)
            }
        }
    })
    .await
}

/// Who holds when the acquisition begins, and releases soon.
enum Scene {
    Free,
    HeldByTask,
    HeldByProcess(Process),
}

impl Scene {
    /// The lock is held, but for [`Scene::Free`].
    fn begin<K: Kind>(&mut self, place: &Place<K>) -> Option<JoinHandle<()>> {
        match self {
            Scene::Free => None,
            Scene::HeldByTask => Some(hold_for_a_moment(place.lock())),
            Scene::HeldByProcess(other) => {
                other.tell("hold");
                other.expect("held");
                None
            }
        }
    }

    /// The lock is released.
    fn end(&mut self, holder: Option<JoinHandle<()>>) {
        if let Some(holder) = holder {
            holder.join().expect("it held");
        }
        if let Scene::HeldByProcess(other) = self {
            other.expect("released");
        }
    }
}

/// A holder on a thread of its own, which releases soon.
fn hold_for_a_moment<L: Lock>(lock: L) -> JoinHandle<()> {
    let (held, is_held) = mpsc::channel();
    let holder = std::thread::spawn(move || {
        block_on(async {
            let guard = acquired(&lock).await;
            held.send(()).expect("a test that waits");
            std::thread::sleep(HELD_FOR);
            release(guard).await;
        });
    });
    is_held.recv().expect("it is held");
    holder
}

/// How often an acquisition was under way when it was dropped.
fn leave_everywhere<K: Kind>(place: &Place<K>, mut scene: Scene) -> usize {
    let mut left = 0;
    let count = verbs(&place.lock()).len();
    for (verb, linger) in (0..count).flat_map(|verb| LINGERS.map(|linger| (verb, linger))) {
        for polls in numbers_of_polls() {
            let holder = scene.begin(place);
            let has_ended = block_on(async {
                let lock = place.lock();
                let acquiring = verbs(&lock).into_iter().nth(verb).expect("a verb");
                let ended: Option<Option<GuardOf<K>>> = polled(acquiring, polls, linger).await;
                let has_ended = ended.is_some();
                left += usize::from(polls > 0 && !has_ended);
                drop(ended);
                scene.end(holder);
                let what = format!("verb {verb} after {polls} polls, {linger:?}");
                place.expect_as_new(&lock, &what).await;
                has_ended
            });
            if has_ended {
                break;
            }
        }
    }
    left
}

fn a_free_lock_can_be_left_at_each_await<K: Kind>() {
    leave_everywhere(&Place::<K>::new(), Scene::Free);
}

fn a_lock_that_a_task_holds_can_be_left_at_each_await<K: Kind>() {
    let left = leave_everywhere(&Place::<K>::new(), Scene::HeldByTask);
    assert!(left > 0, "none was under way");
}

fn a_lock_that_a_process_holds_can_be_left_at_each_await<K: Kind>() {
    let place = Place::<K>::new();
    let other = start("hold for moments", &place);
    let left = leave_everywhere(&place, Scene::HeldByProcess(other));
    assert!(left > 0, "none was under way");
}

/// The work is dropped before the lock is released.
fn a_run_can_be_left_at_each_await<K: Kind>() {
    let place = Place::<K>::new();
    for polls in numbers_of_polls() {
        let has_ended = block_on(async {
            let lock = place.lock();
            let running = lock.clone();
            let work = async {
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
            };
            let run = async move { running.run(work).await.expect("the lock") }.boxed();
            let ended = polled(run, polls, Duration::ZERO).await;
            place.expect_as_new(&lock, &format!("after {polls} polls")).await;
            ended.is_some()
        });
        if has_ended {
            break;
        }
    }
}
