//! Processes that wait stand in one line, whatever their clocks say and however
//! many have stood in it before.

mod support;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lockkeeper::{AsyncFileLock, AsyncKernelLock};
use nix::libc;
use support::{Process, kernel_locks, player};

/// As a role begins.
const KINDS: [&str; 2] = ["file", "kernel"];

const WAITERS: usize = 5;

/// So many times that chance would turn half of sixty pairs around, and hardly
/// ever as few as [`FEW`]. Some may be, where a process takes long to wake.
const ROUNDS: usize = 6;

const FEW: usize = 12;

/// A machine that is busy is asked more often.
const RUNS: usize = 6;

/// Half of the offsets are of tickets, see `src/sys/linux/ticket_offsets.rs`.
const TICKETS: u64 = 1 << 62;

/// Offsets of one name, one for each number.
const NUMBERS: u64 = 1 << 38;

/// Wait, write down which of them holds, and let go.
async fn wait_in_line(role: &str, path: &Path) {
    let (kind, number) = role.split_once(' ').unwrap();
    support::tell("asks");
    let note = || {
        let journal = fs::File::options().append(true).open(path.with_extension("log"));
        journal.unwrap().write_all(number.as_bytes()).unwrap();
    };
    if kind == "file" {
        let guard = AsyncFileLock::new(path).acquire().await.unwrap();
        note();
        tokio::time::sleep(Duration::from_millis(3)).await;
        guard.release().await.unwrap();
    } else {
        let guard = AsyncKernelLock::new(path).acquire().await.unwrap();
        note();
        tokio::time::sleep(Duration::from_millis(3)).await;
        guard.release().await.unwrap();
    }
}

/// Where the tickets of those who wait are.
fn tickets(directory: &Path) -> Vec<u64> {
    let locks = kernel_locks(directory, "OFDLCK").into_iter();
    let offsets = locks.map(|lock| lock[6].parse::<u64>().unwrap());
    offsets.filter(|offset| *offset < TICKETS).collect()
}

/// The same when there are so many. Of a table that other processes change one look may miss
/// a line.
fn tickets_of(waiters: usize, directory: &Path) -> BTreeSet<u64> {
    let mut seen = BTreeSet::new();
    support::eventually("they wait", || {
        seen = tickets(directory).into_iter().collect();
        seen.len() == waiters
    });
    seen
}

/// How many there are. Of a table that changes one look may show a line twice, or not.
fn settled(directory: &Path) -> usize {
    loop {
        let first = count(directory);
        std::thread::sleep(Duration::from_millis(5));
        if count(directory) == first {
            return first;
        }
    }
}

fn count(directory: &Path) -> usize {
    tickets(directory).into_iter().collect::<BTreeSet<u64>>().len()
}

/// Holds the lock of this kind until it is dropped.
async fn hold(kind: &str, path: &Path) -> Box<dyn Send> {
    match kind {
        "file" => Box::new(AsyncFileLock::new(path).acquire().await.unwrap()),
        _ => Box::new(AsyncKernelLock::new(path).acquire().await.unwrap()),
    }
}

/// How many pairs of those who waited were served in the wrong order. `start` makes the
/// processes of a role.
async fn inversions(
    kind: &str,
    path: &Path,
    start: impl Fn(usize, &str) -> Process,
    has_joined: impl Fn(usize),
) -> usize {
    let (directory, log) = (path.parent().unwrap(), path.with_extension("log"));
    fs::write(&log, "").unwrap();
    let guard = hold(kind, path).await;
    let mut waiters = Vec::new();
    for number in 0..WAITERS {
        let before = settled(directory);
        let waiter = start(number, &format!("{kind} {number}"));
        waiter.expect("asks");
        waiters.push(waiter);
        support::eventually("it waits", || count(directory) > before);
        has_joined(number);
        // Until it is asleep.
        tokio::time::sleep(support::QUIET / 8).await;
    }
    drop(guard);
    assert!(waiters.iter_mut().all(|waiter| waiter.wait().success()));
    let order = fs::read(&log).unwrap();
    assert_eq!(order.len(), WAITERS);
    let pairs = (0..WAITERS).flat_map(|first| (first + 1..WAITERS).map(move |next| (first, next)));
    pairs.filter(|(first, next)| order[*first] > order[*next]).count()
}

/// Of sixty pairs, at most a few are in the wrong order in one of some runs.
async fn must_be_few(what: &str, mut inversions: impl AsyncFnMut() -> usize) {
    for _ in 0..RUNS {
        let mut of_sixty = 0;
        for _ in 0..ROUNDS {
            of_sixty += inversions().await;
        }
        println!("{what}: {of_sixty} of sixty pairs in the wrong order");
        if of_sixty <= FEW {
            return;
        }
    }
    panic!("{what}: served in the wrong order");
}

/// A time namespace's clock is days behind or ahead, as after the restoration of a
/// container elsewhere.
fn in_a_time_namespace(command: &Command, seconds: &str) -> Command {
    let mut unshare = Command::new("unshare");
    unshare.args(["-T", "--monotonic", seconds, "--"]);
    unshare.arg(command.get_program()).args(command.get_args());
    unshare.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    unshare
}

#[tokio::test]
async fn whose_clock_is_another_stands_in_the_same_line() {
    const TEST: &str = "whose_clock_is_another_stands_in_the_same_line";
    if let Some((role, path)) = support::role() {
        return wait_in_line(&role, &path).await;
    }
    let tried = in_a_time_namespace(&Command::new("true"), "1000").stderr(Stdio::null()).status();
    if !tried.is_ok_and(|status| status.success()) {
        return eprintln!("SKIPPED: this user may not make a time namespace (unshare -T)");
    }
    for kind in KINDS {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        // Whoever comes first is of a day after all that come later.
        let offsets = ["500000", "0", "400000", "86400", "274877"];
        let start = |number: usize, role: &str| {
            let player = player(TEST, role, &path);
            Process::start(in_a_time_namespace(&player, offsets[number]))
        };
        must_be_few(kind, async || inversions(kind, &path, start, |_| ()).await).await;
    }
}

/// A read lock of one byte, as of a contender of another process.
fn stand_at(directory: &Path, offset: u64) -> fs::File {
    let directory = fs::File::open(directory).unwrap();
    let lock = libc::flock {
        l_type: libc::F_RDLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: offset.try_into().expect("an offset"),
        l_len: 1,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&directory, nix::fcntl::FcntlArg::F_OFD_SETLK(&lock)).unwrap();
    directory
}

/// Where the numbers of a name begin is seen from who waits for it.
async fn first_offset(kind: &str, path: &Path, start: impl Fn(usize, &str) -> Process) -> u64 {
    let directory = path.parent().unwrap();
    fs::write(path.with_extension("log"), "").unwrap();
    let guard = hold(kind, path).await;
    let mut waiter = start(0, &format!("{kind} 0"));
    let offset = tickets_of(1, directory).pop_first();
    drop(guard);
    assert!(waiter.wait().success());
    offset.expect("its ticket") / NUMBERS * NUMBERS
}

#[tokio::test]
async fn a_line_goes_on_where_its_numbers_begin_anew() {
    const TEST: &str = "a_line_goes_on_where_its_numbers_begin_anew";
    if let Some((role, path)) = support::role() {
        return wait_in_line(&role, &path).await;
    }
    for kind in KINDS {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        let start = |_, role: &str| Process::play(TEST, role, &path);
        must_be_few(kind, async || {
            let base = first_offset(kind, &path, &start).await;
            // The first of ours comes after one who has the last number but two.
            let first = Cell::new(Some(stand_at(directory.path(), base + NUMBERS - 3)));
            let has_joined = |number| match number {
                0 => drop(first.take()),
                1..=3 => {}
                _ => {
                    let tickets = tickets_of(WAITERS, directory.path());
                    let numbers: BTreeSet<_> = tickets.iter().map(|offset| offset - base).collect();
                    assert_eq!(numbers, BTreeSet::from([0, 1, 2, NUMBERS - 2, NUMBERS - 1]));
                }
            };
            inversions(kind, &path, &start, has_joined).await
        })
        .await;
    }
}
