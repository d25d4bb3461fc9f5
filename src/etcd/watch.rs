//! The status of the lock each time that it changes: a look at each event below its name.

use std::future::Future;
use std::io;
use std::time::Duration;

use super::key;
use super::key_watch::{Happened, Watched as WatchedKeys};
use super::status;
use super::target::Target;
use crate::lease::{End, Latest, Patience, Watched};
use crate::lock::error::Error;

impl Watched for Target {
    fn patience(&self) -> Patience {
        Target::patience(self)
    }

    fn unreachable(&self, doing: &'static str, tried: Duration, source: io::Error) -> Error {
        Target::unreachable(self, doing, tried, source)
    }

    fn follow(&self, latest: &Latest) -> impl Future<Output = End> + Send {
        follow(self, latest)
    }
}

async fn follow(target: &Target, latest: &Latest) -> End {
    let live = match target.cluster.live() {
        Ok(live) => live,
        Err(error) => return End::Broken { error, was_there: false },
    };
    let mut watch = live.watches.watch(WatchedKeys {
        key: target.queue.clone().into_bytes(),
        range_end: key::range_end(&target.queue),
        // From now on.
        from: 0,
        with_puts: true,
    });
    let mut was_there = false;
    loop {
        match status::keys(target).await {
            Ok(keys) => latest.put(Ok(status::status(target, &keys))),
            Err(Error::Unreachable { source, .. }) => {
                return End::Broken { error: source, was_there };
            }
            Err(error) => return End::Hopeless(error),
        }
        was_there = true;
        if let Happened::Broken = watch.next().await {
            let error = io::Error::other("the watch of its keys broke off");
            return End::Broken { error, was_there };
        }
    }
}
