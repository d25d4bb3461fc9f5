//! What an attempt needs besides the disk, from the running system.

use std::sync::Mutex;
use std::time::{Instant, SystemTime};

use super::Environment;
use crate::file::liveness::{self, Myself};
use crate::file::options::FileOptions;
use crate::file::record::{Contents, Record, RecordedProof};
use crate::local::hold_id::HoldId;
use crate::sys::files::Errno;
use crate::sys::process::Verdict;
use crate::sys::process_key::ProcessKey;
use crate::sys::random;

/// The running system, as this process sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OsEnvironment {
    process: ProcessKey,
}

impl OsEnvironment {
    pub(crate) fn of(process: ProcessKey) -> Self {
        Self { process }
    }
}

/// A call for 256 bytes is never interrupted or cut short, getrandom(2).
const POOL_TOKENS: usize = 16;

/// Random bits, fetched for several tokens at a time: one system call less in
/// most acquisitions.
struct Pool {
    /// A forked child must not hand out what its parent hands out.
    process: Option<ProcessKey>,
    tokens: [u128; POOL_TOKENS],
    left: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { process: None, tokens: [0; POOL_TOKENS], left: 0 });

fn fill(tokens: &mut [u128]) -> Result<(), Errno> {
    let mut bits = [0; 16 * POOL_TOKENS];
    let bits = &mut bits[..16 * tokens.len()];
    random::fill(bits)?;
    for (token, bits) in tokens.iter_mut().zip(bits.chunks_exact(16)) {
        *token = u128::from_ne_bytes(bits.try_into().expect("BUG: a chunk has 16 bytes"));
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

    fn token(&self) -> Result<HoldId, Errno> {
        // Not waited for: a fork may have copied it locked.
        let Ok(mut pool) = POOL.try_lock() else {
            let mut token = [0];
            fill(&mut token)?;
            return Ok(HoldId(token[0]));
        };
        if pool.process != Some(self.process) || pool.left == 0 {
            pool.left = 0;
            fill(&mut pool.tokens)?;
            pool.process = Some(self.process);
            pool.left = pool.tokens.len();
        }
        pool.left -= 1;
        Ok(HoldId(pool.tokens[pool.left]))
    }

    fn record(&self, token: HoldId, proof: RecordedProof, options: &FileOptions) -> Record {
        Myself::with(self.process, |myself| Record {
            pid: myself.process.pid,
            name: options.name.as_ref().unwrap_or(&myself.name).clone(),
            token,
            host: myself.host.clone(),
            identity: myself.identity.clone(),
            proof,
            is_local: false,
            since: Some(SystemTime::now()),
            released: false,
            note: options.note.clone(),
        })
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}
