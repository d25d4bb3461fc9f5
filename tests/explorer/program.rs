//! What the processes of the simulated world do: the shipped code, called as
//! [`contender`](crate::file::contender) and [`hold`](crate::file::hold) call it, and a model
//! of openlock.

use std::time::{Duration, SystemTime};

use super::replay::{SimDisk, SimSurroundings, ask, choose};
use super::vocabulary::{Answer, Beside, Ended, MYSELF, Name, Op, PATH, Symbol, Text};
use crate::file::options::{FileOptions, Proof};
use crate::file::protocol::disk::{Access, Disk};
use crate::file::protocol::{
    Acquired, Attempt, Environment, Outcome, PROBE_PASSES, Sightings, Survival, survived,
};
use crate::lock::holder::Status;
use crate::sys::files::Errno;

/// What one process does, over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Program {
    Pinned,
    /// It may also give up between the acquisition and its user.
    PinnedCancelled,
    /// While it waits it makes its next candidate.
    PinnedWaiting,
    /// It hands what it holds over to another task of its own.
    PinnedPassing,
    /// The same, at most twice.
    PassingTwice,
    Portable,
    PortableCancelled,
    /// It hands over at most once, by a clock that jumps.
    PassingJumping,
    /// Pinned, next to openlock.
    Compat,
    /// The same by a clock that jumps.
    CompatJumping,
    /// Asks the holder to release the lock.
    Revoker,
    /// Removes what others left.
    Sweeper,
    /// openlock 1.2.1.
    OpenLock,
}

impl Program {
    /// Run it once; an acquisition and its release at most.
    pub(super) fn run(self) -> Ended {
        match self {
            Program::Pinned
            | Program::PinnedCancelled
            | Program::PinnedWaiting
            | Program::PinnedPassing
            | Program::PassingTwice
            | Program::PassingJumping => contend(self, Proof::Auto),
            Program::Portable | Program::PortableCancelled => contend(self, Proof::Process),
            Program::Compat | Program::CompatJumping => contend(self, Proof::Auto),
            Program::Revoker => revoke(),
            Program::Sweeper => sweep(),
            Program::OpenLock => openlock(),
        }
    }

    /// Whether it ends up holding when nothing is in its way.
    pub(super) fn wants_the_lock(self) -> bool {
        !matches!(self, Program::Revoker | Program::Sweeper)
    }

    /// What its clock said, or how often it did something, decides what it
    /// does, so it forgets nothing.
    pub(super) fn never_forgets(self) -> bool {
        matches!(self, Program::PassingTwice) || self.has_a_jumping_clock()
    }

    fn has_a_jumping_clock(self) -> bool {
        matches!(self, Program::PassingJumping | Program::CompatJumping)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Program::Pinned => "pinned",
            Program::PinnedCancelled => "pinned, cancelled",
            Program::PinnedWaiting => "pinned, waiting",
            Program::PinnedPassing => "pinned, passing on",
            Program::PassingTwice => "pinned, passing on twice",
            Program::Portable => "portable",
            Program::PortableCancelled => "portable, cancelled",
            Program::PassingJumping => "pinned, passing on, its clock jumps",
            Program::Compat => "openlock_compat",
            Program::CompatJumping => "openlock_compat, its clock jumps",
            Program::Revoker => "revoke",
            Program::Sweeper => "sweep",
            Program::OpenLock => "openlock 1.2.1",
        }
    }
}

fn failed(error: impl std::fmt::Display) -> Ended {
    Ended::Failed(error.to_string().leak())
}

fn contend(program: Program, pin: Proof) -> Ended {
    let openlock_compat = matches!(program, Program::Compat | Program::CompatJumping);
    let options = FileOptions { proof: pin, openlock_compat, ..FileOptions::default() };
    let environment = SimSurroundings::new(program.has_a_jumping_clock());
    let mut sightings = Sightings::default();
    let mut candidate = None;
    loop {
        let path = &PATH;
        let mut attempt = Attempt::new(&SimDisk, &environment, path, &options, &mut sightings)
            .with_candidate(candidate.take());
        let outcome = match attempt.run() {
            Err(error) => return failed(error),
            Ok(outcome) => outcome,
        };
        match outcome {
            Outcome::Busy(busy) => match busy.look_again {
                Some(delay) if delay > PROBE_PASSES => environment.sleep(delay),
                _ if program == Program::PinnedWaiting && choose(2) == 1 => {
                    attempt.prepare_candidate();
                    candidate = attempt.into_candidate();
                }
                _ => return Ended::Busy,
            },
            Outcome::Acquired(acquired) => {
                drop(attempt.into_candidate());
                return hold(program, &environment, acquired);
            }
            Outcome::Probation(acquired, delay) => {
                drop(attempt.into_candidate());
                environment.sleep(delay);
                if survived(&SimDisk, &acquired.lock_file) == Survival::Held {
                    return hold(program, &environment, acquired);
                }
                let _ = acquired.lock_file.release();
            }
        }
    }
}

fn hold(program: Program, environment: &SimSurroundings, acquired: Acquired<SimDisk>) -> Ended {
    let mut lock_file = acquired.lock_file;
    let may_give_up = matches!(program, Program::PinnedCancelled | Program::PortableCancelled);
    if may_give_up && choose(2) == 1 {
        let _ = lock_file.release();
        return Ended::GivenUp;
    }
    lock_file.acknowledge_recovery();
    /// Another second, and longer than any look lasts.
    const LONG: Duration = Duration::from_secs(2);
    let mut later = Duration::ZERO;
    let mut passes_left = match program {
        Program::PinnedPassing => usize::MAX,
        Program::PassingTwice => 2,
        Program::PassingJumping => 1,
        _ => 0,
    };
    loop {
        ask(Op::Hold);
        if passes_left == 0 || choose(2) == 0 {
            break;
        }
        passes_left -= 1;
        // As hold hands it off to the next task, and contender takes it. Next to one that
        // asks, a hold is so long that its end looks for the request: that the asker of a
        // short one looks later is no matter of order.
        let is_later = match program {
            Program::PassingTwice => true,
            Program::PassingJumping => false,
            _ => choose(2) == 1,
        };
        later += if is_later { LONG } else { Duration::ZERO };
        let now = environment.now() + later;
        if !lock_file.may_be_handed_off(now) {
            break;
        }
        let since = SystemTime::UNIX_EPOCH + later;
        // Not so soon that it would not look again.
        let now = now + Duration::from_micros(100);
        if let Err(error) = lock_file.take_handoff(|| environment.hold_id(), since, || now) {
            return failed(error);
        }
    }
    match lock_file.release() {
        Ok(()) => Ended::Released,
        Err(error) => failed(error),
    }
}

/// As [`AsyncFileLock::revoke`](crate::AsyncFileLock::revoke) has it.
fn revoke() -> Ended {
    let options = FileOptions::default();
    let environment = SimSurroundings::new(false);
    let mut sightings = Sightings::default();
    let attempt = Attempt::new(&SimDisk, &environment, &PATH, &options, &mut sightings);
    let found = match attempt.probe() {
        Ok(found) => found,
        Err(error) => return failed(error),
    };
    let (Status::Held(_), Some(hold_id)) = (found.status, found.hold_id) else {
        return Ended::Busy;
    };
    let request = PATH.revocation(hold_id);
    match SimDisk.create(&request, options.mode) {
        Ok(_) | Err(Errno::EXIST) => {}
        Err(error) => return failed(error),
    }
    match attempt.probe() {
        Ok(found) if found.hold_id == Some(hold_id) => {}
        Ok(_) => drop(SimDisk.unlink(&request)),
        Err(error) => return failed(error),
    }
    Ended::GivenUp
}

fn sweep() -> Ended {
    let options = FileOptions::default();
    let environment = SimSurroundings::new(false);
    let mut sightings = Sightings::default();
    let attempt = Attempt::new(&SimDisk, &environment, &PATH, &options, &mut sightings);
    match attempt.sweep() {
        Ok(_) => Ended::GivenUp,
        Err(error) => failed(error),
    }
}

/// What openlock makes of the lock file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Unlocked,
    Locked(Symbol),
}

/// `FileLock.acquire` once, then `release`, of openlock 1.2.1.
fn openlock() -> Ended {
    if SimDisk.look(PATH.path()).is_err() {
        let scratch = openlock_scratch();
        let linked = SimDisk.link(&scratch.path(), PATH.path());
        let _ = SimDisk.unlink(&scratch.path());
        if linked.is_ok() {
            return openlock_hold();
        }
    }
    let mut state = openlock_state(true);
    for _ in 0..2 {
        if state != State::Unlocked {
            return Ended::Busy;
        }
        let scratch = openlock_scratch();
        if let Err(error) = SimDisk.rename(&scratch.path(), PATH.path()) {
            return failed(error);
        }
        ask(Op::Sleep);
        state = openlock_state(false);
        if state == State::Locked(MYSELF) {
            return openlock_hold();
        }
    }
    match state {
        State::Unlocked => Ended::Failed("openlock: unable to obtain a valid lock file"),
        State::Locked(_) => Ended::Busy,
    }
}

fn openlock_hold() -> Ended {
    ask(Op::Hold);
    let _ = SimDisk.unlink(PATH.path());
    Ended::Released
}

fn openlock_scratch() -> Name {
    let Answer::HoldId(hold_id) = ask(Op::DrawHoldId) else {
        unreachable!("BUG: no token");
    };
    let scratch = Name::Beside(Beside::Scratch, hold_id);
    let file = SimDisk.create(&scratch.path(), 0o600).expect("BUG: no scratch file");
    let _ = SimDisk.write(&file, &Text::Foreign(MYSELF).bytes(), 0);
    scratch
}

fn openlock_state(verify: bool) -> State {
    let Ok(file) = SimDisk.open(PATH.path(), Access::Read) else {
        return State::Unlocked;
    };
    let mut bytes = [0; 513];
    let length = SimDisk.read(&file, &mut bytes).expect("BUG: no answer");
    drop(file);
    let Some(pid) = Text::parse(&bytes[..length]).pid() else {
        return State::Unlocked;
    };
    if !verify || ask(Op::Judge(pid)) == Answer::Dead(false) {
        return State::Locked(pid);
    }
    match openlock_state(false) {
        State::Locked(now) if now != pid => State::Locked(now),
        _ => State::Unlocked,
    }
}
