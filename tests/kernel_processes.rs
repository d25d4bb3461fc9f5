//! Kernel locks between processes: exclusion, death, events, readers and
//! writers, forks.

// A raw fork is what is tested at the end.
#![allow(unsafe_code)]

mod support;

use std::cell::Cell;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lockkeeper::{AsyncKernelLock, Error, Evidence, KernelGuard, KernelOptions, Primitive};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use rustix::fs::{FlockOperation, flock};
use tokio::time::{sleep, timeout};

use support::{
    Process, VERY_LONG, block_on, eventually, kernel_locks, on_disk, on_tmpfs, role, tell, told,
};

const ALL: [&str; 4] = ["flock", "ofd", "kept", "deleted"];

fn lock(kind: &str, path: &Path) -> AsyncKernelLock {
    let options = KernelOptions::default();
    let options = match kind {
        "flock" => options,
        "ofd" => options.primitive(Primitive::Ofd),
        "head" => options.primitive(Primitive::Ofd).range(0..10),
        "tail" => options.primitive(Primitive::Ofd).range(20..30),
        "kept" => options.keep_open(true),
        "deleted" => options.delete_on_release(true),
        other => panic!("{other}?"),
    };
    AsyncKernelLock::with_options(path, options).expect("possible options")
}

/// It has the file open at its release, for a task that waits for other bytes.
async fn contend_for_the_tail(head: AsyncKernelLock) {
    let guard = head.acquire().await.expect("nothing is wrong");
    let tail = lock("tail", head.path());
    tokio::spawn(async move { drop(tail.acquire().await) });
    sleep(Duration::from_millis(100)).await;
    obey(Ok(guard)).await;
    told();
}

/// Roles `acquire KIND`, `share KIND`, `readers KIND`.
fn play((role, path): (String, std::path::PathBuf)) {
    let (verb, kind) = role.split_once(' ').expect("a verb and a kind");
    let lock = lock(kind, &path);
    block_on(async {
        match verb {
            "acquire" => obey(lock.acquire().await).await,
            "share" => obey(lock.acquire_shared().await).await,
            "readers" => read_without_a_pause(lock).await,
            "contend" => contend_for_the_tail(lock).await,
            other => panic!("{other}?"),
        }
    });
}

async fn obey(guard: Result<KernelGuard, Error>) {
    let mut guard = guard.expect("nothing is wrong");
    tell("held");
    while let Some(order) = told() {
        match order.as_str() {
            "downgrade" => guard = guard.downgrade().await.expect("nothing is wrong"),
            "release" => return guard.release().await.expect("nothing is wrong"),
            other => panic!("{other}?"),
        }
        tell("done");
    }
}

/// At any time some reader holds the lock, unless a writer is let in.
async fn read_without_a_pause(lock: AsyncKernelLock) {
    for number in 0..4 {
        let lock = lock.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(7 * number)).await;
            loop {
                let guard = lock.acquire_shared().await.expect("nothing is wrong");
                sleep(Duration::from_millis(25)).await;
                drop(guard);
            }
        });
    }
    sleep(Duration::from_millis(100)).await;
    tell("reading");
    tokio::task::spawn_blocking(told).await.expect("no panic");
    std::process::exit(0);
}

#[test]
fn what_another_process_holds_is_busy_until_it_releases_or_dies() {
    const TEST: &str = "what_another_process_holds_is_busy_until_it_releases_or_dies";
    if let Some(role) = role() {
        return play(role);
    }
    for directory in [on_tmpfs(), on_disk()] {
        for kind in ALL {
            for dies in [false, true] {
                let path = directory.path().join(kind);
                let mut holder = Process::play(TEST, &format!("acquire {kind}"), &path);
                holder.expect("held");
                let mut waiter = Process::play(TEST, &format!("acquire {kind}"), &path);
                waiter.expect_quiet();
                let ours = lock(kind, &path);
                assert!(block_on(ours.try_acquire()).unwrap().is_none());
                assert!(block_on(ours.try_acquire_shared()).unwrap().is_none());
                if dies {
                    holder.kill();
                } else {
                    holder.tell("release");
                }
                waiter.expect("held");
                waiter.tell("release");
                assert!(waiter.wait().success());
                let guard = block_on(ours.try_acquire()).unwrap().expect("all are gone");
                block_on(guard.release()).unwrap();
                assert_eq!(path.exists(), kind != "deleted");
            }
        }
    }
}

/// Looks without an event become seldom: after eleven seconds the next is some
/// nine seconds away, and whoever is woken before was woken by an event.
#[test]
fn a_release_and_a_death_are_events() {
    const TEST: &str = "a_release_and_a_death_are_events";
    if let Some(role) = role() {
        return play(role);
    }
    let directory = on_tmpfs();
    let wait = &|verb: &str, kind: &str, end: &str| {
        let path = directory.path().join(format!("{verb} {kind} {end}"));
        let tail = (verb == "contend").then(|| Process::play(TEST, "acquire tail", &path));
        tail.iter().for_each(|tail| tail.expect("held"));
        let mut holder = Process::play(TEST, &format!("{verb} {kind}"), &path);
        holder.expect("held");
        let waiter = lock(kind, &path);
        block_on(async {
            let acquire = async {
                if end == "downgrade" {
                    waiter.acquire_shared().await
                } else {
                    waiter.acquire().await
                }
            };
            let mut waiting = std::pin::pin!(acquire);
            assert!(timeout(Duration::from_secs(11), &mut waiting).await.is_err());
            match end {
                "kill" => holder.kill(),
                order => holder.tell(order),
            }
            let woken = timeout(Duration::from_secs(7), waiting).await;
            drop(woken.unwrap_or_else(|_| panic!("{verb} {kind} {end}: no event")).unwrap());
        });
    };
    std::thread::scope(|scope| {
        scope.spawn(|| wait("contend", "head", "release"));
        for kind in ["flock", "ofd"] {
            scope.spawn(move || wait("acquire", kind, "downgrade"));
        }
        for kind in ALL {
            for end in ["release", "kill"] {
                scope.spawn(move || wait("acquire", kind, end));
            }
        }
    });
}

#[test]
fn a_stopped_holder_holds() {
    const TEST: &str = "a_stopped_holder_holds";
    if let Some(role) = role() {
        return play(role);
    }
    let directory = on_tmpfs();
    for kind in ["flock", "ofd"] {
        let path = directory.path().join(kind);
        let mut holder = Process::play(TEST, &format!("acquire {kind}"), &path);
        holder.expect("held");
        holder.signal(Signal::SIGSTOP);
        let waiter = Process::play(TEST, &format!("acquire {kind}"), &path);
        waiter.expect_quiet();
        holder.signal(Signal::SIGCONT);
        holder.tell("release");
        waiter.expect("held");
    }
}

#[test]
fn the_holder_is_told_where_the_kernel_tells() {
    const TEST: &str = "the_holder_is_told_where_the_kernel_tells";
    if let Some(role) = role() {
        return play(role);
    }
    let directory = on_tmpfs();
    for kind in ALL {
        let path = directory.path().join(kind);
        let mut holder = Process::play(TEST, &format!("acquire {kind}"), &path);
        holder.expect("held");
        let seen = block_on(lock(kind, &path).holder()).unwrap().expect("it is held");
        let pid = Some(holder.id()).filter(|_| kind != "ofd");
        assert_eq!((seen.pid, seen.evidence), (pid, Evidence::KernelLock), "{kind}");
        holder.kill();
        assert_eq!(block_on(lock(kind, &path).holder()).unwrap(), None);
    }
}

#[test]
fn readers_without_a_pause_do_not_keep_a_writer_out() {
    const TEST: &str = "readers_without_a_pause_do_not_keep_a_writer_out";
    if let Some(role) = role() {
        return play(role);
    }
    let directory = on_tmpfs();
    for kind in ["flock", "ofd"] {
        let path = directory.path().join(kind);
        let readers = [0, 1, 2].map(|_| Process::play(TEST, &format!("readers {kind}"), &path));
        readers.iter().for_each(|readers| readers.expect("reading"));
        for _ in 0..3 {
            let guard = block_on(lock(kind, &path).acquire_timeout(VERY_LONG)).unwrap();
            drop(guard);
        }
    }
}

#[test]
fn a_writer_that_is_stopped_while_it_waits_does_not_keep_readers_out() {
    const TEST: &str = "a_writer_that_is_stopped_while_it_waits_does_not_keep_readers_out";
    if let Some(role) = role() {
        return play(role);
    }
    let directory = on_tmpfs();
    for kind in ["flock", "ofd"] {
        let path = directory.path().join(kind);
        let mut reader = Process::play(TEST, &format!("share {kind}"), &path);
        reader.expect("held");
        let writer = Process::play(TEST, &format!("acquire {kind}"), &path);
        eventually("it stands in line", || kernel_locks(directory.path(), "OFDLCK").len() == 2);
        writer.expect_quiet();
        writer.signal(Signal::SIGSTOP);
        let second = Process::play(TEST, &format!("share {kind}"), &path);
        second.expect_quiet();
        reader.tell("release");
        second.expect("held");
        writer.signal(Signal::SIGCONT);
        writer.expect_quiet();
        drop(second);
        writer.expect("held");
    }
}

#[test]
fn a_downgrade_lets_readers_of_other_processes_in() {
    const TEST: &str = "a_downgrade_lets_readers_of_other_processes_in";
    if let Some(role) = role() {
        return play(role);
    }
    let directory = on_tmpfs();
    for kind in ["flock", "ofd"] {
        let path = directory.path().join(kind);
        let mut holder = Process::play(TEST, &format!("acquire {kind}"), &path);
        holder.expect("held");
        let reader = Process::play(TEST, &format!("share {kind}"), &path);
        reader.expect_quiet();
        holder.tell("downgrade");
        holder.expect("done");
        reader.expect("held");
        assert!(block_on(lock(kind, &path).try_acquire()).unwrap().is_none());
    }
}

/// flock(2) does not promise it, so it is tried: a thread that tries for an
/// exclusive lock all the time never gets in between.
#[test]
fn nobody_gets_in_between_while_a_lock_is_downgraded() {
    let directory = on_tmpfs();
    for kind in ["flock", "ofd"] {
        let path = directory.path().join(kind);
        let ours = lock(kind, &path);
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let trier = scope.spawn(|| {
                let file = fs::File::options().create(true).append(true).open(&path).unwrap();
                let mut had = 0;
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    let had_it = kind == "flock"
                        && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
                    if had_it {
                        had += 1;
                        flock(&file, FlockOperation::Unlock).unwrap();
                    }
                }
                had
            });
            block_on(async {
                for _ in 0..2000 {
                    let guard = ours.acquire().await.unwrap();
                    let guard = guard.downgrade().await.expect("nobody got in between");
                    guard.release().await.unwrap();
                }
            });
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
            let had = trier.join().unwrap();
            eprintln!("{kind}: the other had it {had} times, never in between");
        });
    }
}

/// Keeping the file open must not keep those who wait asleep, nor hold the lock.
#[test]
fn a_file_that_is_kept_open_is_not_locked() {
    let directory = on_tmpfs();
    let path = directory.path().join("kept.lock");
    let kept = lock("kept", &path);
    block_on(async {
        drop(kept.acquire().await.unwrap());
        let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let links = open.filter_map(|entry| fs::read_link(entry.path()).ok());
        assert_eq!(links.filter(|link| *link == path).count(), 1);
        drop(lock("flock", &path).try_acquire().await.unwrap().expect("it is free"));
        // What was replaced meanwhile is not taken for the lock.
        fs::remove_file(&path).unwrap();
        let guard = kept.acquire().await.unwrap();
        assert!(path.exists());
        assert!(lock("flock", &path).try_acquire().await.unwrap().is_none());
        drop(guard);
    });
}

/// A holder that could only read the file gives no event to its directory when it
/// closes it, so the file itself is watched.
#[test]
fn who_waits_watches_the_file_itself() {
    const TEST: &str = "who_waits_watches_the_file_itself";
    if let Some(role) = role() {
        return play(role);
    }
    let directory = on_tmpfs();
    let path = directory.path().join("read.lock");
    fs::write(&path, "").unwrap();
    let holder = fs::File::open(&path).unwrap();
    flock(&holder, FlockOperation::LockExclusive).unwrap();
    let waiter = Process::play(TEST, "acquire flock", &path);
    let inode = format!("ino:{:x} ", holder.metadata().unwrap().ino());
    // inotify(7): what an instance watches.
    let is_watched = || {
        let descriptors = fs::read_dir(format!("/proc/{}/fdinfo", waiter.id())).unwrap();
        descriptors.flatten().any(|descriptor| {
            let info = fs::read_to_string(descriptor.path()).unwrap_or_default();
            info.lines().any(|line| line.starts_with("inotify") && line.contains(&inode))
        })
    };
    eventually("the file is watched", is_watched);
    drop(holder);
    waiter.expect("held");
}

#[test]
fn a_forked_child_ends_nothing() {
    const TEST: &str = "a_forked_child_ends_nothing";
    if let Some((kind, path)) = role() {
        let lock = lock(&kind, &path);
        let mut guard = Some(block_on(lock.acquire()).unwrap());
        for end in ["release", "drop", "downgrade"] {
            // SAFETY: the other threads of this process are idle and keep no lock.
            match unsafe { fork() }.unwrap() {
                ForkResult::Parent { child } => {
                    assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)), "{end}");
                }
                ForkResult::Child => {
                    let guard = guard.take().unwrap();
                    let _ = guard.as_fd();
                    let refused = match end {
                        "release" => block_on(guard.release()).err(),
                        "downgrade" => block_on(guard.downgrade()).err(),
                        _ => {
                            drop(guard);
                            std::process::exit(0);
                        }
                    };
                    std::process::exit(i32::from(!matches!(refused, Some(Error::Forked { .. }))));
                }
            }
        }
        tell("the children are gone");
        told();
        return block_on(guard.take().unwrap().release()).unwrap();
    }
    let directory = on_tmpfs();
    for kind in ALL {
        let path = directory.path().join(kind);
        let mut parent = Process::play(TEST, kind, &path);
        parent.expect("the children are gone");
        assert!(path.exists());
        assert!(block_on(lock(kind, &path).try_acquire()).unwrap().is_none(), "{kind}");
        parent.tell("release");
        assert!(parent.wait().success());
        assert!(block_on(lock(kind, &path).try_acquire()).unwrap().is_some());
    }
}

/// Who takes a lock over and over leaves it free now and then, for who sleeps in
/// the kernel for it. Seen by how often another task runs between two holds.
#[tokio::test]
async fn a_busy_process_stands_back() {
    let directory = on_tmpfs();
    let busy = lock("flock", &directory.path().join("busy.lock"));
    // The directory is looked at elsewhere.
    drop(busy.acquire().await.unwrap());
    // Runs of the other task, and how often there were many between two holds.
    let (runs, times) = (Cell::new(0u32), Cell::new(0));
    let passer_by = async {
        loop {
            runs.set(runs.get() + 1);
            tokio::task::yield_now().await;
        }
    };
    let start = std::time::Instant::now();
    let take_it_over_and_over = async {
        while times.get() < 5 {
            assert!(start.elapsed() < VERY_LONG, "it stood back {} times", times.get());
            let before = runs.get();
            drop(busy.acquire().await.unwrap());
            times.set(times.get() + u32::from(runs.get() - before >= 10));
        }
    };
    tokio::select! {
        () = passer_by => {}
        () = take_it_over_and_over => {}
    }
}

/// A thread that sleeps in flock(2) for an exclusive lock gets in beside readers that
/// never stop.
///
/// Their holds overlap, so the lock is free only where this process leaves it free on
/// purpose: without that the sleeper never got in within the limit.
#[test]
fn readers_that_never_stop_let_a_sleeper_in() {
    const TIMES: usize = 5;
    const READERS: u64 = 64;
    let directory = on_tmpfs();
    let path = directory.path().join("read.lock");
    let times = Arc::new(AtomicUsize::new(0));
    let _sleeper = std::thread::spawn({
        let (path, times) = (path.clone(), Arc::clone(&times));
        move || {
            while times.load(Ordering::Relaxed) < TIMES {
                std::thread::sleep(Duration::from_millis(20));
                let file = fs::File::create(&path).unwrap();
                flock(file, FlockOperation::LockExclusive).unwrap();
                times.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    for number in 0..READERS {
        let (lock, times) = (lock("flock", &path), Arc::clone(&times));
        let hold = Duration::from_micros(2000 + 37 * number);
        runtime.spawn(async move {
            while times.load(Ordering::Relaxed) < TIMES {
                let guard = lock.acquire_shared().await.unwrap();
                sleep(hold).await;
                drop(guard);
            }
        });
    }
    eventually("it gets in", || times.load(Ordering::Relaxed) == TIMES);
}

/// One that sleeps in flock(2) or fcntl(2) is let in by tasks that never stop.
#[test]
fn tasks_that_never_stop_let_a_sleeper_in() {
    for kind in ["flock", "ofd"] {
        must_let_sleepers_in(kind);
    }
}

fn sleep_for_all_bytes(file: &fs::File) {
    let claim = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLKW(&claim)).unwrap();
}

fn must_let_sleepers_in(kind: &str) {
    let directory = on_tmpfs();
    let path = directory.path().join("busy.lock");
    let busy = lock(kind, &path);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for _ in 0..8 {
        let busy = busy.clone();
        runtime.spawn(async move {
            loop {
                let guard = busy.acquire().await.unwrap();
                // It is locked again long before the sleeper has woken.
                std::thread::sleep(Duration::from_millis(1));
                drop(guard);
            }
        });
    }
    for _ in 0..5 {
        let (path, is_flock) = (path.clone(), kind == "flock");
        let sleeper = std::thread::spawn(move || {
            let file = fs::File::options().create(true).append(true).open(path).unwrap();
            match is_flock {
                true => flock(&file, FlockOperation::LockExclusive).unwrap(),
                false => sleep_for_all_bytes(&file),
            }
        });
        eventually("the sleeper is let in", || sleeper.is_finished());
    }
    runtime.shutdown_background();
}
