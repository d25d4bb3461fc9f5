//! What happens to held files at exit, for users that chose
//! [`AtExit::Remove`](crate::AtExit::Remove).
//!
//! The handler runs in `exit`, after `return` from `main`, after
//! `std::process::exit` and after a panic in `main`; not after `abort` or a
//! signal. Other threads still run while it does, and a successor can get in
//! before they are gone.

use std::sync::{Arc, Once, Weak};

use super::protocol::disk::OsDisk;
use super::protocol::lock_file::LockFile;
use crate::sys::mutex::Mutex;
use crate::sys::process::at_exit;

static HELD: Mutex<Vec<Weak<LockFile<OsDisk>>>> = Mutex::new(Vec::new());

/// How often the handler tries to get at the list. A thread that was stopped
/// while it changed the list must not keep the process from exiting.
const TRIES: u32 = 1000;

/// Remove this file if the process exits while it is held.
pub(crate) fn remove_at_exit(lock_file: &Arc<LockFile<OsDisk>>) {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        if !at_exit(remove_held_files) {
            tracing::warn!("no exit handler could be registered: held lock files will stay");
        }
    });
    let mut list = HELD.lock();
    list.retain(|lock_file| lock_file.strong_count() > 0);
    list.push(Arc::downgrade(lock_file));
}

/// `release` compares the process first: a forked child that exits removes nothing.
extern "C" fn remove_held_files() {
    for _ in 0..TRIES {
        let Some(mut list) = HELD.try_lock() else {
            std::thread::yield_now();
            continue;
        };
        for lock_file in list.drain(..).filter_map(|lock_file| lock_file.upgrade()) {
            let _ = lock_file.release();
        }
        return;
    }
}
