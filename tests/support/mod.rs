//! What the tests share: directories, other processes, patience.

#![allow(dead_code, unreachable_pub)]

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, geteuid, setgid, setgroups, setuid};
use tempfile::TempDir;
use tracing::subscriber::{DefaultGuard, NoSubscriber, set_default};
use tracing::{Dispatch, Subscriber};

/// What must happen, happens within this time, even on a machine that is busy.
pub const VERY_LONG: Duration = Duration::from_secs(60);

/// A period that no test lives to see the end of.
pub const HOUR: Duration = Duration::from_secs(3600);

/// What must not happen would have happened within this time.
pub const QUIET: Duration = Duration::from_millis(400);

/// A fresh directory on tmpfs.
pub fn on_tmpfs() -> TempDir {
    TempDir::new_in("/dev/shm").expect("a directory on /dev/shm")
}

/// A fresh directory on the file system of the build directory.
pub fn on_disk() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory in the build directory")
}

/// The names in a directory, sorted.
pub fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("a directory to list");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// By a runtime of its own, on this thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(future)
}

/// Wait until `condition` holds, and fail after [`VERY_LONG`].
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + VERY_LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// [`eventually`] beside other tasks of this thread.
pub async fn eventually_async(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + VERY_LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What `/proc/locks` says of this file's locks of one kind, word by word.
pub fn kernel_locks(path: &Path, kind: &str) -> Vec<Vec<String>> {
    let inode = std::fs::metadata(path).expect("a file").ino();
    let locks = std::fs::read_to_string("/proc/locks").expect("/proc/locks");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<String>>();
    let is_of = |words: &Vec<String>| {
        let ends = |word: &String| word.ends_with(&format!(":{inode}"));
        words.iter().any(|word| word == kind) && words.iter().any(ends)
    };
    locks.lines().map(words).filter(is_of).collect()
}

/// All of these get the lock they wait for, with nothing but what the others do
/// to wake them: each says `held`, is told to let go, and says `released`. The
/// order is not promised: who is slow to wake is overtaken.
pub fn all_hold<'a>(line: impl IntoIterator<Item = &'a mut Process>) {
    let mut line: Vec<_> = line.into_iter().collect();
    line.iter_mut().for_each(|process| process.hang_up());
    for process in line {
        process.expect("held");
        process.expect("released");
    }
}

/// One more process that waits, behind `line`: it has a lock on the directory
/// that says when it came, and one that says what to watch.
pub fn join(line: &mut Vec<Process>, test: &str, role: &str, path: &Path) {
    line.push(Process::play(test, role, path));
    let (locks, directory) = (2 * line.len(), path.parent().expect("a directory"));
    eventually("it has its place", || kernel_locks(directory, "OFDLCK").len() == locks);
}

/// How often each of these has gone to sleep, once all sleep.
pub async fn settled_sleeps(processes: &[Process]) -> Vec<u64> {
    let sleeps = || processes.iter().map(Process::sleeps).collect::<Vec<u64>>();
    loop {
        let before = sleeps();
        tokio::time::sleep(QUIET).await;
        if sleeps() == before {
            return before;
        }
    }
}

/// Pass a lock to the first of a line, and compare how often others slept before and after.
/// A first one that is slow to wake is overtaken, and that wakes more: then it is repeated.
pub async fn until_first_holds(mut pass: impl AsyncFnMut() -> (bool, Vec<u64>, Vec<u64>)) {
    for _ in 0..20 {
        let (is_first, before, after) = pass().await;
        if is_first {
            assert_eq!(after, before);
            return;
        }
    }
    panic!("the first of a line is overtaken each time");
}

/// Processes that wait for `path` one behind the other.
pub fn line(test: &str, role: &str, path: &Path, length: usize) -> Vec<Process> {
    let mut line = Vec::new();
    (0..length).for_each(|_| join(&mut line, test, role, path));
    line
}

/// Have what this thread tells go there. Where there is one subscriber only,
/// `tracing` asks the first thread that comes to an event whether anybody wants
/// it, and that may be another test's: hence the second.
pub fn subscribe(subscriber: impl Subscriber + Send + Sync + 'static) -> DefaultGuard {
    static SECOND: OnceLock<Dispatch> = OnceLock::new();
    SECOND.get_or_init(|| Dispatch::new(NoSubscriber::new()));
    set_default(subscriber)
}

/// What this crate tells through `tracing`.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn subscriber(&self) -> impl Subscriber + Send + Sync + 'static + use<> {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE);
        subscriber.with_writer(move || log.clone()).with_ansi(false).finish()
    }

    /// Of all threads of this process, from now on.
    pub fn listen() -> Self {
        let log = Self::default();
        tracing::subscriber::set_global_default(log.subscriber()).expect("the only one");
        log
    }

    /// Of this thread alone.
    pub fn of_this_thread() -> (Self, DefaultGuard) {
        let log = Self::default();
        let guard = subscribe(log.subscriber());
        (log, guard)
    }

    /// How often it was warned of a wait that goes on though it cannot look.
    pub fn warnings(&self) -> usize {
        self.count("WARN", "the wait goes on")
    }

    /// How often a wait was told of.
    pub fn waits(&self) -> usize {
        self.count("DEBUG", ": waiting ")
    }

    /// How often a waiter looked at a lock and found it busy.
    pub fn looks(&self) -> usize {
        self.count("TRACE", " busy path=")
    }

    fn count(&self, level: &str, words: &str) -> usize {
        let text = String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned();
        text.lines().filter(|line| line.contains(level) && line.contains(words)).count()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The overflow user id: it owns nothing.
pub const NOBODY: u32 = 65534;

/// Become another user, who may not do all that root may.
pub fn become_user(id: u32) {
    if geteuid().is_root() {
        setgroups(&[]).unwrap();
        setgid(Gid::from_raw(id)).unwrap();
        setuid(Uid::from_raw(id)).unwrap();
        // Else /proc/self is root's.
        nix::sys::prctl::set_dumpable(true).unwrap();
    }
}

/// Set the permission bits, whatever the umask is.
pub fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A fresh directory on tmpfs with these permission bits.
pub fn with_mode(mode: u32) -> TempDir {
    let directory = on_tmpfs();
    chmod(directory.path(), mode);
    directory
}

/// Whether a test that needs other users, so root, can be made; says so if not.
pub fn has_two_users() -> bool {
    if !geteuid().is_root() {
        println!("skipped: without root there is only one user");
    }
    geteuid().is_root()
}

const ROLE: &str = "LOCKKEEPER_TEST_ROLE";
const PATH: &str = "LOCKKEEPER_TEST_PATH";

/// The part this process was started to play, and the path it was given.
///
/// A test that needs other processes runs its own binary again. It begins with
/// `if let Some((role, path)) = support::role() { return play(&role, &path); }`.
pub fn role() -> Option<(String, PathBuf)> {
    let role = std::env::var(ROLE).ok()?;
    Some((role, PathBuf::from(std::env::var_os(PATH)?)))
}

/// Tell the process that started this one.
pub fn tell(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "@{line}").and_then(|()| out.flush()).expect("somebody who listens");
}

/// Wait for a line from the process that started this one; `None` if it is gone.
pub fn told() -> Option<String> {
    let mut line = String::new();
    let length = std::io::stdin().lock().read_line(&mut line).expect("standard input");
    (length > 0).then(|| line.trim_end().to_owned())
}

/// The command that plays `role` of the test `test` in another process.
pub fn player(test: &str, role: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args([test, "--exact", "--nocapture", "--include-ignored", "--test-threads=1"]);
    command.env(ROLE, role).env(PATH, path);
    command
}

/// The command that runs another one as the first process of a pid namespace.
/// `None`, said clearly, where that is not allowed.
pub fn in_a_pid_namespace(command: &Command) -> Option<Command> {
    let as_root = ["-pf", "--mount-proc", "--kill-child"].as_slice();
    let as_user = ["-Urpf", "--mount-proc", "--kill-child"].as_slice();
    let unshare = |flags: &[&str]| {
        let mut unshare = Command::new("unshare");
        unshare.args(flags).arg("--");
        unshare
    };
    let is_allowed = |flags: &&[&str]| {
        let tried = unshare(flags).arg("true").stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    };
    let Some(flags) = [as_root, as_user].into_iter().find(is_allowed) else {
        eprintln!("SKIPPED: this user may not make a pid namespace (unshare -pf --mount-proc)");
        return None;
    };
    let mut unshare = unshare(flags);
    unshare.arg(command.get_program()).args(command.get_args());
    unshare.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Some(unshare)
}

/// Another process; killed when dropped.
pub struct Process {
    child: Child,
    input: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
}

impl Process {
    /// Start the player of a role.
    pub fn play(test: &str, role: &str, path: &Path) -> Self {
        Self::start(player(test, role, path))
    }

    /// Start a command whose lines that begin with `@` are meant for us.
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("a process");
        let output = child.stdout.take().expect("its output");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || forward(output, &sender));
        Self { input: child.stdin.take(), child, lines }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Wait for its next line to us.
    #[track_caller]
    pub fn next(&self) -> String {
        self.lines.recv_timeout(VERY_LONG).expect("a line from the other process")
    }

    /// Wait for its next line, which must be this one.
    #[track_caller]
    pub fn expect(&self, line: &str) {
        assert_eq!(self.next(), line);
    }

    /// It says nothing for a while.
    #[track_caller]
    pub fn expect_quiet(&self) {
        let heard = self.lines.recv_timeout(QUIET);
        assert_eq!(heard, Err(mpsc::RecvTimeoutError::Timeout), "it should have stayed quiet");
    }

    /// Send it a line.
    pub fn tell(&mut self, line: &str) {
        let input = self.input.as_mut().expect("its input is closed");
        writeln!(input, "{line}").and_then(|()| input.flush()).expect("it listens");
    }

    /// Close its standard input: [`told`] gives `None` there.
    pub fn hang_up(&mut self) {
        self.input = None;
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.id()).expect("a process id"));
        kill(pid, signal).expect("it can be signalled");
    }

    /// SIGSTOP, and wait until it has stopped.
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
        let stat = format!("/proc/{}/stat", self.id());
        eventually("it stops", || {
            std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "))
        });
    }

    /// How often its threads have gone to sleep, but for the one that closes idle files,
    /// which has its own time. One that ends meanwhile does not count.
    pub fn sleeps(&self) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.id())).expect("its threads");
        let of_task = |task: std::io::Result<std::fs::DirEntry>| {
            let status = std::fs::read_to_string(task.ok()?.path().join("status")).ok()?;
            if status.starts_with("Name:\tlockkeeper-idle\n") {
                return None;
            }
            let line =
                status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            Some(line?.trim().parse::<u64>().expect("a number"))
        };
        tasks.filter_map(of_task).sum()
    }

    /// SIGKILL, and wait until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        let status = self.child.wait().expect("it ends");
        assert_eq!(status.signal(), Some(9), "it ended before it was killed");
    }

    /// SIGKILL without waiting: a zombie stays.
    pub fn kill_leaving_a_zombie(&mut self) {
        self.child.kill().expect("it can be killed");
        let stat = format!("/proc/{}/stat", self.id());
        eventually("the process is a zombie, and its other threads are gone", || {
            let stat = std::fs::read_to_string(&stat).expect("nobody waits for it");
            // Of the fields behind the name: the state, and the number of threads.
            let fields = stat.rsplit(')').next().expect("fields");
            let fields: Vec<&str> = fields.split_whitespace().collect();
            (fields[0], fields[17]) == ("Z", "1")
        });
    }

    /// Wait until it ends by itself.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        self.input = None;
        let deadline = Instant::now() + VERY_LONG;
        loop {
            if let Some(status) = self.child.try_wait().expect("its status") {
                return status;
            }
            assert!(Instant::now() < deadline, "the other process does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn forward(output: ChildStdout, sender: &mpsc::Sender<String>) {
    for line in BufReader::new(output).lines() {
        let Ok(line) = line else { return };
        // libtest writes "test name ... " without an end before our first line.
        let Some((_, line)) = line.split_once('@') else { continue };
        if sender.send(line.to_owned()).is_err() {
            return;
        }
    }
}
