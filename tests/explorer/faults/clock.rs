//! Clocks that do what clocks should not: the monotonic one stands still or is
//! hours on at the next reading, and the time of day goes both ways.

use std::cell::Cell;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::*;
use crate::file::options::SlowSystem;
use crate::file::protocol::YOUTH;
use crate::file::protocol::disk::Disk;

/// How a monotonic clock goes, between what is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gait {
    Steady,
    /// Not even while something is waited for.
    StandsStill,
    /// Hours on, at the reading with this number.
    LeapsAt(u32),
    LeapsAlways,
}

const LEAP: Duration = Duration::from_secs(5 * 3600);

/// The first second that there is, one of this decade and one of the next
/// century: what settimeofday(2) lets a clock be set to.
const SECONDS: [u64; 3] = [1_800_000_000, 0, 4_102_444_800];

/// Both clocks of one contender.
pub(super) struct Clocks {
    gait: Gait,
    monotonic: Cell<Instant>,
    readings: Cell<u32>,
    days: Cell<usize>,
}

impl Clocks {
    pub(super) fn new(gait: Gait) -> Self {
        // A hold so long that its revocation is looked for.
        let began = Instant::now() - Duration::from_secs(24 * 3600);
        let (readings, days) = (Cell::new(0), Cell::new(0));
        Self { gait, monotonic: Cell::new(began), readings, days }
    }

    pub(super) fn now(&self) -> Instant {
        let reading = self.readings.replace(self.readings.get() + 1);
        if self.gait == Gait::LeapsAlways || self.gait == Gait::LeapsAt(reading) {
            self.monotonic.set(self.monotonic.get() + LEAP);
        }
        self.monotonic.get()
    }

    pub(super) fn wait(&self, delay: Duration) {
        if self.gait != Gait::StandsStill {
            self.monotonic.set(self.monotonic.get() + delay);
        }
    }

    /// Another time of day at each reading, later or earlier.
    pub(super) fn day(&self) -> SystemTime {
        let reading = self.days.replace(self.days.get() + 1);
        UNIX_EPOCH + Duration::from_secs(SECONDS[reading % SECONDS.len()])
    }

    fn was_read_less_than(&self, readings: u32) -> bool {
        self.readings.get() < readings
    }
}

const GAITS: [Gait; 3] = [Gait::Steady, Gait::StandsStill, Gait::LeapsAlways];

/// More readings than any acquisition makes.
const READINGS_MAX: u32 = 40;

fn gaits() -> impl Iterator<Item = Gait> {
    GAITS.into_iter().chain((0..READINGS_MAX).map(Gait::LeapsAt))
}

/// Only where openlock's file is taken over does time decide anything.
#[test]
fn a_free_or_stale_lock_is_had_by_any_clock() {
    for case in CASES {
        for gait in gaits() {
            let context = format!("{}, {gait:?}", case.name);
            let disk = FaultyDisk::new();
            (case.prepare)(&disk);
            let before = disk.names();
            let environment = FaultySurroundings::by(Clocks::new(gait), 10);
            let is_foreign = case.name.contains("openlock");
            match acquire(&disk, case.pin, &environment) {
                Ok(Some(acquired)) => {
                    assert!(!is_foreign || gait != Gait::StandsStill, "{context}: too young");
                    must_hold(&disk, &acquired, &context);
                    acquired.lock_file.acknowledge_recovery();
                    acquired
                        .lock_file
                        .release()
                        .unwrap_or_else(|error| panic!("{context}: {error}"));
                    drop(acquired);
                    assert!(disk.names().is_empty(), "{context}: {:?}", disk.names());
                }
                Ok(None) => {
                    assert!(is_foreign && gait == Gait::StandsStill, "{context}: not acquired");
                    assert_eq!(disk.names(), before, "{context}");
                }
                Err(error) => panic!("{context}: {error}"),
            }
            assert_eq!(disk.open_files(), 0, "{context}: a descriptor stayed open");
            assert!(environment.clocks.was_read_less_than(READINGS_MAX), "{context}");
            must_go_on(&disk, case, &context);
        }
    }
}

/// A living holder of each kind, however long ago it says, or however far in
/// the future it says, it acquired.
#[test]
fn a_living_holder_keeps_its_lock_by_any_clock() {
    for second in SECONDS {
        let since = Some(UNIX_EPOCH + Duration::from_secs(second));
        for pin in [Proof::Auto, Proof::Process] {
            for gait in gaits() {
                let context = format!("{pin:?}, since {second}, {gait:?}");
                let disk = FaultyDisk::new();
                let holder = FaultySurroundings { since, ..FaultySurroundings::new(10) };
                let acquired = acquire(&disk, pin, &holder).unwrap().expect("it is free");
                for contender in [Proof::Auto, Proof::Process] {
                    let environment = FaultySurroundings::by(Clocks::new(gait), 100);
                    let second = acquire(&disk, contender, &environment);
                    assert!(
                        second.unwrap().is_none(),
                        "{context}: a second holder ({contender:?})"
                    );
                }
                must_hold(&disk, &acquired, &context);
                acquired.lock_file.acknowledge_recovery();
                acquired.lock_file.release().unwrap_or_else(|error| panic!("{context}: {error}"));
            }
        }
    }
}

/// openlock's living process, and files that come one after the other: what was
/// there too short is not old because a clock leapt.
#[test]
fn a_foreign_file_is_old_only_by_its_own_time() {
    let options = FileOptions::default();
    let foreign = |pid: u8| format!("{}\nsim\n", u32::from(pid) + 1);
    for gait in gaits() {
        let disk = FaultyDisk::new();
        disk.put(PATH.path(), foreign(LIVING).as_bytes());
        let living = acquire(&disk, Proof::Auto, &FaultySurroundings::by(Clocks::new(gait), 10));
        assert!(living.unwrap().is_none(), "{gait:?}: its process lives");
        let environment = FaultySurroundings::by(Clocks::new(gait), 10);
        let mut sightings = Sightings::default();
        for pid in [GONE, GONE + 1, GONE, GONE + 1] {
            disk.put(PATH.path(), foreign(pid).as_bytes());
            let mut attempt = Attempt::new(&disk, &environment, &PATH, &options, &mut sightings);
            let Ok(Outcome::Busy(busy)) = attempt.run() else {
                panic!("{gait:?}: a file that was never seen before was taken over");
            };
            assert!(busy.look_again.is_some(), "{gait:?}: {busy:?}");
        }
    }
}

/// A candidate that was made at one time of day and is used at another, later
/// or earlier, tells the time of its use.
#[test]
fn a_candidate_tells_when_it_was_used() {
    let options = FileOptions::default();
    for made in SECONDS {
        for used in SECONDS {
            let at = |second| Some(UNIX_EPOCH + Duration::from_secs(second));
            let disk = FaultyDisk::new();
            let mut sightings = Sightings::default();
            let early = FaultySurroundings { since: at(made), ..FaultySurroundings::new(10) };
            let mut attempt = Attempt::new(&disk, &early, &PATH, &options, &mut sightings);
            attempt.prepare_candidate();
            let candidate = attempt.into_candidate();
            assert!(candidate.is_some());
            let late = FaultySurroundings { since: at(used), ..FaultySurroundings::new(20) };
            let attempt = Attempt::new(&disk, &late, &PATH, &options, &mut sightings);
            let Ok(Outcome::Acquired(acquired)) = attempt.with_candidate(candidate).run() else {
                panic!("made at {made}, used at {used}: not acquired");
            };
            assert_eq!(acquired.lock_file.record().since, at(used), "made at {made}");
            must_hold(&disk, &acquired, &format!("made at {made}, used at {used}"));
        }
    }
}

/// Whether a hold was long enough for a request to release it to be looked for is
/// asked of the clock; from before the acquisition it is no time at all.
#[test]
fn a_file_is_handed_off_by_any_clock() {
    let disk = FaultyDisk::new();
    let environment = FaultySurroundings::new(10);
    let mut lock_file =
        acquire(&disk, Proof::Auto, &environment).unwrap().expect("it is free").lock_file;
    lock_file.acknowledge_recovery();
    let now = environment.now();
    let (earlier, later) = (now - LEAP, now + LEAP);
    assert!(lock_file.may_be_handed_off(earlier) && lock_file.may_be_handed_off(later));
    let [today, first, last] = SECONDS.map(|second| UNIX_EPOCH + Duration::from_secs(second));
    let holds = [(later, today), (earlier, today), (later, first), (earlier, last), (later, today)];
    for (hold_id, (point, since)) in (100..).zip(holds) {
        let last = PATH.revocation(lock_file.record().hold_id);
        disk.put(&last, b"");
        lock_file.take_handoff(|| Ok(drawn(hold_id)), since, || point).unwrap();
        assert_eq!(lock_file.record().hold_id, drawn(hold_id), "it is a hold of its own");
        assert_eq!(disk.unlink(&last).is_err(), point == later, "its end was late");
        assert!(lock_file.may_be_handed_off(point), "the same instant");
        assert_eq!(lock_file.record().since, Some(since));
        assert_eq!(lock_file.is_intact(), Ok(true), "the file says what the holder knows");
    }
    lock_file.release().unwrap();
}

/// What is cheaper to see is seen before each hand-off, what is dearer each time
/// that a look has become old.
#[test]
fn what_was_removed_is_not_handed_off_and_what_was_moved_not_for_long() {
    let old = Duration::from_millis(2);
    let other = PATH.directory().join("other");
    let acquired = || {
        let (disk, environment) = (FaultyDisk::new(), FaultySurroundings::new(10));
        let lock_file =
            acquire(&disk, Proof::Auto, &environment).unwrap().expect("it is free").lock_file;
        lock_file.acknowledge_recovery();
        (disk, lock_file, environment.now())
    };
    let (disk, mut lock_file, now) = acquired();
    assert!(lock_file.may_be_handed_off(now) && lock_file.may_be_handed_off(now + old));
    disk.unlink(PATH.path()).unwrap();
    assert!(!lock_file.may_be_handed_off(now + old), "removed");
    let (disk, mut lock_file, now) = acquired();
    disk.unlink(PATH.path()).unwrap();
    disk.put(PATH.path(), b"another's");
    assert!(!lock_file.may_be_handed_off(now), "replaced");
    let (disk, mut lock_file, now) = acquired();
    disk.link(PATH.path(), &other).unwrap();
    assert!(lock_file.may_be_handed_off(now), "it has another name as well");
    disk.unlink(PATH.path()).unwrap();
    assert!(lock_file.may_be_handed_off(now), "the look is new");
    assert!(
        lock_file.take_handoff(|| Ok(drawn(100)), UNIX_EPOCH, || now + old).is_err(),
        "moved since it was left"
    );
    for (time, is_seen) in [(Duration::ZERO, false), (Duration::from_micros(100), true)] {
        let (disk, mut lock_file, now) = acquired();
        assert!(lock_file.may_be_handed_off(now));
        disk.unlink(PATH.path()).unwrap();
        let since = lock_file.record().since.unwrap();
        let passed = lock_file.take_handoff(|| Ok(drawn(100)), since, || now + time);
        assert_eq!(passed.is_err(), is_seen, "removed since it was left, {time:?} ago");
    }
    let (disk, mut lock_file, now) = acquired();
    disk.rename(PATH.path(), &other).unwrap();
    assert!(!lock_file.may_be_handed_off(now + old), "moved");
}

/// A leap between the two readings of a takeover looks like a slow system. A user that
/// asked for an error has it, and the file goes on telling of the dead.
#[test]
fn a_leap_while_it_writes_is_a_slow_system() {
    let options = FileOptions::default().slow_system(SlowSystem::Error);
    let foreign = format!("{}\nsim\n", u32::from(GONE) + 1);
    let mut errors = 0;
    for reading in 0..READINGS_MAX {
        let disk = FaultyDisk::new();
        disk.put(PATH.path(), foreign.as_bytes());
        let environment = FaultySurroundings::by(Clocks::new(Gait::LeapsAt(reading)), 10);
        let mut sightings = Sightings::default();
        let ended = (0..TRIES).find_map(|_| {
            environment.clocks.wait(YOUTH);
            match Attempt::new(&disk, &environment, &PATH, &options, &mut sightings).run() {
                Ok(Outcome::Busy(_)) => None,
                other => Some(other),
            }
        });
        match ended.expect("its process is gone") {
            Ok(_) => continue,
            Err(error @ Error::SlowSystem { .. }) => {
                must_name_a_file(&error, "a leap");
                // Filled up, as it was written over a longer one.
                let mut rest = disk.content(PATH.path()).expect("it stays");
                assert!(rest.starts_with(foreign.as_bytes()), "leap at {reading}");
                assert!(rest.drain(foreign.len()..).all(|byte| byte == 0), "leap at {reading}");
                assert_eq!(disk.open_files(), 0);
                errors += 1;
            }
            Err(error) => panic!("leap at {reading}: {error}"),
        }
    }
    assert!(errors > 0, "no leap was between the two");
}

/// The fault and the clock, both at once.
#[test]
#[cfg_attr(debug_assertions, ignore = "slow: run it with --release")]
fn every_fault_is_survived_by_any_clock() {
    for case in CASES {
        for gait in [Gait::StandsStill, Gait::LeapsAlways] {
            let faults = all_faults(case, gait);
            println!("{:<36} {faults:>5} faults survived, {gait:?}", case.name);
            assert!(faults > 50, "{}: too few faults", case.name);
        }
    }
}
