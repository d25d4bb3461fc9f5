//! The Lock RPC of etcd through the `etcd-client` crate, with a lease that a task keeps alive,
//! as a process has that uses several locks. The wait is cancelled by dropping its future.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use etcd_client::{Client, LockOptions};
use tokio::task::JoinHandle;

use super::etcd_support::Cluster;
use super::{Contender, Peer, State, TTL, runtime};

pub struct LockRpc;

impl Peer for LockRpc {
    fn name(&self) -> &'static str {
        "etcd-client 0.21.1, Lock RPC"
    }

    fn rounds(&self) -> u32 {
        120
    }

    fn waits_in(&self) -> &'static str {
        "Lock"
    }

    fn ask(&self, cluster: &Cluster, lock: &str) -> Box<dyn Contender> {
        let endpoints: Vec<String> = cluster.endpoints().split(',').map(str::to_owned).collect();
        let (mut client, lease) = runtime().block_on(async {
            let mut client = Client::connect(endpoints, None).await.expect("a connection");
            let lease = client.lease_grant(TTL, None).await.expect("a lease").id();
            (client, lease)
        });
        let renewal = runtime().spawn(renew(client.clone(), lease));
        let state = Arc::new(Mutex::new(State::Waits));
        let (says, lock) = (Arc::clone(&state), lock.to_owned());
        let kept = client.clone();
        let wait = runtime().spawn(async move {
            let answer = client.lock(lock, Some(LockOptions::new().with_lease(lease))).await;
            let answer = answer.map(|answer| answer.key().to_vec());
            let now = match &answer {
                Ok(_) => State::Holds,
                Err(error) => State::Failed(first_part(&error.to_string())),
            };
            *says.lock().expect("no panic") = now;
            answer.unwrap_or_default()
        });
        Box::new(Task { client: kept, wait: Some(wait), renewal, state })
    }
}

/// Without what caused it.
fn first_part(error: &str) -> String {
    error.split(", source:").next().unwrap_or_default().to_owned()
}

async fn renew(mut client: Client, lease: i64) {
    loop {
        let _ = renew_by_one_stream(&mut client, lease).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Until it fails.
async fn renew_by_one_stream(client: &mut Client, lease: i64) -> Result<(), etcd_client::Error> {
    let (mut keeper, mut answers) = client.lease_keep_alive(lease).await?;
    loop {
        keeper.keep_alive().await?;
        match tokio::time::timeout(Duration::from_secs(1), answers.message()).await {
            Ok(Ok(Some(_))) => {}
            _ => return Ok(()),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

struct Task {
    client: Client,
    wait: Option<JoinHandle<Vec<u8>>>,
    renewal: JoinHandle<()>,
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
            let key = wait.await.expect("it was not cancelled");
            self.client.unlock(key).await.expect("it is released");
        });
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}
