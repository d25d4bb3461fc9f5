//! A session of a client that knows nothing of lockkeeper: tokio-postgres alone.

use std::cell::OnceCell;
use std::sync::{Arc, OnceLock, mpsc};

use tokio::runtime::Runtime;
use tokio::task::AbortHandle;
use tokio_postgres::{Client, Config, Error, NoTls, SimpleQueryMessage, SimpleQueryRow};

use crate::support::VERY_LONG;

/// As `psql` prints them: NULL is empty.
pub type Rows = Vec<Vec<String>>;

/// A session, for tests with or without a runtime of their own: all sessions live on another
/// one. It ends when it is dropped; the server is told so in the background.
pub struct Session {
    client: Arc<Client>,
    connection: AbortHandle,
}

impl Session {
    pub fn open(config: &Config) -> Result<Self, Error> {
        let config = config.clone();
        on_runtime(async move {
            let (client, connection) = config.connect(NoTls).await?;
            let connection = tokio::spawn(connection).abort_handle();
            Ok(Self { client: Arc::new(client), connection })
        })
    }

    /// The rows of the last statement.
    pub fn query(&self, sql: &str) -> Result<Rows, Error> {
        self.start(sql).wait()
    }

    /// The one value that a statement has; it must succeed.
    #[track_caller]
    pub fn value(&self, sql: &str) -> String {
        let mut rows = self.query(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        assert!(rows.len() == 1 && rows[0].len() == 1, "{sql}: {rows:?}");
        rows.remove(0).remove(0)
    }

    /// Sends a statement, which runs on.
    pub fn start(&self, sql: &str) -> Statement {
        let (client, sql) = (Arc::clone(&self.client), sql.to_owned());
        let answer = spawn(async move { client.simple_query(&sql).await.map(rows) });
        Statement { answer, arrived: OnceCell::new() }
    }

    /// What runs on the runtime of the sessions, with the client itself.
    pub fn with<F, T>(&self, run: impl FnOnce(Arc<Client>) -> F) -> T
    where
        F: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        on_runtime(run(Arc::clone(&self.client)))
    }

    /// The process that serves it.
    #[track_caller]
    pub fn backend(&self) -> u32 {
        self.value("select pg_backend_pid()").parse().expect("a process id")
    }

    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Closes the connection as the end of a process does: the server gets no farewell.
    pub fn vanish(self) {
        self.connection.abort();
    }
}

/// A statement that runs.
pub struct Statement {
    answer: mpsc::Receiver<Result<Rows, Error>>,
    arrived: OnceCell<Result<Rows, Error>>,
}

impl Statement {
    #[track_caller]
    pub fn wait(self) -> Result<Rows, Error> {
        let arrived = self.arrived.into_inner();
        arrived.unwrap_or_else(|| self.answer.recv_timeout(VERY_LONG).expect("the statement ends"))
    }

    /// Whether it has ended in some way.
    pub fn has_ended(&self) -> bool {
        if let Ok(answer) = self.answer.try_recv() {
            self.arrived.set(answer).expect("one answer");
        }
        self.arrived.get().is_some()
    }
}

/// Runs it where all sessions live, and waits for it.
#[track_caller]
pub fn on_runtime<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    spawn(future).recv_timeout(VERY_LONG).expect("it ends")
}

fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> mpsc::Receiver<T> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(1).enable_all().build().expect("a runtime")
    });
    let (sender, receiver) = mpsc::channel();
    runtime.spawn(async move { sender.send(future.await) });
    receiver
}

fn rows(messages: Vec<SimpleQueryMessage>) -> Rows {
    let mut rows = Vec::new();
    for message in messages {
        match message {
            SimpleQueryMessage::RowDescription(_) => rows.clear(),
            SimpleQueryMessage::Row(row) => rows.push(row),
            _ => {}
        }
    }
    rows.iter().map(columns).collect()
}

fn columns(row: &SimpleQueryRow) -> Vec<String> {
    (0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned()).collect()
}
