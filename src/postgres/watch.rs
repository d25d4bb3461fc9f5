//! The status of the lock each time that it changes: a look now and then.
//!
//! The server could notify of each release. But a transaction that notifies commits alone,
//! in the whole server, so that each release of each lock would wait for all others.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::time::sleep;

use super::status;
use super::target::Target;
use crate::lease::{End, Latest, Patience, Watched};
use crate::lock::error::Error;

/// Between two looks. If larger, a change is told later; if smaller, the server works more.
const LOOK: Duration = Duration::from_millis(250);

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
    let mut was_there = false;
    loop {
        match status::ask_there(target, &mut Patience::new(Duration::ZERO)).await {
            Ok(queue) => latest.put(Ok(queue.status())),
            Err(Error::Unreachable { source, .. }) => {
                return End::Broken { error: source, was_there };
            }
            Err(error) => return End::Hopeless(error),
        }
        was_there = true;
        sleep(LOOK).await;
    }
}
