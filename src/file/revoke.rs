//! A request that a holder release the lock.

use std::path::PathBuf;

use super::protocol::disk::{Disk, OsDisk};
use super::protocol::lock_file::REVOCATION_SECOND_LOOK;
use super::spec::LockSpec;
use crate::local::executor::Executor;
use crate::local::timer::sleep;
use crate::lock::error::Error;
use crate::lock::holder::{Holder, Status};
use crate::sys::files::Errno;

/// Ask the holder, if there is one.
pub(crate) async fn revoke(lock: &LockSpec) -> Result<Option<Holder>, Error> {
    let contender = lock.contender().await?;
    let found = contender.probe().await?;
    let Status::Held(holder) = found.status else {
        return Ok(None);
    };
    let Some(hold_id) = found.hold_id else {
        let path = lock.path().to_owned();
        return Err(Error::CannotAsk { lock: path.into(), holder: Box::new(holder) });
    };
    let path = contender.path().revocation(hold_id);
    let (mode, executor) = (lock.options().mode, contender.executor().clone());
    let ask = move |()| match OsDisk.create(&path, mode) {
        // Or another asked before.
        Ok(_) | Err(Errno::EXIST) => Ok(Request { path, executor }),
        Err(error) => Err(Error::io("creating", &path, error)),
    };
    let request = contender.executor().run((), ask).await?;
    sleep(REVOCATION_SECOND_LOOK).await;
    // If the holder went meanwhile, the request is removed here or never.
    let stands = contender.probe().await?.hold_id == Some(hold_id);
    if stands {
        request.leave();
    }
    Ok(Some(holder))
}

/// A request to release the lock, taken back when dropped.
struct Request {
    path: PathBuf,
    executor: Executor,
}

impl Request {
    fn leave(mut self) {
        self.path = PathBuf::new();
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        if !path.as_os_str().is_empty() {
            drop(self.executor.start(move || OsDisk.unlink(&path)));
        }
    }
}
