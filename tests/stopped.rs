//! SIGSTOP: a stopped holder still holds, and a stopped contender that goes on
//! after others came and went does not get in beside them.

mod support;

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use lockkeeper::{AsyncFileLock, FileOptions, Proof};
use nix::sys::signal::Signal;
use support::Process;

/// As a role names it.
const PINS: [&str; 2] = ["pinned", "portable"];

/// How long contenders are stopped and resumed, for each kind of lock.
const STORM: Duration = Duration::from_secs(4);

fn lock(pin: &str, path: &Path) -> AsyncFileLock {
    let pin = if pin == "pinned" { Proof::KernelLock } else { Proof::Process };
    let options = FileOptions::default().proof(pin).retry_period(Duration::from_millis(5));
    AsyncFileLock::with_options(path, options).unwrap()
}

/// Acquire, say so, and hold until told.
fn hold((pin, path): (String, PathBuf)) {
    let guard = lock(&pin, &path).blocking_acquire().unwrap();
    support::tell(&format!("recovered: {}", guard.recovered_from().is_some()));
    support::told();
}

fn stop(process: &Process) {
    process.signal(Signal::SIGSTOP);
    let stat = format!("/proc/{}/stat", process.id());
    support::eventually("the process is stopped, or over", || {
        let stat = fs::read_to_string(&stat).unwrap();
        stat.contains(") T ") || stat.contains(") Z ")
    });
}

#[test]
fn a_stopped_holder_still_holds() {
    const TEST: &str = "a_stopped_holder_still_holds";
    if let Some(role) = support::role() {
        return hold(role);
    }
    for pin in PINS {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        let mut holder = Process::play(TEST, pin, &path);
        holder.expect("recovered: false");
        stop(&holder);
        let waiter = Process::play(TEST, pin, &path);
        waiter.expect_quiet();
        holder.signal(Signal::SIGCONT);
        waiter.expect_quiet();
        holder.hang_up();
        waiter.expect("recovered: false");
    }
}

#[test]
fn a_holder_stopped_and_then_killed_is_taken_over_from() {
    const TEST: &str = "a_holder_stopped_and_then_killed_is_taken_over_from";
    if let Some(role) = support::role() {
        return hold(role);
    }
    for pin in PINS {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        let mut holder = Process::play(TEST, pin, &path);
        holder.expect("recovered: false");
        stop(&holder);
        let waiter = Process::play(TEST, pin, &path);
        waiter.expect_quiet();
        holder.kill();
        waiter.expect("recovered: true");
    }
}

fn random(below: u64) -> u64 {
    RandomState::new().hash_one(0) % below
}

/// Contend until told to stop. Inside, write a page that a second holder
/// would spoil.
fn contend(pin: &str, path: &Path) {
    static IS_OVER: AtomicBool = AtomicBool::new(false);
    std::thread::spawn(|| {
        support::told();
        IS_OVER.store(true, Ordering::Relaxed);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let lock = lock(pin, path);
    let page = path.with_file_name("page");
    let (mut turns, mut recovered) = (0, 0);
    while !IS_OVER.load(Ordering::Relaxed) {
        // Without a pause, so that most stops hit it in the middle of a try.
        let Some(guard) = runtime.block_on(lock.try_acquire()).unwrap() else {
            continue;
        };
        turns += 1;
        if guard.recovered_from().is_some() {
            recovered += 1;
            if recovered == 1 {
                support::tell("took over");
            }
        }
        let mine = format!("{} for the {turns}th time", std::process::id());
        fs::write(&page, &mine).unwrap();
        std::thread::sleep(Duration::from_micros(random(200)));
        let read = fs::read_to_string(&page).unwrap();
        if read != mine {
            return support::tell(&format!("two inside: {mine:?} found {read:?}"));
        }
        drop(guard);
    }
    support::tell(&format!("{recovered} of {turns}"));
}

/// The record that a killed holder left.
fn record_of_the_dead(test: &str, pin: &str, directory: &Path) -> String {
    let path = directory.join("dead.lock");
    let mut holder = Process::play(test, &format!("{pin} holder"), &path);
    holder.expect("recovered: false");
    holder.kill();
    let record = fs::read_to_string(&path).unwrap();
    fs::remove_file(&path).unwrap();
    record
}

/// A stale lock file of a new generation whenever nobody holds: what a holder
/// leaves that is killed as soon as it is in. Until the sender is gone.
fn plant_stale_files(record: &str, path: &Path, over: &Receiver<()>) {
    let seed = path.with_file_name("seed");
    let (head, tail) = record.split_once("token: ").unwrap();
    while over.try_recv() == Err(TryRecvError::Empty) {
        let token = format!("{:016x}{:016x}", random(u64::MAX), random(u64::MAX));
        fs::write(&seed, format!("{head}token: {token}{}", &tail[32..])).unwrap();
        let _ = fs::hard_link(&seed, path);
        fs::remove_file(&seed).unwrap();
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Stop one contender after the other, wherever it is. How often somebody
/// acquired while another was stopped.
fn storm(contenders: &[Process], page: &Path) -> u32 {
    let mut overtaken = 0;
    let end = Instant::now() + STORM;
    while Instant::now() < end {
        let one = &contenders[random(contenders.len() as u64) as usize];
        stop(one);
        let before = fs::read(page).ok();
        std::thread::sleep(Duration::from_micros(random(10_000)));
        overtaken += u32::from(fs::read(page).ok() != before);
        one.signal(Signal::SIGCONT);
        std::thread::sleep(Duration::from_micros(random(2000)));
    }
    overtaken
}

fn two_never_hold(test: &str, pin: &str) {
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let record = record_of_the_dead(test, pin, directory.path());
    std::thread::scope(|scope| {
        let (_until_dropped, over) = channel();
        let contenders = [(); 4].map(|()| Process::play(test, pin, &path));
        scope.spawn(|| plant_stale_files(&record, &path, &{ over }));
        contenders.iter().for_each(|contender| contender.expect("took over"));
        let overtaken = storm(&contenders, &directory.path().join("page"));
        for mut contender in contenders {
            contender.hang_up();
            let said = contender.next();
            assert!(said.contains(" of "), "{said}");
            println!("recoveries of acquisitions: {said}");
        }
        println!("overtaken while stopped: {overtaken}");
        assert!(overtaken > 0, "nobody was ever stopped outside the lock");
    });
}

#[test]
fn a_stopped_breaker_does_not_get_in_beside_who_took_over_meanwhile() {
    const TEST: &str = "a_stopped_breaker_does_not_get_in_beside_who_took_over_meanwhile";
    if let Some((role, path)) = support::role() {
        return match role.strip_suffix(" holder") {
            Some(pin) => hold((pin.to_owned(), path)),
            None => contend(&role, &path),
        };
    }
    for pin in PINS {
        two_never_hold(TEST, pin);
    }
}
