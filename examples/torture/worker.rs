//! A process that takes the lock over and over, in every way there is.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lockkeeper::{AsyncFileLock, Error, FileGuard, FileOptions, Offload};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::dice::Dice;
use crate::oracle::{Oracle, Ticket, Violation};
use crate::process::Identity;
use crate::settings::Job;
use crate::system;
use crate::tally::Counter;

/// What is where in the directory of a run. The lock has a directory of its
/// own, so that every name in it counts.
pub fn lock_path(place: &Path) -> PathBuf {
    place.join("lock").join("torture.lock")
}

pub fn tally_path(place: &Path, number: u64) -> PathBuf {
    place.join("tallies").join(number.to_string())
}

pub fn reports_path(place: &Path) -> PathBuf {
    place.join("reports")
}

/// Longest `acquire_timeout`, in microseconds, and longest wait before an
/// acquisition is dropped: about as long as one takes under contention.
const TIMEOUT_MAX_US: u64 = 20_000;
const PATIENCE_MAX_US: u64 = 5_000;

struct Worker {
    job: Job,
    oracle: Oracle,
    counter: Counter,
    reports: File,
    process: Identity,
    visits: AtomicU64,
    is_over: AtomicBool,
}

pub fn run(job: Job) {
    system::end_with_parent();
    let place = job.place.clone();
    let reports = File::options().append(true).open(reports_path(&place));
    let worker = Arc::new(Worker {
        oracle: Oracle::open(&place).expect("the oracle's files"),
        counter: Counter::create(&tally_path(&place, job.number)).expect("a tally"),
        reports: reports.expect("the file of reports"),
        process: Identity::mine(),
        visits: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
        job,
    });
    let listener = Arc::clone(&worker);
    thread::spawn(move || {
        // The conductor closes our standard input, or is gone.
        let _ = std::io::stdin().read(&mut [0]);
        listener.is_over.store(true, Ordering::Relaxed);
    });
    runtime(worker.job.number).block_on(worker.all_tasks());
}

/// Every other worker has threads that run its tasks at the same time.
fn runtime(number: u64) -> Runtime {
    let mut builder = match number % 2 {
        0 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder.worker_threads(2).enable_all().build().expect("a runtime")
}

impl Worker {
    async fn all_tasks(self: Arc<Self>) {
        let tasks: Vec<_> = (0..self.job.tasks)
            .map(|task| {
                let dice = Dice::new(Dice::new(self.job.seed ^ (task as u64)).roll());
                tokio::spawn(Arc::clone(&self).task(task, dice))
            })
            .collect();
        for task in tasks {
            task.await.expect("a task does not panic");
        }
    }

    async fn task(self: Arc<Self>, task: usize, mut dice: Dice) {
        while !self.is_over.load(Ordering::Relaxed) {
            let lock = self.lock(&mut dice);
            self.counter.count(|tally| tally.waiting += 1);
            let asked = Instant::now();
            let acquired = self.acquire(&lock, &mut dice).await;
            let waited = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.counter.count(|tally| {
                tally.waiting -= 1;
                if let Ok(Some(guard)) = &acquired {
                    tally.holding += 1;
                    tally.by_task[task] += 1;
                    tally.recovered += u64::from(guard.recovered_from().is_some());
                    tally.longest_wait_us = tally.longest_wait_us.max(waited);
                }
            });
            match acquired {
                Ok(Some(guard)) => {
                    self.hold(guard, &mut dice).await;
                    self.counter.count(|tally| tally.holding -= 1);
                }
                Ok(None) => {}
                Err(error) => self.failed("acquiring", &error),
            }
            if dice.once_in(4) {
                tokio::time::sleep(dice.micros_up_to(self.job.period_us)).await;
            }
        }
    }

    fn lock(&self, dice: &mut Dice) -> AsyncFileLock {
        let offload = [Offload::Never, Offload::Always, Offload::Auto][dice.below(3) as usize];
        let period = dice.micros_between((self.job.period_us / 8).max(1), self.job.period_us);
        let mut options =
            FileOptions::default().retry_period(period).proof(self.job.pin).offload(offload);
        if dice.once_in(2) {
            options = options.fallback_period(period * 4).mode(0o600);
        }
        if dice.once_in(2) {
            options =
                options.timeout(Duration::from_secs(60)).note(format!("visit {}", dice.roll()));
        }
        AsyncFileLock::with_options(lock_path(&self.job.place), options).expect("possible options")
    }

    async fn acquire(
        &self,
        lock: &AsyncFileLock,
        dice: &mut Dice,
    ) -> Result<Option<FileGuard>, Error> {
        let patience = dice.micros_between(1, PATIENCE_MAX_US);
        let outcome = match dice.below(9) {
            0..4 => lock.acquire().await.map(Some),
            4 => lock.acquire_timeout(dice.micros_up_to(TIMEOUT_MAX_US)).await.map(Some),
            5 => {
                let guard = lock.try_acquire().await?;
                self.counter.count(|tally| tally.busy += u64::from(guard.is_none()));
                Ok(guard)
            }
            6 => tokio::select! {
                biased;
                guard = lock.acquire() => guard.map(Some),
                () = spin(patience) => {
                    self.counter.count(|tally| tally.cancelled += 1);
                    Ok(None)
                }
            },
            7 => {
                let lock = lock.clone();
                let task =
                    AbortOnDropHandle::new(tokio::spawn(async move { lock.acquire().await }));
                tokio::time::sleep(patience).await;
                match task.is_finished() {
                    true => task.await.expect("it was not aborted").map(Some),
                    false => {
                        self.counter.count(|tally| tally.cancelled += 1);
                        Ok(None)
                    }
                }
            }
            _ => {
                let token = CancellationToken::new();
                let _cancel = tokio::spawn(cancel_after(token.clone(), patience));
                lock.acquire_with(&token).await.map(Some)
            }
        };
        match outcome {
            Err(Error::Timeout { .. }) => self.counter.count(|tally| tally.timed_out += 1),
            Err(Error::Cancelled { .. }) => self.counter.count(|tally| tally.cancelled += 1),
            other => return other,
        }
        Ok(None)
    }

    /// The critical section.
    async fn hold(&self, guard: FileGuard, dice: &mut Dice) {
        let visit = self.visits.fetch_add(1, Ordering::Relaxed);
        let ticket = Ticket { process: self.process, visit };
        let pause = dice.micros_up_to(30);
        match self.oracle.enter(ticket, || thread::sleep(pause)) {
            Err(why) => self.violated(&guard, why),
            Ok(visit) => {
                self.counter.count(|tally| tally.repaired += u64::from(visit.repaired));
                self.stay(dice).await;
                if let Err(why) = visit.leave() {
                    self.violated(&guard, why);
                }
            }
        }
        if dice.once_in(2) {
            drop(guard);
        } else if let Err(error) = guard.release().await {
            self.failed("releasing", &error);
        }
    }

    async fn stay(&self, dice: &mut Dice) {
        let stay = dice.micros_up_to(self.job.hold_us);
        match dice.below(8) {
            0 => tokio::time::sleep(stay).await,
            1..4 => {}
            _ => thread::sleep(stay),
        }
    }

    fn violated(&self, guard: &FileGuard, why: Violation) {
        self.counter.count(|tally| tally.violations += 1);
        let (token, recovered) = (guard.hold_id(), guard.recovered_from());
        self.report(&format!("VIOLATION {why}; its token {token}, recovered from {recovered:?}"));
    }

    fn failed(&self, doing: &str, error: &Error) {
        self.counter.count(|tally| tally.errors += 1);
        self.report(&format!("ERROR process {} {doing}: {error}: {error:?}", self.process));
    }

    fn report(&self, line: &str) {
        let line = format!("{}\n", line.replace('\n', " "));
        (&self.reports).write_all(line.as_bytes()).expect("a report can be written");
    }
}

/// Finer than Tokio's timer.
async fn spin(time: Duration) {
    let started = Instant::now();
    while started.elapsed() < time {
        tokio::task::yield_now().await;
    }
}

async fn cancel_after(token: CancellationToken, patience: Duration) {
    tokio::time::sleep(patience).await;
    token.cancel();
}
