//! Signals whose handlers interrupt system calls: each call on files is made again.

mod strace_support;
mod support;

use std::fs;
use std::path::PathBuf;

use lockkeeper::{AsyncFileLock, AsyncKernelLock, FileOptions, KernelOptions, Primitive, Proof};
use strace_support::Faults;

/// All that may be called for a path or an open file, as strace(1) takes a set of names:
/// 32-bit systems have some of them with a number behind. On file systems that do not
/// wait most of them never are interrupted.
const CALLS: [&str; 18] = [
    "openat",
    "/^(new)?fstatat(64)?$",
    "/^fstat(64)?$",
    "statx",
    "linkat",
    "unlink",
    "unlinkat",
    "renameat2",
    "rename",
    "flock",
    "pwrite64",
    "pread64",
    "/^f?statfs(64)?$",
    "/^fcntl(64)?$",
    "getdents64",
    "getrandom",
    "/^faccessat2?$",
    "pidfd_open",
];

/// Everything that a lock of any kind does, once: acquired anew, taken over from a dead
/// holder, asked for its state, swept and released.
fn play((_, path): (String, PathBuf)) {
    let play = move || {
        let dead = [Proof::Auto, Proof::Process]
            .map(|pin| fs::read(path.with_extension(format!("{pin:?}"))).unwrap());
        // Before: not all of Tokio's own calls are made again.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        support::tell("ready");
        support::told();
        runtime.block_on(async {
            for (pin, dead) in [Proof::Auto, Proof::Process].into_iter().zip(dead) {
                let lock =
                    AsyncFileLock::with_options(&path, FileOptions::default().proof(pin)).unwrap();
                for _ in 0..2 {
                    lock.acquire().await.unwrap().release().await.unwrap();
                }
                fs::write(&path, dead).unwrap();
                lock.status().await.unwrap();
                let guard = lock.acquire().await.unwrap();
                assert!(guard.recovered_from().is_some());
                guard.release().await.unwrap();
                lock.break_stale().await.unwrap();
            }
            for primitive in [Primitive::Flock, Primitive::Ofd] {
                for deletes in [true, false] {
                    let options = KernelOptions::default().primitive(primitive);
                    let options = options.delete_on_release(deletes);
                    let lock = AsyncKernelLock::with_options(&path, options).unwrap();
                    for _ in 0..2 {
                        let guard = lock.acquire().await.unwrap();
                        lock.status().await.unwrap();
                        guard.release().await.unwrap();
                    }
                }
            }
        });
        support::tell("done");
    };
    std::thread::spawn(play).join().unwrap();
}

#[test]
fn every_call_on_files_is_made_again_when_a_signal_interrupts_it() {
    const TEST: &str = "every_call_on_files_is_made_again_when_a_signal_interrupts_it";
    if let Some(role) = support::role() {
        return play(role);
    }
    if !strace_support::is_there() {
        return;
    }
    let mut interrupted = 0;
    for call in CALLS {
        let directory = support::on_disk();
        let path = directory.path().join("a.lock");
        for (pin, recorded) in [("Auto", "flock"), ("Process", "none")] {
            let token = "0".repeat(32);
            let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
            let namespace =
                std::os::unix::fs::MetadataExt::ino(&fs::metadata("/proc/self/ns/pid").unwrap());
            let dead = format!(
                "4194304\nworker\ntoken: {token}\nboot: {boot}pidns: {namespace}\npin: {recorded}\n\
                 local: yes\n"
            );
            fs::write(path.with_extension(pin), dead).unwrap();
        }
        let mut process = support::Process::play(TEST, "all", &path);
        process.expect("ready");
        let trace = directory.path().join("trace");
        // Every other one, so that each fails once.
        let faults = Faults::of(process.id(), &trace, call, "error=EINTR:when=1+2");
        process.tell("go");
        assert_eq!(process.next(), "done", "{call}");
        assert!(process.wait().success(), "{call}");
        drop(faults);
        let trace = fs::read_to_string(&trace).unwrap_or_default();
        interrupted += usize::from(trace.contains("(INJECTED)"));
    }
    // Which of several like calls the C library has differs.
    assert!(interrupted >= 10, "only {interrupted} kinds of calls were interrupted");
}
