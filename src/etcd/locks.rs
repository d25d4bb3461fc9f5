//! [`EtcdLocks`]: a cluster, and the locks that it keeps.

use std::fmt;
use std::sync::Arc;

use super::cluster::Cluster;
use super::lock::AsyncEtcdLock;
use super::options::EtcdOptions;
use super::target::Target;
use crate::lock::error::Error;

/// The locks of one cluster, which share connections and a session.
///
/// A session is one lease for all that this process holds and waits for. Clones are the
/// same.
///
/// ```no_run
/// use lockkeeper::{EtcdLocks, EtcdOptions};
///
/// # async fn example() -> Result<(), lockkeeper::Error> {
/// let options = EtcdOptions::default().prefix("jobs");
/// let locks = EtcdLocks::with_options("h1:2379,h2:2379,h3:2379", options)?;
/// let guard = locks.lock("import")?.acquire().await?;
/// guard.release().await
/// # }
/// ```
#[derive(Clone)]
pub struct EtcdLocks {
    cluster: Arc<Cluster>,
}

impl EtcdLocks {
    /// The cluster with these endpoints, as in `h1:2379,h2:2379`.
    ///
    /// The options are [`EtcdOptions::default`].
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    ///
    /// # Examples
    /// ```
    /// use lockkeeper::EtcdLocks;
    ///
    /// let locks = EtcdLocks::new("h1:2379,h2:2379,h3:2379")?;
    /// # Ok::<(), lockkeeper::Error>(())
    /// ```
    pub fn new(endpoints: impl AsRef<str>) -> Result<Self, Error> {
        Self::with_options(endpoints, EtcdOptions::default())
    }

    /// The same with these options. Files that they name are read; nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    ///
    /// # Examples
    /// ```
    /// use lockkeeper::{EtcdLocks, EtcdOptions};
    ///
    /// let options = EtcdOptions::default().prefix("jobs");
    /// let locks = EtcdLocks::with_options("h1:2379,h2:2379,h3:2379", options)?;
    /// # Ok::<(), lockkeeper::Error>(())
    /// ```
    pub fn with_options(endpoints: impl AsRef<str>, options: EtcdOptions) -> Result<Self, Error> {
        let cluster = Arc::new(Cluster::new(endpoints.as_ref(), options)?);
        Ok(Self { cluster })
    }

    /// The lock of this name.
    ///
    /// # Errors
    /// [`Error::InvalidOption`]: a name is not empty and has no `/` in it, nor control
    /// characters.
    ///
    /// # Examples
    /// ```
    /// use lockkeeper::EtcdLocks;
    ///
    /// let lock = EtcdLocks::new("h1:2379,h2:2379,h3:2379")?.lock("import")?;
    /// assert_eq!(lock.resource(), "import");
    /// # Ok::<(), lockkeeper::Error>(())
    /// ```
    pub fn lock(&self, name: impl AsRef<str>) -> Result<AsyncEtcdLock, Error> {
        let target = Target::new(Arc::clone(&self.cluster), name.as_ref())?;
        Ok(AsyncEtcdLock::of(Arc::new(target)))
    }

    /// The same for a command of this name, with this note unless it has one.
    #[cfg(feature = "cli")]
    pub(crate) fn of_command(&self, name: &str, note: Option<String>) -> Self {
        Self { cluster: Arc::new(self.cluster.of_command(name, note)) }
    }

    /// The cluster as a URL, without anything secret.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.cluster.url
    }
}

impl fmt::Debug for EtcdLocks {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("EtcdLocks")
            .field("url", &self.cluster.url)
            .field("options", &self.cluster.options)
            .finish()
    }
}
