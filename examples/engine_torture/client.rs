//! A client process: tasks that want locks.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockkeeper::{Error, Guard, Lock};
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::dice::Dice;
use crate::oracle::{Record, now};
use crate::settings::Job;

/// A client whose servers cannot serve tries for so long. The conductor leaves none without one
/// that can for longer.
pub(crate) const RECONNECT: Duration = Duration::from_secs(60);

/// The tasks of this client, with the locks of these numbers.
pub(crate) fn run<L: Lock>(job: &Job, lock: impl FnMut(u64) -> L) {
    let runtime = Runtime::new().expect("a runtime");
    let locks: Vec<_> = (0..job.locks).map(lock).collect();
    runtime.block_on(use_them(job, &locks));
}

pub(crate) fn lock_name(number: u64) -> String {
    format!("lock-{number}")
}

/// At the first byte of the input the tasks end what they do. The process stays until the input
/// is closed: of a client that is quiet nothing may be left meanwhile but its session.
async fn use_them<L: Lock>(job: &Job, locks: &[L]) {
    let record = Arc::new(Record::create(&job.record).expect("a record"));
    let ends = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..job.tasks)
        .map(|task| {
            let number = (job.place * job.tasks + task) % job.locks;
            let lock = locks[usize::try_from(number).expect("a number")].clone();
            let contender = Contender {
                lock,
                name: lock_name(number),
                record: Arc::clone(&record),
                dice: Dice::new(job.seed * 1000 + task),
                is_blind: job.is_blind,
            };
            tokio::spawn(contender.run(Arc::clone(&ends)))
        })
        .collect();
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let mut byte = [0];
        while std::io::stdin().read(&mut byte).is_ok_and(|length| length == 1) {
            let _ = tell.send(());
        }
    });
    let mut told = told;
    // The first byte ends the tasks, the end of the input the process.
    let _ = told.recv().await;
    ends.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("no panic");
    }
    for lock in locks {
        lock.flush().await;
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "quiet").and_then(|()| out.flush()).expect("a conductor");
    let _ = told.recv().await;
}

struct Contender<L> {
    lock: L,
    name: String,
    record: Arc<Record>,
    dice: Dice,
    is_blind: bool,
}

impl<L: Lock> Contender<L> {
    async fn run(mut self, ends: Arc<AtomicBool>) {
        while !ends.load(Ordering::Relaxed) {
            match self.acquire().await {
                Ok(Some(guard)) => self.hold(guard).await,
                Ok(None) => {}
                Err(Error::Timeout { .. }) => self.record.not_had("timeout"),
                Err(Error::Cancelled { .. }) => self.record.not_had("cancelled"),
                Err(error @ Error::Unreachable { .. }) => {
                    eprintln!("a client: {error}");
                    self.record.not_had("unreachable");
                }
                Err(error) => {
                    self.record.fault(&format!("acquire: {error}"));
                    sleep(Duration::from_millis(100)).await;
                }
            }
            if self.dice.once_in(4) {
                sleep(self.dice.millis(0, 50)).await;
            }
        }
    }

    /// In one of the ways that there are.
    async fn acquire(&mut self) -> Result<Option<L::Guard>, Error> {
        let (short, long) = (self.dice.millis(0, 20), self.dice.millis(0, 1000));
        match self.dice.below(12) {
            0 => {
                let guard = self.lock.try_acquire().await?;
                if guard.is_none() {
                    self.record.not_had("busy");
                }
                Ok(guard)
            }
            1 => self.lock.acquire_timeout(short).await.map(Some),
            2 => self.lock.acquire_timeout(long).await.map(Some),
            // Dropped, early and late.
            3 => self.unless_dropped(short).await,
            4 => self.unless_dropped(long).await,
            5 => {
                let token = CancellationToken::new();
                let cancel = token.clone();
                let cancelling = tokio::spawn(async move {
                    sleep(short).await;
                    cancel.cancel();
                });
                let acquired = self.lock.acquire_with(&token).await;
                cancelling.abort();
                acquired.map(Some)
            }
            _ => self.lock.acquire().await.map(Some),
        }
    }

    async fn unless_dropped(&self, limit: Duration) -> Result<Option<L::Guard>, Error> {
        match timeout(limit, self.lock.acquire()).await {
            Ok(acquired) => acquired.map(Some),
            Err(_) => {
                self.record.not_had("dropped");
                Ok(None)
            }
        }
    }

    /// The moment is taken before the guard is asked: then the guard held at that moment.
    fn holds_since(&self, guard: &L::Guard) -> Option<u64> {
        let moment = now();
        (self.is_blind || !guard.is_lost()).then_some(moment)
    }

    async fn hold(&mut self, guard: L::Guard) {
        let token = guard.fencing_token().expect("a token").number();
        let Some(told) = self.holds_since(&guard) else {
            return self.record.not_had("lost-at-once");
        };
        self.record.told(&self.name, token, told);
        // Mostly short, and now and then longer than a lease, or a promotion.
        let (steps, step) = match self.dice.below(30) {
            0 => (8 + self.dice.below(32), Some(Duration::from_millis(250))),
            _ => (1 + self.dice.below(4), None),
        };
        for _ in 0..steps {
            sleep(step.unwrap_or_else(|| self.hold_time())).await;
            let Some(held) = self.holds_since(&guard) else { break };
            self.record.held(&self.name, token, held);
        }
        let how = self.end(guard).await;
        self.record.ended(&self.name, token, how);
    }

    /// Mostly short, and now and then long enough to be killed and stopped in.
    fn hold_time(&mut self) -> Duration {
        match self.dice.below(10) {
            0 => self.dice.millis(20, 1500),
            _ => self.dice.millis(0, 10),
        }
    }

    async fn end(&mut self, guard: L::Guard) -> &'static str {
        let is_lost = guard.is_lost();
        let released = match self.dice.below(6) {
            0 => {
                drop(guard);
                return if is_lost { "lost" } else { "dropped" };
            }
            1 => match timeout(self.dice.millis(0, 3), guard.release()).await {
                Ok(released) => released,
                Err(_) => return "release-dropped",
            },
            _ => guard.release().await,
        };
        match released {
            Ok(()) => "released",
            Err(Error::Lost(_)) => "lost",
            Err(Error::Unreachable { .. }) => "unreachable",
            Err(error) => {
                self.record.fault(&format!("release: {error}"));
                "failed"
            }
        }
    }
}
