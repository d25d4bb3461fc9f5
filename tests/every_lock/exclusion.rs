//! One holds at a time, seen by content that a second holder would corrupt.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use lockkeeper::Lock;
use tokio::runtime::Builder;

use crate::another_process::start;
use crate::kinds::{Kind, Life, Place, acquired, release};
use crate::support::on_tmpfs;

for_every_kind! { tasks_exclude_each_other processes_exclude_each_other }

/// A file of lines that all have the number of visits.
struct Ledger(PathBuf);

impl Ledger {
    const LINES: usize = 64;

    fn new(path: PathBuf) -> Self {
        let ledger = Self(path);
        ledger.write(&vec![0; Self::LINES]);
        ledger
    }

    fn write(&self, numbers: &[u64]) {
        let mut text = String::new();
        numbers.iter().for_each(|number| writeln!(text, "{number}").expect("memory"));
        std::fs::write(&self.0, text).expect("a ledger");
    }

    /// The number that all lines have.
    fn read(&self) -> u64 {
        let text = std::fs::read_to_string(&self.0).expect("a ledger");
        let numbers: Vec<u64> =
            text.lines().map(|line| line.parse().expect("another writes as well")).collect();
        assert_eq!(numbers.len(), Self::LINES, "another writes as well");
        assert!(numbers.iter().all(|number| *number == numbers[0]), "another was here: {text}");
        numbers[0]
    }

    /// Change all lines, and half of them first.
    async fn visit(&self) {
        let before = self.read();
        let mut numbers = vec![before; Self::LINES];
        numbers[..Self::LINES / 2].fill(before + 1);
        self.write(&numbers);
        tokio::task::yield_now().await;
        numbers.fill(before + 1);
        self.write(&numbers);
    }
}

/// Acquire and visit so many times, by two tasks.
pub async fn visit_often<K: Kind>(address: &str, ledger: &str, times: usize) {
    let lock = K::lock(address, None, Life::Long);
    let visits = |lock: K::Lock, ledger: PathBuf| async move {
        let ledger = Ledger(ledger);
        for _ in 0..times {
            let guard = acquired(&lock).await;
            ledger.visit().await;
            release(guard).await;
        }
    };
    let ledger = Path::new(ledger);
    let clone = visits(lock.clone(), ledger.to_owned());
    // Another contender, though of the same process.
    let other = visits(K::lock(address, None, Life::Long), ledger.to_owned());
    let tasks = [tokio::spawn(clone), tokio::spawn(other)];
    for task in tasks {
        task.await.expect("no panic");
    }
    lock.flush().await;
}

fn tasks_exclude_each_other<K: Kind>() {
    const TIMES: usize = 15;
    let (place, directory) = (Place::<K>::new(), on_tmpfs());
    let ledger = Ledger::new(directory.path().join("ledger"));
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let path = ledger.0.to_str().expect("a path");
        let visits = || visit_often::<K>(&place.address, path, TIMES);
        tokio::join!(visits(), visits());
        place.expect_as_new(&place.lock(), "after all visits").await;
    });
    assert_eq!(ledger.read(), 4 * TIMES as u64);
}

fn processes_exclude_each_other<K: Kind>() {
    const TIMES: usize = 15;
    let (place, directory) = (Place::<K>::new(), on_tmpfs());
    let ledger = Ledger::new(directory.path().join("ledger"));
    let part = format!("visit {TIMES} {}", ledger.0.display());
    let mut processes = [(); 3].map(|()| start(&part, &place));
    assert!(processes.iter_mut().all(|process| process.wait().success()));
    assert_eq!(ledger.read(), 6 * TIMES as u64);
}
