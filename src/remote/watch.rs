//! The status of the lock each time that it changes: the daemon's events.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::time::timeout;

use super::no_response::NoResponse;
use super::response::Refusal;
use super::status;
use super::target::Target;
use crate::lease::{End, Latest, Patience, RESPONSE_LIMIT, Watched};
use crate::lock::error::Error;
use crate::lock::holder::Status;
use crate::wire::List;

const DOING: &str = "watching";

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
    let broken = |error| End::Broken { error, was_there: false };
    let opened = timeout(RESPONSE_LIMIT, target.events()).await;
    let mut events = match opened.unwrap_or_else(|_| Err(NoResponse::silence())) {
        Ok(Ok(events)) => events,
        Ok(Err(response)) => {
            let refusal = Refusal::read(&response);
            return match refusal.is_passing() {
                true => broken(io::Error::other(refusal.message)),
                false => End::Hopeless(target.refused(DOING, refusal)),
            };
        }
        Err(failure) if failure.is_final() => {
            return End::Hopeless(target.hopeless(DOING, failure));
        }
        Err(failure) => return broken(failure.error),
    };
    let mut was_there = false;
    loop {
        let data = match events.next().await {
            Ok(data) => data,
            Err(error) => return End::Broken { error, was_there },
        };
        let Ok(list) = serde_json::from_slice::<List>(&data) else {
            let found = "an event that is no list of locks".to_owned();
            return End::Hopeless(target.strange(DOING, found));
        };
        was_there = true;
        let shown = list.locks.into_iter().find(|lock| lock.resource == target.resource);
        latest.put(Ok(shown.map_or(Status::Free, |shown| Status::Held(status::holder(shown)))));
    }
}
