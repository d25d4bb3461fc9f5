//! PostgreSQL without this crate: the statements that any lock is made of, by tokio-postgres.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio_postgres::{Client, NoTls};

/// As long as a record of the engine's.
const RECORD: &str = "{\"name\":\"postgres-7587a3c1f6a2b8\",\"pid\":4242,\"host\":\"host\",\
    \"since_ms\":1700000000000}";

/// A session. Its driver is a task of the runtime that opened it.
#[derive(Clone)]
pub(crate) struct Bare {
    client: Arc<Client>,
}

impl Bare {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let connected = tokio_postgres::connect(&crate::text(address), NoTls).await;
        let (client, connection) = connected.expect("a session");
        drop(tokio::spawn(connection));
        Self { client: Arc::new(client) }
    }

    async fn ask(&self, statement: &str) {
        self.client.query_typed(statement, &[]).await.expect("an answer");
    }

    pub(crate) async fn try_lock(&self, key: i64) {
        self.ask(&format!("SELECT pg_try_advisory_lock({key})")).await;
    }

    pub(crate) async fn lock(&self, key: i64) {
        self.ask(&format!("SELECT pg_advisory_lock({key})::text")).await;
    }

    pub(crate) async fn unlock(&self, key: i64) {
        self.ask(&format!("SELECT pg_advisory_unlock({key})")).await;
    }

    /// A transaction id, stored: what a token is without a table.
    pub(crate) async fn number(&self) {
        self.ask(
            "SELECT pg_current_xact_id()::text, pg_logical_emit_message(true, 'bare', '')::text",
        )
        .await;
    }

    /// A commit that changes a row.
    pub(crate) async fn commit(&self, key: i64) {
        self.ask(&format!(
            "INSERT INTO bare VALUES ({key}, 1, '{RECORD}') ON CONFLICT (key) \
             DO UPDATE SET counter = bare.counter + 1, text = excluded.text RETURNING counter"
        ))
        .await;
    }
}
