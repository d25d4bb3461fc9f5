//! Hard links to lock files, as `cp -al` and rsnapshot make them.

mod support;

use std::fs;

use lockkeeper::{AsyncFileLock, FileOptions, Proof};

/// The holder of the original let go properly: nobody died.
#[tokio::test]
async fn whoever_locks_a_link_to_a_released_lock_file_recovers_from_nobody() {
    for pin in [Proof::Auto, Proof::Process] {
        for directory in [support::on_tmpfs(), support::on_disk()] {
            let [path, link] = ["a.lock", "a.backup"].map(|name| directory.path().join(name));
            let lock = |path| {
                AsyncFileLock::with_options(path, FileOptions::default().proof(pin)).unwrap()
            };
            let guard = lock(&path).acquire().await.unwrap();
            fs::hard_link(&path, &link).unwrap();
            assert!(lock(&link).try_acquire().await.unwrap().is_none(), "the holder lives");
            guard.release().await.unwrap();
            let guard = lock(&link).acquire().await.unwrap();
            assert!(guard.recovered_from().is_none(), "{:?}", guard.recovered_from());
            guard.release().await.unwrap();
            assert!(support::names_in(directory.path()).is_empty());
        }
    }
}
