//! Files of locks that ended, kept for the next lock of the same client: making and deleting
//! a file costs more than all else a lock does.
//!
//! P1. Nothing is ever written into a spare. It is given only to a lock whose file says the
//!     same. So a program that has the old file open still reads the old holder.
//! P2. A spare is as a new file would be, or it is deleted. So it is a plain file with one
//!     name, these contents, and the owner and mode that new files have.
//! P3. There are few, under names that no lock has. They go when the disk is
//!     full, when the store is closed, and when it is opened (`scan`).

use std::collections::VecDeque;
use std::sync::Arc;

use super::directory::{DRAFT, LockDirectory, Prepared};
use crate::sys::files::Errno;

/// The spare files of a directory, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    kept: VecDeque<Spare>,
    last: u64,
}

#[derive(Debug)]
struct Spare {
    client: Arc<str>,
    name: String,
}

/// Spares that are kept: as many as there are clients that lock and unlock all the time.
/// Each takes a block of the disk.
pub(crate) const SPARES_MAX: usize = 32;

impl Spares {
    /// Take a lock's file away; whether it was there.
    pub(crate) fn retire(
        &mut self,
        directory: &LockDirectory,
        file: &str,
        client: &Arc<str>,
    ) -> Result<bool, Errno> {
        self.last += 1;
        let name = format!("{DRAFT}-spare-{}", self.last);
        if !directory.set_aside(file, client.len(), &name) {
            return directory.remove(file);
        }
        self.kept.push_back(Spare { client: Arc::clone(client), name });
        if self.kept.len() > SPARES_MAX {
            if let Some(oldest) = self.kept.pop_front() {
                delete(directory, &oldest);
            }
        }
        Ok(true)
    }

    /// A file with this client's name in it, a spare or a new one.
    pub(crate) fn prepare(
        &mut self,
        directory: &Arc<LockDirectory>,
        client: &Arc<str>,
    ) -> Result<Prepared, Errno> {
        let place = self.kept.iter().rposition(|spare| spare.client == *client);
        if let Some(spare) = place.and_then(|place| self.kept.remove(place)) {
            if directory.is_as_new(&spare.name, client.as_bytes()) {
                return Ok(Prepared::from_spare(directory, spare.name));
            }
            delete(directory, &spare);
        }
        match directory.prepare(client.as_bytes()) {
            Err(Errno::NOSPC | Errno::DQUOT) if self.clear(directory) => {
                directory.prepare(client.as_bytes())
            }
            prepared => prepared,
        }
    }

    /// Delete them all; whether there were any. (P3)
    pub(crate) fn clear(&mut self, directory: &LockDirectory) -> bool {
        let had_any = !self.kept.is_empty();
        self.kept.drain(..).for_each(|spare| delete(directory, &spare));
        had_any
    }
}

fn delete(directory: &LockDirectory, spare: &Spare) {
    if let Err(error) = directory.remove(&spare.name) {
        let path = directory.path_of(&spare.name);
        tracing::warn!("{} could not be removed: {error}", path.display());
    }
}
