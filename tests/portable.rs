//! The portable protocol between processes: no kernel lock, no timing. Claims
//! of the dead are claimed, and what killed contenders leave is swept.

mod support;

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockkeeper::{AsyncFileLock, Evidence, FileGuard, FileOptions, Proof};
use support::Process;

const KILLS: usize = 100;

/// Acquisitions of each process where all of them live.
const TURNS: u32 = 300;

fn lock(path: &Path) -> AsyncFileLock {
    let options =
        FileOptions::default().proof(Proof::Process).retry_period(Duration::from_millis(1));
    AsyncFileLock::with_options(path, options).unwrap()
}

fn random(below: u64) -> u64 {
    RandomState::new().hash_one(0) % below
}

fn nap() {
    std::thread::sleep(Duration::from_micros(random(200)));
}

async fn next(lock: &AsyncFileLock) -> FileGuard {
    loop {
        // Without a pause, so that many are in the middle of a try at once.
        if let Some(guard) = lock.try_acquire().await.unwrap() {
            return guard;
        }
    }
}

fn hold(path: &Path) {
    let _guard = lock(path).blocking_acquire().unwrap();
    support::tell("held");
    support::told();
}

fn holder(test: &str, path: &Path) -> Process {
    let holder = Process::play(test, "holder", path);
    holder.expect("held");
    holder
}

/// Leave the lock file of a killed holder; who that was.
fn left_by_the_dead(test: &str, path: &Path) -> u32 {
    let mut dead = holder(test, path);
    dead.kill();
    dead.id()
}

/// Where the claim on the lock file at `path` is: see `src/file/protocol/portable.rs`.
fn claim_on(path: &Path, generation: &Path) -> PathBuf {
    let record = fs::read_to_string(generation).unwrap();
    let token = record.lines().find_map(|line| line.strip_prefix("token: ")).unwrap();
    PathBuf::from(format!("{}.break.{token}", path.display()))
}

#[tokio::test]
async fn two_never_hold() {
    const TEST: &str = "two_never_hold";
    if let Some((_, path)) = support::role() {
        let (lock, count) = (lock(&path), path.with_file_name("count"));
        for _ in 0..TURNS {
            let guard = next(&lock).await;
            let before: u32 = fs::read_to_string(&count).unwrap().parse().unwrap();
            nap();
            fs::write(&count, (before + 1).to_string()).unwrap();
            guard.release().await.unwrap();
        }
        return support::tell("done");
    }
    let directory = support::on_tmpfs();
    let (path, count) = (directory.path().join("a.lock"), directory.path().join("count"));
    fs::write(&count, "0").unwrap();
    let mut contenders = [(); 4].map(|()| Process::play(TEST, "contender", &path));
    for contender in &mut contenders {
        contender.expect("done");
        assert!(contender.wait().success());
    }
    assert_eq!(fs::read_to_string(&count).unwrap(), (4 * TURNS).to_string());
    assert_eq!(support::names_in(directory.path()), ["count"]);
}

#[tokio::test]
async fn each_kill_leaves_at_most_a_candidate_and_a_claim_and_all_are_swept() {
    const TEST: &str = "each_kill_leaves_at_most_a_candidate_and_a_claim_and_all_are_swept";
    if let Some((_, path)) = support::role() {
        let (lock, page) = (lock(&path), path.with_file_name("page"));
        support::tell("contends");
        for turn in 0.. {
            let guard = next(&lock).await;
            let mine = format!("{} for the {turn}th time", std::process::id());
            fs::write(&page, &mine).unwrap();
            let read = fs::read_to_string(&page).unwrap();
            if read != mine {
                fs::write(page.with_file_name("two inside"), format!("{mine}, {read}")).unwrap();
            }
            guard.release().await.unwrap();
        }
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let start = || Process::play(TEST, "contender", &path);
    let mut contenders = [(); 4].map(|()| start());
    for _ in 0..KILLS {
        let one = &mut contenders[random(4) as usize];
        one.expect("contends");
        std::thread::sleep(Duration::from_micros(random(10_000)));
        one.kill();
        *one = start();
    }
    for contender in &mut contenders {
        contender.expect("contends");
        contender.kill();
    }
    let names = support::names_in(directory.path());
    assert!(!names.contains(&"two inside".to_owned()));
    let count = |part: &str| names.iter().filter(|name| name.contains(part)).count();
    let (candidates, claims) = (count("a.lock.new."), count("a.lock.break."));
    println!("{KILLS} kills left {candidates} candidates and {claims} claims");
    assert!(candidates <= KILLS + 4 && claims <= KILLS + 4, "{names:?}");
    assert!(candidates > 0, "no contender was hit in the middle of a try");
    lock(&path).break_stale().await.unwrap();
    assert_eq!(support::names_in(directory.path()), ["page"]);
}

#[tokio::test]
async fn the_claim_of_a_dead_claimant_is_claimed() {
    const TEST: &str = "the_claim_of_a_dead_claimant_is_claimed";
    if let Some((_, path)) = support::role() {
        return tokio::task::spawn_blocking(move || hold(&path)).await.unwrap();
    }
    let directory = support::on_tmpfs();
    let [path, first, second] =
        ["a.lock", "first.lock", "second.lock"].map(|name| directory.path().join(name));
    let dead = left_by_the_dead(TEST, &path);
    left_by_the_dead(TEST, &first);
    left_by_the_dead(TEST, &second);
    fs::rename(&second, claim_on(&path, &first)).unwrap();
    fs::rename(&first, claim_on(&path, &path)).unwrap();
    let guard = lock(&path).try_acquire().await.unwrap().expect("all of them are dead");
    assert_eq!(guard.recovered_from().unwrap().pid, Some(dead));
    assert_eq!(support::names_in(directory.path()), ["a.lock"]);
    guard.release().await.unwrap();
    assert!(support::names_in(directory.path()).is_empty());
}

#[tokio::test]
async fn the_claim_of_a_living_claimant_is_busy_until_it_is_killed() {
    const TEST: &str = "the_claim_of_a_living_claimant_is_busy_until_it_is_killed";
    if let Some((_, path)) = support::role() {
        return tokio::task::spawn_blocking(move || hold(&path)).await.unwrap();
    }
    let directory = support::on_tmpfs();
    let [path, claimants] = ["a.lock", "claimant.lock"].map(|name| directory.path().join(name));
    let dead = left_by_the_dead(TEST, &path);
    let mut claimant = holder(TEST, &claimants);
    fs::rename(&claimants, claim_on(&path, &path)).unwrap();
    let lock = lock(&path);
    let refused = lock.acquire_timeout(support::QUIET).await.unwrap_err();
    let lockkeeper::Error::Timeout { holder, .. } = refused else { panic!("{refused}") };
    let holder = holder.unwrap();
    assert_eq!((holder.pid, holder.evidence), (Some(claimant.id()), Evidence::ProcessRuns));
    assert_eq!(support::names_in(directory.path()).len(), 2, "the refused leave nothing");
    claimant.kill();
    let guard = lock.try_acquire().await.unwrap().expect("the claimant is dead");
    assert_eq!(guard.recovered_from().unwrap().pid, Some(dead));
    assert_eq!(support::names_in(directory.path()), ["a.lock"]);
}

#[tokio::test]
async fn claims_on_claims_are_swept_when_their_lock_file_is_gone() {
    const TEST: &str = "claims_on_claims_are_swept_when_their_lock_file_is_gone";
    if let Some((_, path)) = support::role() {
        return tokio::task::spawn_blocking(move || hold(&path)).await.unwrap();
    }
    let directory = support::on_tmpfs();
    let [path, first, second] =
        ["a.lock", "first.lock", "second.lock"].map(|name| directory.path().join(name));
    for path in [&path, &first, &second] {
        left_by_the_dead(TEST, path);
    }
    fs::rename(&second, claim_on(&path, &first)).unwrap();
    fs::rename(&first, claim_on(&path, &path)).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(lock(&path).break_stale().await.unwrap(), None);
    assert_eq!(support::names_in(directory.path()), [""; 0]);
}
