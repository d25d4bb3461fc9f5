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
    let begin = |from| {
        let key = target.queue.clone().into_bytes();
        let range_end = key::range_end(&target.queue);
        live.watches.watch(WatchedKeys { key, range_end, from, with_puts: true })
    };
    let (mut watch, mut was_there) = (None, false);
    loop {
        let read = match status::read(target).await {
            Ok(read) => read,
            Err(Error::Unreachable { source, .. }) => {
                return End::Broken { error: source, was_there };
            }
            Err(error) => return End::Hopeless(error),
        };
        latest.put(Ok(status::status(target, &read.kvs)));
        let revision = read.header.map_or(0, |header| header.revision);
        let watch = watch.get_or_insert_with(|| begin(revision + 1));
        was_there = true;
        if let Happened::Broken = watch.next().await {
            let error = io::Error::other("the watch of its keys broke off");
            return End::Broken { error, was_there };
        }
    }
}
