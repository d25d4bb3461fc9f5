//! What an attempt needs besides the disk, from the running system.

#![expect(clippy::disallowed_methods, reason = "the time of day that a record says")]

use std::sync::Mutex;
use std::time::{Instant, SystemTime};

use super::Environment;
use crate::file::liveness::{self, Myself};
use crate::file::options::FileOptions;
use crate::file::record::{Contents, Record, RecordedProof};
use crate::local::hold_id::HoldId;
use crate::sys::files::Errno;
use crate::sys::process_key::ProcessKey;
use crate::sys::random;
use crate::sys::verdict::Verdict;

/// The running system, as this process sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OsEnvironment {
    process: ProcessKey,
}

impl OsEnvironment {
    pub(crate) fn of(process: ProcessKey) -> Self {
        Self { process }
    }

    pub(crate) fn time_of_day(self) -> SystemTime {
        SystemTime::now()
    }
}

/// A call for 256 bytes is never interrupted or cut short, getrandom(2).
const POOL_IDS: usize = 16;

/// Random bits, fetched for several hold ids at a time: one system call less in
/// most acquisitions.
struct Pool {
    /// A forked child must not hand out what its parent hands out.
    process: Option<ProcessKey>,
    hold_ids: [u128; POOL_IDS],
    left: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { process: None, hold_ids: [0; POOL_IDS], left: 0 });

fn fill(hold_ids: &mut [u128]) -> Result<(), Errno> {
    let mut bits = [0; 16 * POOL_IDS];
    let bits = &mut bits[..16 * hold_ids.len()];
    random::fill(bits)?;
    for (hold_id, bits) in hold_ids.iter_mut().zip(bits.chunks_exact(16)) {
        *hold_id = u128::from_ne_bytes(bits.try_into().expect("BUG: a chunk has 16 bytes"));
    }
    Ok(())
}

impl Environment for OsEnvironment {
    fn judge(&self, contents: &Contents, local: bool) -> Verdict {
        liveness::judge(contents, local)
    }

    fn process(&self) -> ProcessKey {
        self.process
    }

    fn hold_id(&self) -> Result<HoldId, Errno> {
        // Not waited for: a fork may have copied it locked.
        let Ok(mut pool) = POOL.try_lock() else {
            let mut hold_id = [0];
            fill(&mut hold_id)?;
            return Ok(HoldId(hold_id[0]));
        };
        if pool.process != Some(self.process) || pool.left == 0 {
            pool.left = 0;
            fill(&mut pool.hold_ids)?;
            pool.process = Some(self.process);
            pool.left = pool.hold_ids.len();
        }
        pool.left -= 1;
        Ok(HoldId(pool.hold_ids[pool.left]))
    }

    fn record(&self, hold_id: HoldId, proof: RecordedProof, options: &FileOptions) -> Record {
        Myself::with(self.process, |myself| Record {
            pid: myself.process.pid,
            name: options.name.as_ref().unwrap_or(&myself.name).clone(),
            hold_id,
            host: myself.host.clone(),
            identity: myself.identity.clone(),
            proof,
            is_local: false,
            since: Some(self.time_of_day()),
            released: false,
            note: options.note.clone(),
        })
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}
