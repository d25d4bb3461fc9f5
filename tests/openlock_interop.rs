//! One path shared with the real Python openlock, 1.1.1 and 1.2.1.

mod support;

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lockkeeper::{AsyncFileLock, Error, Evidence, FileOptions};
use support::Process;

/// How long the two sides contend.
const CONTEST: Duration = Duration::from_secs(15);

/// And two openlock processes, where only a look is taken.
const LOOK: Duration = Duration::from_secs(10);

/// openlock's promise rests on timing: one contest at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn lock(path: &Path) -> AsyncFileLock {
    let options = FileOptions::default().openlock_compat(true);
    AsyncFileLock::with_options(path, options.retry_period(Duration::from_millis(20))).unwrap()
}

/// A process of this crate that openlock takes for alive.
fn ours(test: &str, role: &str, path: &Path) -> Process {
    let mut command = support::player(test, role, path);
    command.arg0("python-lockkeeper");
    Process::start(command)
}

fn openlock(version: &str, role: &str, path: &Path) -> Process {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join(format!("target/python/openlock-{version}/bin/python"));
    assert!(python.exists(), "{} is missing: run tests/setup.sh", python.display());
    let mut command = Command::new(python);
    command.arg(root.join("tests/openlock/player.py")).arg(role).arg(path);
    Process::start(command)
}

fn play((role, path): (String, PathBuf)) {
    match role.as_str() {
        "hold" => hold(&lock(&path)),
        "contend" => contend(&lock(&path)),
        "hold, not compatible" => hold(&AsyncFileLock::new(&path)),
        "try" => match lock(&path).blocking_acquire() {
            Err(Error::InvisibleToOpenlock { name, .. }) => support::tell(&name),
            other => support::tell(&format!("{other:?}")),
        },
        "be refused" => support::tell(&lock(&path).blocking_acquire().unwrap_err().to_string()),
        _ => panic!("no role {role:?}"),
    }
}

fn hold(lock: &AsyncFileLock) {
    let guard = lock.blocking_acquire().unwrap();
    match guard.recovered_from() {
        Some(dead) => support::tell(&format!("held, recovered from {}", dead.pid.unwrap())),
        None => support::tell("held"),
    }
    support::told();
}

/// As `contend` in player.py.
fn contend(lock: &AsyncFileLock) {
    static IS_OVER: AtomicBool = AtomicBool::new(false);
    std::thread::spawn(|| {
        support::told();
        IS_OVER.store(true, Ordering::Relaxed);
    });
    let inside = format!("{}.inside", lock.path().display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (mut entered, mut overlaps) = (0_usize, 0_u32);
    while !IS_OVER.load(Ordering::Relaxed) {
        let acquired = runtime.block_on(lock.acquire_timeout(Duration::from_secs(1)));
        let guard = match acquired {
            Ok(guard) => guard,
            Err(Error::Timeout { .. }) => continue,
            Err(error) => panic!("{error}"),
        };
        entered += 1;
        overlaps +=
            u32::from(OpenOptions::new().write(true).create_new(true).open(&inside).is_err());
        // Now and then long enough for who judged wrongly to get in beside us.
        std::thread::sleep(Duration::from_millis(if entered % 4 == 0 { 300 } else { 2 }));
        overlaps += u32::from(fs::remove_file(&inside).is_err());
        runtime.block_on(guard.release()).unwrap();
        // openlock polls, and we wake by events: without pauses it never gets in.
        std::thread::sleep(Duration::from_millis([400, 500, 600, 700][entered % 4]));
    }
    support::tell(&format!("{entered} {overlaps} 0"));
}

/// How often it entered, how often somebody else was inside as well, and how often
/// openlock was too slow for what it promises.
fn ask(mut contender: Process) -> [u32; 3] {
    contender.hang_up();
    let said = contender.next();
    let numbers: Vec<u32> = said.split(' ').map(|number| number.parse().expect(&said)).collect();
    numbers.try_into().expect("three numbers")
}

fn exclude_each_other(test: &str, version: &str) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut contests = 0;
    while !contest(test, version) {
        contests += 1;
        assert!(contests < 5, "openlock is too slow here");
    }
}

/// Whether they excluded each other. If not, openlock was too slow.
fn contest(test: &str, version: &str) -> bool {
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let ours = [(); 3].map(|()| ours(test, "contend", &path));
    let theirs = openlock(version, "contend", &path);
    std::thread::sleep(CONTEST);
    // A slow machine takes it longer to poll at the right moment.
    theirs.expect("entered");
    let theirs = ask(theirs);
    let ours = ours.map(ask);
    println!("openlock {version} (entered, overlaps, delays): {theirs:?}, ours: {ours:?}");
    assert!(theirs[0] > 0, "openlock never got in");
    assert!(ours.iter().map(|ours| ours[0]).sum::<u32>() > 0, "we never got in");
    let overlaps = theirs[1] + ours.iter().map(|ours| ours[1]).sum::<u32>();
    if overlaps > 0 {
        assert!(theirs[2] > 0, "{overlaps} overlaps");
        return false;
    }
    assert!(support::names_in(directory.path()).is_empty());
    true
}

#[test]
fn one_openlock_1_1_1_and_three_of_ours_exclude_each_other() {
    const TEST: &str = "one_openlock_1_1_1_and_three_of_ours_exclude_each_other";
    match support::role() {
        Some(role) => play(role),
        None => exclude_each_other(TEST, "1.1.1"),
    }
}

#[test]
fn one_openlock_1_2_1_and_three_of_ours_exclude_each_other() {
    const TEST: &str = "one_openlock_1_2_1_and_three_of_ours_exclude_each_other";
    match support::role() {
        Some(role) => play(role),
        None => exclude_each_other(TEST, "1.2.1"),
    }
}

fn take_over_from_each_other(test: &str, version: &str) {
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let mut dead = ours(test, "hold", &path);
    dead.expect("held");
    openlock(version, "who", &path).expect(&dead.id().to_string());
    let mut theirs = openlock(version, "hold", &path);
    theirs.expect_quiet();
    dead.kill();
    theirs.expect("held");

    let ours = ours(test, "hold", &path);
    ours.expect_quiet();
    theirs.kill();
    ours.expect(&format!("held, recovered from {}", theirs.id()));
    openlock(version, "who", &path).expect(&ours.id().to_string());
}

#[test]
fn openlock_1_1_1_and_we_take_over_from_each_others_dead() {
    const TEST: &str = "openlock_1_1_1_and_we_take_over_from_each_others_dead";
    match support::role() {
        Some(role) => play(role),
        None => take_over_from_each_other(TEST, "1.1.1"),
    }
}

#[test]
fn openlock_1_2_1_and_we_take_over_from_each_others_dead() {
    const TEST: &str = "openlock_1_2_1_and_we_take_over_from_each_others_dead";
    match support::role() {
        Some(role) => play(role),
        None => take_over_from_each_other(TEST, "1.2.1"),
    }
}

#[tokio::test]
async fn a_living_openlock_holder_is_seen_and_waited_for() {
    for version in ["1.1.1", "1.2.1"] {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        let mut theirs = openlock(version, "hold", &path);
        theirs.expect("held");
        // Waiting for it takes no compatibility; holding beside it would.
        let lock = AsyncFileLock::new(&path);
        assert!(lock.try_acquire().await.unwrap().is_none());
        let holder = lock.holder().await.unwrap().unwrap();
        assert_eq!((holder.pid, holder.name.as_deref()), (Some(theirs.id()), Some("player")));
        assert_eq!(holder.evidence, Evidence::ProcessRuns);
        assert!(holder.is_foreign());
        theirs.tell("release");
        theirs.expect("released");
        assert!(lock.try_acquire().await.unwrap().is_some());
    }
}

// Its name, an argument of the process, must not make it visible.
#[test]
fn a_holder_that_openlock_could_not_see_is_refused() {
    const TEST: &str = "a_holder_that_openlock_could_not_see_is_refused";
    if let Some(role) = support::role() {
        return play(role);
    }
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let mut command = support::player(TEST, "try", &path);
    command.arg0("lockkeeper-worker");
    Process::start(command).expect("lockkeeper-worker");
    assert!(support::names_in(directory.path()).is_empty());
}

/// The refusal says how to be started, and openlock sees a holder that was started so.
#[test]
fn the_remedy_that_the_refusal_names_is_one() {
    const TEST: &str = "the_remedy_that_the_refusal_names_is_one";
    if let Some(role) = support::role() {
        return play(role);
    }
    for version in ["1.1.1", "1.2.1"] {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        let mut command = support::player(TEST, "be refused", &path);
        command.arg0("importer");
        let refusal = Process::start(command).next();
        let (_, remedy) = refusal.split_once("`exec -a ").expect(&refusal);
        let name = remedy.split(' ').next().expect("a name");
        assert!(refusal.contains(&format!("`ExecStart=@PROGRAM {name}`")), "{refusal}");
        let ours = Process::start(exec_as(name, &support::player(TEST, "hold", &path)));
        ours.expect("held");
        openlock(version, "who", &path).expect(&ours.id().to_string());
        openlock(version, "hold", &path).expect_quiet();
    }
}

/// As a shell starts a program under a name.
fn exec_as(name: &str, program: &Command) -> Command {
    let mut shell = Command::new("bash");
    shell.args(["-c", r#"exec -a "$0" "$@""#, name]);
    shell.arg(program.get_program()).args(program.get_args());
    let variables = program.get_envs();
    shell.envs(variables.filter_map(|(name, value)| Some((name, value?))));
    shell
}

/// Nothing is asserted of what openlock does: this is what users are warned of.
#[test]
fn openlock_takes_the_lock_of_a_holder_that_it_does_not_see() {
    const TEST: &str = "openlock_takes_the_lock_of_a_holder_that_it_does_not_see";
    const TRIES: usize = 10;
    if let Some(role) = support::role() {
        return play(role);
    }
    let took = (0..TRIES).filter(|_| {
        let directory = support::on_tmpfs();
        let path = directory.path().join("a.lock");
        let mut command = support::player(TEST, "hold, not compatible", &path);
        command.arg0("importer");
        let ours = Process::start(command);
        ours.expect("held");
        openlock("1.2.1", "once", &path).next() == "held"
    });
    println!("openlock 1.2.1 took the lock of a living holder {} of {TRIES} times", took.count());
}

/// Nothing is asserted of what openlock does: it is a race, which needs a slow
/// system to be seen soon (`slow` in player.py), and the reason why there must
/// be at most one openlock process on a path.
#[test]
fn two_openlock_processes_can_both_hold() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = support::on_tmpfs();
    let path = directory.path().join("a.lock");
    let two = [(); 2].map(|()| openlock("1.2.1", "slow", &path));
    std::thread::sleep(LOOK);
    let two = two.map(ask);
    let overlaps: u32 = two.iter().map(|one| one[1]).sum();
    println!("two openlock 1.2.1 processes (entered, overlaps, delays): {two:?}");
    println!("overlaps seen: {overlaps}");
}
