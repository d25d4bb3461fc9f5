//! What happens to held files when a process exits. The ends of `main` are
//! what is tested, so this target has a `main` of its own and no test harness.

// C's `atexit` and a raw fork are part of the scenes.
#![allow(unsafe_code)]

mod support;

use std::ffi::c_int;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lockkeeper::{AsyncFileLock, AtExit, FileGuard, FileOptions};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use support::Process;

const TESTS: [(&str, fn()); 9] = [
    ("remove_after_return_from_main", remove_after_return_from_main),
    ("remove_after_process_exit", remove_after_process_exit),
    ("remove_what_no_task_has_taken_yet", remove_what_no_task_has_taken_yet),
    ("remove_after_a_panic_in_main", remove_after_a_panic_in_main),
    ("remove_spares_a_file_that_is_not_ours", remove_spares_a_file_that_is_not_ours),
    ("leave_is_taken_over_with_a_recovery", leave_is_taken_over_with_a_recovery),
    ("the_exit_of_a_forked_child_removes_nothing", the_exit_of_a_forked_child_removes_nothing),
    ("exit_ends_while_threads_acquire_and_release", exit_ends_while_threads_acquire_and_release),
    (
        "only_remove_lets_in_before_all_threads_are_gone",
        only_remove_lets_in_before_all_threads_are_gone,
    ),
];

/// How often a process exits in the middle of acquisitions.
const EXITS: u32 = 50;

fn main() {
    if let Some((role, path)) = support::role() {
        return play(&role, path);
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--list") {
        return TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
    }
    let filters: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let is_wanted = |name: &str| {
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    };
    let (wanted, others): (Vec<_>, Vec<_>) = TESTS.iter().partition(|(name, _)| is_wanted(name));
    println!("\nrunning {} tests", wanted.len());
    let started = Instant::now();
    let mut failed = 0;
    for (name, test) in &wanted {
        let has_passed = catch_unwind(test).is_ok();
        println!("test {name} ... {}", if has_passed { "ok" } else { "FAILED" });
        failed += usize::from(!has_passed);
    }
    let outcome = if failed == 0 { "ok" } else { "FAILED" };
    let (passed, filtered) = (wanted.len() - failed, others.len());
    println!(
        "\ntest result: {outcome}. {passed} passed; {failed} failed; 0 ignored; 0 measured; \
         {filtered} filtered out; finished in {:.2}s\n",
        started.elapsed().as_secs_f64()
    );
    if failed > 0 {
        std::process::exit(101);
    }
}

fn lock(path: &Path, at_exit: AtExit) -> AsyncFileLock {
    let options = FileOptions::default().at_exit(at_exit).retry_period(Duration::from_millis(5));
    AsyncFileLock::with_options(path, options).unwrap()
}

/// What a role does up to the end of `main`. A guard that is not dropped is
/// held when the handlers run, as one in another thread would be.
fn play(role: &str, path: PathBuf) {
    let at_exit = if role.starts_with("leave") { AtExit::Leave } else { AtExit::Remove };
    let lock = lock(&path, at_exit);
    match role {
        "remove, return" | "leave, return" => hold(&lock),
        "remove, exit" => {
            hold(&lock);
            std::process::exit(7);
        }
        "remove, left" => leave_to_a_task_that_is_not_polled(&path),
        "remove, panic" => {
            hold(&lock);
            panic!("as it should");
        }
        "remove, replaced" => {
            hold(&lock);
            let other = path.with_extension("other");
            fs::write(&other, "somebody else's").unwrap();
            fs::rename(other, path).unwrap();
        }
        "remove, fork" => exit_in_a_child_first(&lock),
        "remove, threads" => exit_while_threads_contend(&lock, &path),
        "remove, window" | "leave, window" => exit_slowly_while_a_thread_writes(&lock, path),
        _ => panic!("no role {role:?}"),
    }
}

fn hold(lock: &AsyncFileLock) {
    std::mem::forget(lock.blocking_acquire().unwrap());
    assert!(lock.path().exists());
    support::tell("held");
}

fn leave_to_a_task_that_is_not_polled(path: &Path) {
    let options = FileOptions::default().at_exit(AtExit::Remove).local_handoff(support::VERY_LONG);
    let lock = AsyncFileLock::with_options(path, options).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut guard = lock.acquire().await.unwrap();
        for is_last in [false, true] {
            let mut next = Box::pin(lock.acquire());
            assert!(futures::poll!(&mut next).is_pending());
            guard.release().await.unwrap();
            assert!(path.exists(), "it is left to the next");
            if is_last {
                support::tell("held");
                std::process::exit(7);
            }
            guard = next.await.unwrap();
        }
    });
}

fn exit_in_a_child_first(lock: &AsyncFileLock) {
    hold(lock);
    // SAFETY: the other threads of this process are idle and keep no lock.
    match unsafe { fork() }.unwrap() {
        // Returns from `main`.
        ForkResult::Child => {}
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            support::tell("the child is gone");
            support::told();
        }
    }
}

fn exit_while_threads_contend(lock: &AsyncFileLock, path: &Path) {
    for name in ["a.lock", "b.lock", "a.lock"] {
        let lock = self::lock(&path.with_file_name(name), AtExit::Remove);
        std::thread::spawn(move || {
            loop {
                drop(lock.blocking_acquire().unwrap())
            }
        });
    }
    drop(lock.blocking_acquire().unwrap());
    std::thread::sleep(Duration::from_micros(RandomState::new().hash_one(0) % 5000));
}

unsafe extern "C" {
    safe fn atexit(handler: extern "C" fn()) -> c_int;
}

/// Handlers run in reverse order, so this one runs after the crate's.
extern "C" fn take_long() {
    support::tell("exiting");
    support::told();
}

fn exit_slowly_while_a_thread_writes(lock: &AsyncFileLock, path: PathBuf) {
    assert_eq!(atexit(take_long), 0);
    hold(lock);
    std::thread::spawn(move || {
        for count in 0_u64.. {
            fs::write(path.with_extension("page"), count.to_string()).unwrap();
        }
    });
}

/// Try once, as a successor.
fn successor(path: &Path) -> Option<FileGuard> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(lock(path, AtExit::Leave).try_acquire()).unwrap()
}

/// Play a role to its end; the directory and the exit code.
fn ends(role: &str) -> (tempfile::TempDir, Process, Option<i32>) {
    let directory = support::on_tmpfs();
    let mut process = Process::play("-", role, &directory.path().join("a.lock"));
    process.expect("held");
    let code = process.wait().code();
    (directory, process, code)
}

fn remove_after_return_from_main() {
    let (directory, _, code) = ends("remove, return");
    assert_eq!(code, Some(0));
    assert!(support::names_in(directory.path()).is_empty());
}

fn remove_what_no_task_has_taken_yet() {
    let (directory, _, code) = ends("remove, left");
    assert_eq!(code, Some(7));
    assert!(support::names_in(directory.path()).is_empty());
}

fn remove_after_process_exit() {
    let (directory, _, code) = ends("remove, exit");
    assert_eq!(code, Some(7));
    assert!(support::names_in(directory.path()).is_empty());
}

fn remove_after_a_panic_in_main() {
    let (directory, _, code) = ends("remove, panic");
    assert_eq!(code, Some(101));
    assert!(support::names_in(directory.path()).is_empty());
}

fn remove_spares_a_file_that_is_not_ours() {
    let (directory, _, code) = ends("remove, replaced");
    assert_eq!(code, Some(0));
    let left = fs::read_to_string(directory.path().join("a.lock")).unwrap();
    assert_eq!(left, "somebody else's");
}

fn leave_is_taken_over_with_a_recovery() {
    let (directory, process, code) = ends("leave, return");
    assert_eq!(code, Some(0));
    assert_eq!(support::names_in(directory.path()), ["a.lock"]);
    let guard = successor(&directory.path().join("a.lock")).expect("its holder is gone");
    assert_eq!(guard.recovered_from().unwrap().pid, Some(process.id()));
}

fn the_exit_of_a_forked_child_removes_nothing() {
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let mut parent = Process::play("-", "remove, fork", &path);
    parent.expect("held");
    parent.expect("the child is gone");
    assert_eq!(support::names_in(directory.path()), ["a.lock"]);
    assert!(successor(&path).is_none());
    assert!(parent.wait().success());
    assert!(support::names_in(directory.path()).is_empty());
}

fn exit_ends_while_threads_acquire_and_release() {
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    for _ in 0..EXITS {
        let mut process = Process::play("-", "remove, threads", &path);
        assert!(process.wait().success());
        drop(successor(&path).expect("nobody is left"));
        drop(successor(&path.with_file_name("b.lock")).expect("nobody is left"));
        let mut names = support::names_in(directory.path());
        if cfg!(lockkeeper_generic_unix) {
            // An exit in the middle of an acquisition leaves a candidate that has a name.
            names.retain(|name| !name.contains(".lock.new."));
        }
        assert!(names.is_empty(), "{names:?}");
    }
}

/// The documented window of `AtExit::Remove`, and that the default has none.
fn only_remove_lets_in_before_all_threads_are_gone() {
    for (role, is_let_in) in [("remove, window", true), ("leave, window", false)] {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        let page = path.with_extension("page");
        let mut process = Process::play("-", role, &path);
        process.expect("held");
        process.expect("exiting");
        let guard = successor(&path);
        assert_eq!(guard.is_some(), is_let_in, "{role}");
        let before = fs::read(&page).ok();
        support::eventually("the old process still writes", || fs::read(&page).ok() != before);
        drop(guard);
        assert!(process.wait().success());
        let guard = successor(&path).expect("the process is gone");
        assert_eq!(guard.recovered_from().is_some(), !is_let_in, "{role}");
    }
}
