//! This crate's lock. The wait is cancelled by dropping its future.

use std::future::IntoFuture;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockkeeper::{AsyncEtcdLock, EtcdGuard, EtcdOptions};
use tokio::task::JoinHandle;

use super::etcd_support::Cluster;
use super::{Contender, Peer, State, TTL, runtime};

pub struct Ours;

impl Peer for Ours {
    fn name(&self) -> &'static str {
        "lockkeeper"
    }

    fn rounds(&self) -> u32 {
        120
    }

    fn waits_in(&self) -> &'static str {
        "Watch"
    }

    fn ask(&self, cluster: &Cluster, lock: &str) -> Box<dyn Contender> {
        static ASKED: AtomicU32 = AtomicU32::new(0);
        // Locks of one cluster share a session and stand in one queue of their process. With
        // an endpoint of its own, where nothing is, each is as in a process of its own.
        let asked = ASKED.fetch_add(1, Ordering::Relaxed);
        let endpoints =
            format!("{},127.8.{}.{}:1", cluster.endpoints(), asked / 250, asked % 250 + 1);
        let ttl = Duration::from_secs(TTL.unsigned_abs());
        let options = EtcdOptions::default().prefix("").ttl(ttl);
        let lock = AsyncEtcdLock::with_options(endpoints, lock, options).expect("options");
        let state = Arc::new(Mutex::new(State::Waits));
        let (says, acquiring) = (Arc::clone(&state), lock.acquire().into_future());
        let wait = runtime().spawn(async move {
            let acquired = acquiring.await;
            *says.lock().expect("no panic") = match &acquired {
                Ok(_) => State::Holds,
                Err(error) => State::Failed(error.to_string()),
            };
            acquired.ok()
        });
        Box::new(Task { wait: Some(wait), state })
    }
}

struct Task {
    wait: Option<JoinHandle<Option<EtcdGuard>>>,
    state: Arc<Mutex<State>>,
}

impl Contender for Task {
    fn state(&mut self) -> State {
        self.state.lock().expect("no panic").clone()
    }

    fn cancel(&mut self) {
        let wait = self.wait.as_mut().expect("not released");
        wait.abort();
        while !wait.is_finished() {
            std::thread::yield_now();
        }
    }

    fn release(&mut self) {
        let wait = self.wait.take().expect("not released before");
        runtime().block_on(async {
            let guard = wait.await.expect("it was not cancelled").expect("it holds");
            guard.release().await.expect("it was held");
        });
    }
}
