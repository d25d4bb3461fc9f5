//! [`PostgresLocks`]: a server, and the locks that it keeps.

use std::fmt;
use std::sync::Arc;

use super::access::Access;
use super::lock::AsyncPostgresLock;
use super::options::PostgresOptions;
use super::server::Server;
use super::target::Target;
use crate::lock::error::Error;

/// The locks of one database of a PostgreSQL server, which share sessions.
///
/// Up to 256 locks are held in one session, and each wait has one of its own. Clones are the
/// same.
///
/// ```no_run
/// use std::time::Duration;
/// use lockkeeper::{PostgresLocks, PostgresOptions};
///
/// # async fn example() -> Result<(), lockkeeper::Error> {
/// let options = PostgresOptions::default().lease(Duration::from_secs(10));
/// let locks = PostgresLocks::with_options("host=db dbname=app user=app", options)?;
/// let guard = locks.lock("import")?.acquire().await?;
/// guard.release().await
/// # }
/// ```
#[derive(Clone)]
pub struct PostgresLocks {
    server: Arc<Server>,
}

impl PostgresLocks {
    /// The SQL that makes the table of holders and tokens, for an administrator or a
    /// migration. `lockkeeper postgres-schema` prints it.
    ///
    /// # Examples
    /// ```
    /// use lockkeeper::PostgresLocks;
    ///
    /// assert!(PostgresLocks::SCHEMA.contains("CREATE SCHEMA lockkeeper"));
    /// ```
    pub const SCHEMA: &str = super::schema::SQL;

    /// The server and database of this connection string, as libpq takes it.
    ///
    /// That is a URL, or pairs as in `host=db dbname=app user=app`. What it leaves out is
    /// taken from the environment (`PGHOST` …), a service file and `~/.pgpass`.
    ///
    /// The options are [`PostgresOptions::default`].
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    ///
    /// # Examples
    /// ```
    /// use lockkeeper::PostgresLocks;
    ///
    /// let locks = PostgresLocks::new("host=db dbname=app user=app")?;
    /// # Ok::<(), lockkeeper::Error>(())
    /// ```
    pub fn new(config: impl AsRef<str>) -> Result<Self, Error> {
        Self::with_options(config, PostgresOptions::default())
    }

    /// The same with these options. Files that the string names are read; nothing is sent
    /// yet.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    /// use lockkeeper::{PostgresLocks, PostgresOptions};
    ///
    /// let options = PostgresOptions::default().lease(Duration::from_secs(10));
    /// let locks = PostgresLocks::with_options("host=db dbname=app user=app", options)?;
    /// # Ok::<(), lockkeeper::Error>(())
    /// ```
    pub fn with_options(config: impl AsRef<str>, options: PostgresOptions) -> Result<Self, Error> {
        let server = Server::new(Access::parse(config.as_ref())?, options)?;
        Ok(Self::of(server))
    }

    pub(super) fn of(server: Server) -> Self {
        Self { server: Arc::new(server) }
    }

    /// The lock of this name.
    ///
    /// # Errors
    /// [`Error::InvalidOption`]: a name is not empty and has no control characters.
    ///
    /// # Examples
    /// ```
    /// use lockkeeper::PostgresLocks;
    ///
    /// let lock = PostgresLocks::new("host=db dbname=app user=app")?.lock("import")?;
    /// assert_eq!(lock.resource(), "import");
    /// # Ok::<(), lockkeeper::Error>(())
    /// ```
    pub fn lock(&self, name: impl AsRef<str>) -> Result<AsyncPostgresLock, Error> {
        let target = Target::new(Arc::clone(&self.server), name.as_ref())?;
        Ok(AsyncPostgresLock::of(Arc::new(target)))
    }

    /// The same for a command of this name, with this note unless it has one.
    #[cfg(feature = "cli")]
    pub(crate) fn of_command(&self, name: &str, note: Option<String>) -> Self {
        Self { server: Arc::new(self.server.of_command(name, note)) }
    }

    /// The server as a URL, without anything secret.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.server.url
    }
}

impl fmt::Debug for PostgresLocks {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("PostgresLocks")
            .field("url", &self.server.url)
            .field("options", &self.server.options)
            .finish()
    }
}
