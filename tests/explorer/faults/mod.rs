//! Every fault: each call in turn fails, with each error it can plausibly have,
//! once and from then on for ever. Whatever happens, no process believes to hold
//! what he does not, nothing panics, every descriptor is closed, every error
//! names a file, nothing is left that could have been removed, and the next
//! contender gets in once the disk works again.

mod clock;
mod disk;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Instant, SystemTime};

use clock::{Clocks, Gait};
use disk::{Call, Effect, Fault, FaultyDisk};

use super::vocabulary::{PATH, drawn, record};
use crate::file::options::{FileOptions, Proof};
use crate::file::protocol::disk::Disk as _;
use crate::file::protocol::{
    Acquired, Attempt, Environment, Outcome, PROBE_PASSES, Sightings, Survival,
};
use crate::file::record::{Contents, Record, RecordedProof};
use crate::local::hold_id::HoldId;
use crate::lock::error::Error;
use crate::lock::holder::Status;
use crate::sys::process_key::{ProcessKey, this_process};
use crate::sys::verdict::Verdict;

/// The process under test, and one that is gone.
const LIVING: u8 = 7;
const GONE: u8 = 9;

/// Tries of one contender: more than any fault that happens once can spoil.
const TRIES: u32 = 8;

struct FaultySurroundings {
    clocks: Clocks,
    hold_id: Cell<u8>,
    /// Whether the kernel has random bits.
    has_bits: bool,
    /// What it says it acquired at; without, what its clock says then.
    since: Option<SystemTime>,
}

impl FaultySurroundings {
    /// The first id that it draws.
    fn new(hold_id: u8) -> Self {
        Self::by(Clocks::new(Gait::Steady), hold_id)
    }

    /// The same by these clocks.
    fn by(clocks: Clocks, hold_id: u8) -> Self {
        Self { clocks, hold_id: Cell::new(hold_id), has_bits: true, since: None }
    }
}

impl Environment for FaultySurroundings {
    fn judge(&self, contents: &Contents, _: bool) -> Verdict {
        let pid = match contents {
            Contents::Ours(record) => record.pid,
            Contents::Torn { pid, .. } | Contents::OpenLock { pid, .. } => *pid,
            Contents::BarePid(pid) => *pid,
            Contents::Empty => return Verdict::Dead("nobody".to_owned()),
        };
        // A torn number is that of a process that is long gone.
        let is_living = pid == u32::from(LIVING) + 1;
        if is_living { Verdict::Alive } else { Verdict::Dead("gone".to_owned()) }
    }

    fn process(&self) -> ProcessKey {
        this_process()
    }

    fn hold_id(&self) -> Result<HoldId, rustix::io::Errno> {
        if !self.has_bits {
            return Err(rustix::io::Errno::NOSYS);
        }
        self.hold_id.set(self.hold_id.get().wrapping_add(1));
        Ok(drawn(self.hold_id.get()))
    }

    fn record(&self, hold_id: HoldId, proof: RecordedProof, _: &FileOptions) -> Record {
        let since = Some(self.since.unwrap_or_else(|| self.clocks.day()));
        Record { since, ..record(LIVING, hold_id, proof) }
    }

    fn now(&self) -> Instant {
        self.clocks.now()
    }
}

/// What is there before, and which contender comes.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    pin: Proof,
    prepare: fn(&FaultyDisk),
}

const CASES: [Case; 12] = [
    Case { name: "pinned, nothing there", pin: Proof::Auto, prepare: |_| {} },
    Case {
        name: "pinned, stale",
        pin: Proof::Auto,
        prepare: |disk| stale(disk, RecordedProof::Flock),
    },
    Case {
        name: "pinned, no unnamed files",
        pin: Proof::Auto,
        prepare: |disk| disk.deny(Call::CreateUnnamed, rustix::io::Errno::OPNOTSUPP),
    },
    Case {
        name: "pinned, stale and not writable",
        pin: Proof::Auto,
        prepare: |disk| {
            stale(disk, RecordedProof::Flock);
            disk.deny(Call::OpenForWriting, rustix::io::Errno::ACCESS);
        },
    },
    Case {
        name: "pinned, openlock's stale file",
        pin: Proof::Auto,
        prepare: |disk| disk.put(PATH.path(), format!("{}\nsim\n", GONE + 1).as_bytes()),
    },
    Case { name: "pinned, no hard links", pin: Proof::Auto, prepare: no_links },
    Case { name: "portable, no hard links", pin: Proof::Process, prepare: no_links },
    Case {
        name: "portable, stale, no hard links",
        pin: Proof::Process,
        prepare: |disk| {
            stale(disk, RecordedProof::Process);
            no_links(disk);
        },
    },
    Case { name: "portable, nothing there", pin: Proof::Process, prepare: |_| {} },
    Case {
        name: "portable, stale",
        pin: Proof::Process,
        prepare: |disk| stale(disk, RecordedProof::Process),
    },
    Case {
        name: "portable, stale and a dead claim",
        pin: Proof::Process,
        prepare: |disk| {
            stale(disk, RecordedProof::Process);
            let claimant = record(GONE, drawn(1), RecordedProof::Process).to_bytes();
            disk.put(&PATH.claim(drawn(0)), &claimant);
        },
    },
    Case {
        name: "no kernel locks",
        pin: Proof::Auto,
        prepare: |disk| {
            stale(disk, RecordedProof::Process);
            disk.deny(Call::Flock, rustix::io::Errno::OPNOTSUPP);
        },
    },
];

fn stale(disk: &FaultyDisk, proof: RecordedProof) {
    disk.put(PATH.path(), &record(GONE, drawn(0), proof).to_bytes());
}

fn no_links(disk: &FaultyDisk) {
    disk.deny(Call::LinkUnnamed, rustix::io::Errno::PERM);
    disk.deny(Call::Link, rustix::io::Errno::PERM);
}

/// One contender, as [`contender`](crate::file::contender) has it; what it ended with.
fn acquire(
    disk: &FaultyDisk,
    pin: Proof,
    environment: &FaultySurroundings,
) -> Result<Option<Acquired<FaultyDisk>>, Error> {
    let options = FileOptions { proof: pin, ..FileOptions::default() };
    let mut sightings = Sightings::default();
    let wait = |delay| environment.clocks.wait(delay);
    for _ in 0..TRIES {
        match Attempt::new(disk, environment, &PATH, &options, &mut sightings).run()? {
            Outcome::Acquired(acquired) => return Ok(Some(acquired)),
            Outcome::Probation(acquired, delay) => {
                wait(delay);
                if crate::file::protocol::survived(disk, &acquired.lock_file) == Survival::Held {
                    return Ok(Some(acquired));
                }
            }
            Outcome::Busy(busy) => match busy.look_again {
                Some(delay) if delay > PROBE_PASSES => wait(delay),
                _ => {}
            },
        }
    }
    Ok(None)
}

/// A process that believes to hold must hold.
fn must_hold(disk: &FaultyDisk, acquired: &Acquired<FaultyDisk>, context: &str) {
    let bytes = disk.content(PATH.path());
    let bytes = bytes.unwrap_or_else(|| panic!("{context}: held, and nothing is there"));
    assert_eq!(bytes, acquired.lock_file.record().to_bytes(), "{context}: another's record");
    if acquired.lock_file.record().proof == RecordedProof::Flock {
        assert!(disk.is_locked(PATH.path()), "{context}: held, and not locked");
    }
}

fn must_name_a_file(error: &Error, context: &str) {
    let path = error.path().unwrap_or_else(|| panic!("{context}: {error:?} names no path"));
    assert!(path.starts_with(PATH.directory()), "{context}: {}", path.display());
    assert!(error.to_string().contains("/locks/"), "{context}: {error}");
}

/// One acquisition and release with one fault.
fn suffer(case: Case, fault: Fault, gait: Gait) -> bool {
    let context = format!("{}, {fault:?}, {gait:?}", case.name);
    let disk = FaultyDisk::new();
    (case.prepare)(&disk);
    let before = disk.names();
    disk.inject(fault);
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let environment = FaultySurroundings::by(Clocks::new(gait), 10);
        let options = FileOptions { proof: case.pin, ..FileOptions::default() };
        let mut sightings = Sightings::default();
        let probe = Attempt::new(&disk, &environment, &PATH, &options, &mut sightings);
        if let Err(error) = probe.probe() {
            must_name_a_file(&error, &context);
        }
        match acquire(&disk, case.pin, &environment) {
            Ok(None) => assert!(
                !(disk.was_hit() && is_only_unheard(fault)),
                "{context}: it was done, and not had"
            ),
            Ok(Some(acquired)) => {
                must_hold(&disk, &acquired, &context);
                acquired.lock_file.acknowledge_recovery();
                if let Err(error) = acquired.lock_file.release() {
                    must_name_a_file(&error, &context);
                }
            }
            Err(error) => {
                must_name_a_file(&error, &context);
                assert!(
                    !(disk.was_hit() && is_only_unheard(fault)),
                    "{context}: it was done, and {error}"
                );
            }
        }
    }));
    assert!(ran.is_ok(), "{context}: it panicked");
    let was_hit = disk.heal();
    assert_eq!(disk.open_files(), 0, "{context}: a descriptor stayed open");
    must_leave_no_litter(&disk, &before, fault, &context);
    must_go_on(&disk, case, &context);
    was_hit
}

/// A name that was made, whatever the answer said.
fn is_only_unheard(fault: Fault) -> bool {
    let makes_a_name =
        matches!(fault.call, Call::LinkUnnamed | Call::Link | Call::Rename | Call::RenameToFree);
    makes_a_name && matches!(fault.effect, Effect::DoneAnd(_))
}

/// Only what could not be unlinked, or was made unknown to all.
fn must_leave_no_litter(disk: &FaultyDisk, before: &BTreeSet<String>, fault: Fault, context: &str) {
    let cannot_remove = matches!(fault.call, Call::Unlink | Call::Look);
    if cannot_remove || matches!(fault.effect, Effect::DoneAnd(_)) {
        return;
    }
    let litter: Vec<_> = disk.names().difference(before).cloned().collect();
    assert!(litter.is_empty(), "{context}: left {litter:?}");
    if let Some(bytes) = disk.content(PATH.path()) {
        assert!(
            Contents::parse(&bytes).is_ok(),
            "{context}: {:?}",
            String::from_utf8_lossy(&bytes)
        );
    }
}

/// The process is over and another comes: it gets in, and a sweep clears up.
fn must_go_on(disk: &FaultyDisk, case: Case, context: &str) {
    disk.bury(LIVING, GONE);
    let environment = FaultySurroundings::new(100);
    let acquired = acquire(disk, case.pin, &environment);
    let acquired = acquired.unwrap_or_else(|error| panic!("{context}: then {error}"));
    let acquired = acquired.unwrap_or_else(|| panic!("{context}: nobody gets in any more"));
    must_hold(disk, &acquired, context);
    acquired.lock_file.acknowledge_recovery();
    acquired.lock_file.release().unwrap_or_else(|error| panic!("{context}: then {error}"));
    drop(acquired);
    let options = FileOptions { proof: case.pin, ..FileOptions::default() };
    let mut sightings = Sightings::default();
    let swept = Attempt::new(disk, &environment, &PATH, &options, &mut sightings).sweep();
    assert!(swept.is_ok(), "{context}: {swept:?}");
    assert!(disk.names().is_empty(), "{context}: {:?} stay for ever", disk.names());
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: run it with --release")]
fn every_fault_is_survived() {
    for case in CASES {
        let faults = all_faults(case, Gait::Steady);
        println!("{:<36} {faults:>5} faults survived", case.name);
        assert!(faults > 50, "{}: too few faults", case.name);
    }
}

/// How many faults there were.
fn all_faults(case: Case, gait: Gait) -> u32 {
    let mut faults = 0;
    for call in Call::ALL {
        for &effect in call.effects() {
            for is_for_ever in [false, true] {
                faults += each_turn(case, Fault { call, turn: 0, effect, is_for_ever }, gait);
            }
        }
    }
    faults
}

/// The first such call fails, then the second, until there is none.
fn each_turn(case: Case, fault: Fault, gait: Gait) -> u32 {
    let mut turn = 0;
    while suffer(case, Fault { turn, ..fault }, gait) {
        turn += 1;
        assert!(turn < 1000, "{}: {fault:?} has no end", case.name);
    }
    turn
}

/// A user that asks for a kernel lock gets none of the other kind, nor one next to openlock.
#[test]
fn without_kernel_locks_who_needs_them_is_told() {
    let needing = [
        FileOptions::default().proof(Proof::KernelLock),
        FileOptions::default().openlock_compat(true),
    ];
    for options in needing {
        for prepare in [|_: &FaultyDisk| {}, |disk: &FaultyDisk| stale(disk, RecordedProof::Flock)]
        {
            let disk = FaultyDisk::new();
            prepare(&disk);
            let before = disk.names();
            disk.deny(Call::Flock, rustix::io::Errno::OPNOTSUPP);
            let environment = FaultySurroundings::new(10);
            let mut sightings = Sightings::default();
            let mut attempt = Attempt::new(&disk, &environment, &PATH, &options, &mut sightings);
            let error = attempt.run().err().expect("there is no flock");
            assert!(matches!(error, Error::KernelLockUnavailable { .. }), "{error:?}");
            assert_eq!(disk.names(), before);
            assert_eq!(disk.open_files(), 0);
        }
    }
}

/// Nothing is made, and the error names the lock.
#[test]
fn without_random_bits_whoever_acquires_is_told() {
    for pin in [Proof::Auto, Proof::Process] {
        let disk = FaultyDisk::new();
        let environment = FaultySurroundings { has_bits: false, ..FaultySurroundings::new(10) };
        let error = acquire(&disk, pin, &environment).err().expect("there are no random bits");
        must_name_a_file(&error, "no random bits");
        assert!(disk.names().is_empty() && disk.open_files() == 0);
    }
}

/// One that is gone for a moment is looked for again.
#[test]
fn a_file_that_stays_gone_from_its_server_is_an_error() {
    for (is_for_ever, call) in [(false, Call::Read), (true, Call::Read), (true, Call::Look)] {
        let disk = FaultyDisk::new();
        stale(&disk, RecordedProof::Flock);
        let effect = Effect::Error(rustix::io::Errno::STALE);
        disk.inject(Fault { call, turn: 0, effect, is_for_ever });
        let acquired = acquire(&disk, Proof::Auto, &FaultySurroundings::new(10));
        assert_eq!(acquired.is_err(), is_for_ever);
        let message = acquired.err().map(|error| error.to_string());
        assert!(message.is_none_or(|message| message.contains("gone from the server")));
    }
}

/// Where an unlock is an event, two waiters that lock what they look at would wake each other
/// without end.
#[cfg(lockkeeper_generic_unix)]
#[test]
fn a_holder_whose_life_no_flock_proves_is_seen_without_one() {
    let ours = record(LIVING, drawn(0), RecordedProof::Process).to_bytes().to_vec();
    let openlocks = format!("{}\nsim\n", LIVING + 1).into_bytes();
    for bytes in [ours, openlocks] {
        let disk = FaultyDisk::new();
        disk.put(PATH.path(), &bytes);
        disk.deny(Call::Flock, rustix::io::Errno::IO);
        let acquired = acquire(&disk, Proof::Auto, &FaultySurroundings::new(10));
        assert!(acquired.is_ok_and(|acquired| acquired.is_none()));
    }
}

/// On Windows another program's lock keeps the record from being read.
#[test]
fn a_file_that_cannot_be_read_for_now_is_held() {
    let disk = FaultyDisk::new();
    stale(&disk, RecordedProof::Flock);
    disk.deny(Call::Read, rustix::io::Errno::AGAIN);
    let acquired = acquire(&disk, Proof::Auto, &FaultySurroundings::new(10));
    assert!(acquired.is_ok_and(|acquired| acquired.is_none()));
    let (environment, options) = (FaultySurroundings::new(10), FileOptions::default());
    let mut sightings = Sightings::default();
    let probe = Attempt::new(&disk, &environment, &PATH, &options, &mut sightings).probe();
    assert!(matches!(probe.map(|found| found.status), Ok(Status::Held(_))));
}

/// Where the kernel does not tell of mounts, both are files without a link that have a name.
#[test]
fn a_file_that_is_being_removed_is_not_taken_for_a_mounted_one() {
    for proof in [RecordedProof::Flock, RecordedProof::Process] {
        for (effect, is_for_ever) in [(Effect::Going, false), (Effect::WithoutLinks, true)] {
            let disk = FaultyDisk::new();
            disk.tell_no_mounts();
            stale(&disk, proof);
            disk.inject(Fault { call: Call::Look, turn: 0, effect, is_for_ever });
            let acquired = acquire(&disk, Proof::Auto, &FaultySurroundings::new(10));
            assert!(disk.was_hit());
            match acquired {
                Ok(acquired) => assert!(effect == Effect::Going && acquired.is_some()),
                Err(Error::BadPath { .. }) => assert_eq!(effect, Effect::WithoutLinks),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// A file with another name, as a backup gives it one, tells that it was released.
#[test]
fn what_has_another_name_is_marked_when_it_is_released() {
    for pin in [Proof::Auto, Proof::Process] {
        let disk = FaultyDisk::new();
        let acquired = acquire(&disk, pin, &FaultySurroundings::new(10)).unwrap();
        let backup = PATH.directory().join("backup");
        disk.link(PATH.path(), &backup).unwrap();
        acquired.expect("it is free").lock_file.release().unwrap();
        let left = Contents::parse(&disk.content(&backup).expect("it stays")).unwrap();
        assert!(left.record().is_some_and(|record| record.released), "{left:?}");
        assert!(disk.content(PATH.path()).is_none());
    }
}

/// Data under the name of a candidate or a claim is not ours to remove.
#[test]
fn a_sweep_leaves_what_is_no_record() {
    let disk = FaultyDisk::new();
    disk.put(&PATH.candidate(drawn(1)), b"hello");
    disk.put(&PATH.claim(drawn(2)), b"hello");
    let environment = FaultySurroundings::new(10);
    let options = FileOptions::default();
    let mut sightings = Sightings::default();
    let attempt = Attempt::new(&disk, &environment, &PATH, &options, &mut sightings);
    assert_eq!(attempt.sweep(), Ok(0));
    assert!(disk.content(&PATH.candidate(drawn(1))).is_some());
    assert!(disk.content(&PATH.claim(drawn(2))).is_some());
}
