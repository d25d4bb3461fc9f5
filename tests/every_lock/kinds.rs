//! What a kind of lock is to this suite, and the list of them.

use std::time::Duration;

use futures::poll;
use lockkeeper::{AnyLock, Holder, Lock, LostReason, open};
use tokio::task::JoinHandle;
use tokio::time::timeout;

#[cfg(feature = "etcd")]
pub use crate::etcd_kinds::{EtcdOne, EtcdThree};
pub use crate::local_kinds::{Flock, Ofd, Pinned, Portable};
#[cfg(feature = "postgres")]
pub use crate::postgres_kinds::{PostgresBare, PostgresTable};
#[cfg(all(feature = "cli", feature = "lockd", feature = "lockd-client"))]
pub use crate::remote_kinds::Remote;
use crate::support::{QUIET, VERY_LONG, eventually_async};

/// The list: calls a macro with its arguments and a line for each kind.
macro_rules! kinds {
    ($call:ident $($arguments:tt)*) => {
        $call! {
            ($($arguments)*)
            file_pinned: Pinned,
            file_portable: Portable,
            flock: Flock,
            ofd: Ofd,
            #[cfg(all(feature = "cli", feature = "lockd", feature = "lockd-client"))]
            remote: Remote,
            #[cfg(feature = "etcd")]
            etcd_one: EtcdOne,
            #[cfg(feature = "etcd")]
            etcd_three: EtcdThree,
            #[cfg(feature = "postgres")]
            postgres_table: PostgresTable,
            #[cfg(feature = "postgres")]
            postgres_bare: PostgresBare,
            any_of_file_pinned: AnyOf<Pinned>,
            any_of_file_portable: AnyOf<Portable>,
            any_of_flock: AnyOf<Flock>,
            any_of_ofd: AnyOf<Ofd>,
            #[cfg(all(feature = "cli", feature = "lockd", feature = "lockd-client"))]
            any_of_remote: AnyOf<Remote>,
            #[cfg(feature = "etcd")]
            any_of_etcd: AnyOf<EtcdOne>,
            #[cfg(feature = "postgres")]
            any_of_postgres: AnyOf<PostgresTable>,
        }
    };
}

/// Those of the list whose locks can be shared.
macro_rules! shared_kinds {
    ($call:ident $($arguments:tt)*) => {
        $call! {
            ($($arguments)*)
            flock: Flock,
            ofd: Ofd,
            #[cfg(feature = "postgres")]
            postgres_table: PostgresTable,
            #[cfg(feature = "postgres")]
            postgres_bare: PostgresBare,
        }
    };
}

macro_rules! tests_of_kinds {
    (($test:ident) $($(#[$when:meta])* $name:ident: $kind:ty,)*) => {
        mod $test {
            #[allow(unused_imports)]
            use crate::kinds::*;
            $(
                $(#[$when])*
                #[test]
                fn $name() {
                    if <$kind as Kind>::is_there() {
                        super::$test::<$kind>();
                    }
                }
            )*
        }
    };
}

/// A test of each of these functions for each kind.
macro_rules! for_every_kind {
    ($($test:ident)*) => { $( kinds! { tests_of_kinds $test } )* };
}

/// The same for kinds whose locks can be shared.
macro_rules! for_every_shared_kind {
    ($($test:ident)*) => { $( shared_kinds! { tests_of_kinds $test } )* };
}

/// What a kind promises beyond what all do.
pub struct Promises {
    /// A holder in another process can be told by name.
    pub names_holders_elsewhere: bool,
    /// The next holder is told of one that died.
    pub tells_of_the_dead: bool,
    /// A release of what was lost says so.
    pub release_says_lost: bool,
    /// A holder of this process says where in the source it acquired.
    pub says_where: bool,
    pub has_hold_ids: bool,
    /// Processes wait in a line, which can be seen, and are served in its order.
    pub has_lines: bool,
    pub has_fencing_tokens: bool,
}

/// How long a holder that died keeps a lock, where that is a matter of time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Longer than any test waits.
    Long,
    /// A moment, and longer than the busiest machine takes to renew it.
    Short,
}

/// A kind of lock: how to make one at a fresh place, how to lose it, and what it promises.
pub trait Kind: Send + Sync + Sized + 'static {
    type Lock: Lock;
    /// What a place stands on: a directory, a server. It ends with the place.
    type Ground: Send + Sync;

    const PROMISES: Promises;
    /// All that can make a holder lose the lock.
    const LOSSES: &'static [LostReason];
    /// Schemes of `open` that give locks of this kind. They are compared where all kinds
    /// are built.
    #[allow(dead_code, reason = "the list is compared with all features alone")]
    const SCHEMES: &'static [&'static str];

    /// Whether this machine has what it needs; says so if not.
    fn is_there() -> bool {
        true
    }

    /// A place that no other test uses, and where it is, for other processes.
    fn prepare() -> (String, Self::Ground);

    /// The lock of a place. Each call makes another contender.
    fn lock(address: &str, limit: Option<Duration>, life: Life) -> Self::Lock;

    /// What `open` makes the same lock of, and its name there.
    fn url(address: &str, limit: Option<Duration>, life: Life) -> (String, String);

    /// Have the holder lose the lock.
    fn lose(place: &Site<'_, Self>, reason: LostReason);

    /// How many other processes wait.
    fn waiting_processes(place: &Site<'_, Self>) -> usize;

    /// Whether so many tasks of this process wait behind a holder. Each was polled.
    fn are_waiting(place: &Site<'_, Self>, tasks: usize) -> bool;

    /// Whether no holder and no waiter left anything.
    fn is_as_new(place: &Site<'_, Self>) -> bool;

    /// Whether this is what is told of a holder in the process of this id.
    fn names(holder: &Holder, process: u32) -> bool {
        holder.pid == Some(process)
    }
}

/// A place as a kind sees it.
pub struct Site<'a, K: Kind> {
    pub address: &'a str,
    pub ground: &'a K::Ground,
}

/// A place with one lock.
pub struct Place<K: Kind> {
    pub address: String,
    ground: K::Ground,
}

impl<K: Kind> Place<K> {
    pub fn new() -> Self {
        let (address, ground) = K::prepare();
        Self { address, ground }
    }

    pub fn site(&self) -> Site<'_, K> {
        Site { address: &self.address, ground: &self.ground }
    }

    /// One more contender, without a limit.
    pub fn lock(&self) -> K::Lock {
        K::lock(&self.address, None, Life::Long)
    }

    /// One whose options say how long it waits.
    pub fn limited(&self, limit: Duration) -> K::Lock {
        K::lock(&self.address, Some(limit), Life::Long)
    }

    /// One that loses the lock soon after it died.
    pub fn mortal(&self) -> K::Lock {
        K::lock(&self.address, None, Life::Short)
    }

    /// One more contender, which finds the lock held; `None` if it is not. A server has made it
    /// a session by then, which may take long.
    pub async fn contender(&self) -> Option<K::Lock> {
        let lock = self.lock();
        let tried = soon(lock.try_acquire()).await.expect("no error");
        match tried {
            Some(guard) => {
                release(guard).await;
                None
            }
            None => Some(lock),
        }
    }

    /// Wait until so many other processes wait. Where that cannot be seen, until they would.
    #[track_caller]
    pub fn expect_processes(&self, count: usize) {
        if !K::PROMISES.has_lines {
            return std::thread::sleep(QUIET);
        }
        crate::support::eventually("so many processes wait", || {
            K::waiting_processes(&self.site()) == count
        });
    }

    /// The same of this process, whose tasks do so.
    pub async fn expect_to_wait(&self) {
        if !K::PROMISES.has_lines {
            return tokio::time::sleep(QUIET).await;
        }
        let is_waiting = || K::waiting_processes(&self.site()) == 1;
        eventually_async("it waits", is_waiting).await;
    }

    /// A task that waits, surely behind the tasks that wait already. The lock is held by
    /// this process.
    pub async fn wait_behind<T: Send + 'static>(
        &self,
        before: usize,
        waiter: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        let mut waiter = Box::pin(waiter);
        assert!(poll!(&mut waiter).is_pending(), "the lock is held");
        let waiter = tokio::spawn(waiter);
        let are_waiting = || K::are_waiting(&self.site(), before + 1);
        eventually_async("it waits", are_waiting).await;
        waiter
    }

    /// Nothing of `lock` is left: another contender gets the lock at once, and after its
    /// release the place is as it was at first.
    pub async fn expect_as_new(&self, lock: &K::Lock, what: &str) {
        soon(lock.flush()).await;
        let other = self.lock();
        // What a task was given and did not take may just be ending on its own thread.
        let acquired = async {
            loop {
                if let Some(guard) = other.try_acquire().await.expect("no error") {
                    return guard;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let acquired = timeout(VERY_LONG, acquired).await;
        let left = |_| panic!("{what}: a hold or a place in a queue is left");
        release(acquired.unwrap_or_else(left)).await;
        eventually_async(what, || K::is_as_new(&self.site())).await;
    }
}

pub type GuardOf<K> = <<K as Kind>::Lock as Lock>::Guard;

/// What must end, ends in time.
#[track_caller]
pub fn soon<T>(future: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        let ended = timeout(VERY_LONG, future).await;
        ended.unwrap_or_else(|_| panic!("it does not end: {caller}"))
    }
}

/// The lock, which can be acquired.
#[track_caller]
pub fn acquired<L: Lock>(lock: &L) -> impl Future<Output = L::Guard> {
    let acquiring = soon(lock.acquire());
    async move { acquiring.await.expect("the lock") }
}

/// It was held until now.
pub async fn release(guard: impl lockkeeper::Guard) {
    soon(guard.release()).await.expect("it was held");
}

/// An [`AnyLock`] by the URL of a kind.
pub struct AnyOf<K>(std::marker::PhantomData<K>);

impl<K: Kind> AnyOf<K> {
    fn inner<'a>(place: &Site<'a, Self>) -> Site<'a, K> {
        Site { address: place.address, ground: place.ground }
    }
}

impl<K: Kind> Kind for AnyOf<K> {
    type Lock = AnyLock;
    type Ground = K::Ground;

    // A call of a trait object does not know where it comes from.
    const PROMISES: Promises = Promises { says_where: false, ..K::PROMISES };
    const LOSSES: &'static [LostReason] = K::LOSSES;
    const SCHEMES: &'static [&'static str] = K::SCHEMES;

    fn is_there() -> bool {
        K::is_there()
    }

    fn prepare() -> (String, K::Ground) {
        K::prepare()
    }

    fn lock(address: &str, limit: Option<Duration>, life: Life) -> AnyLock {
        let (url, name) = K::url(address, limit, life);
        open(url).expect("a URL").lock(name).expect("a name")
    }

    fn url(address: &str, limit: Option<Duration>, life: Life) -> (String, String) {
        K::url(address, limit, life)
    }

    fn lose(place: &Site<'_, Self>, reason: LostReason) {
        K::lose(&Self::inner(place), reason);
    }

    fn waiting_processes(place: &Site<'_, Self>) -> usize {
        K::waiting_processes(&Self::inner(place))
    }

    fn are_waiting(place: &Site<'_, Self>, tasks: usize) -> bool {
        K::are_waiting(&Self::inner(place), tasks)
    }

    fn is_as_new(place: &Site<'_, Self>) -> bool {
        K::is_as_new(&Self::inner(place))
    }

    fn names(holder: &Holder, process: u32) -> bool {
        K::names(holder, process)
    }
}
