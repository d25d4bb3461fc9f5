//! Pages about locks between processes, beside the reference of the API.
//!
//! | page | |
//! |---|---|
//! | [`choosing`] | which kind of lock, in which directory |
//! | [`platforms`] | Linux, macOS, the BSDs, Windows: what differs, and what was run where |
//! | [`guarantees`] | what is promised, what each promise rests on, and what is not promised |
//! | [`testing`] | tests of code that uses locks |
//! | [`command`] | `lockkeeper run`, `status` and `break` |
//! | [`daemon`] | the lock daemon, for its operators |
//! | [`behind_a_proxy`], [`backup_and_restore`] | more of that |
//! | [`etcd`] | locks that an etcd cluster keeps: a quick start, fencing, restores, rights |
//! | [`postgres`] | locks that PostgreSQL keeps: set-up, takeover, fail-over, poolers, fencing in SQL |
//! | [`coming_from`] | flock(1), openlock, lockmgr, gocept.lockd, fd-lock, fs4, Tokio, Redlock |
//! | [`faq`] | what goes wrong, and why |
//! | [`performance`], [`proof`] | figures, and the commands that print them |

// For the links in the pages.
#[allow(unused_imports)]
use crate::*;

#[doc = include_str!("backup_and_restore.md")]
pub mod backup_and_restore {}
#[doc = include_str!("behind_a_proxy.md")]
pub mod behind_a_proxy {}
#[doc = include_str!("choosing.md")]
pub mod choosing {}
#[doc = include_str!("coming_from.md")]
pub mod coming_from {}
#[doc = include_str!("command.md")]
pub mod command {}
#[doc = include_str!("daemon.md")]
pub mod daemon {}
#[doc = include_str!("etcd.md")]
pub mod etcd {}
#[doc = include_str!("faq.md")]
pub mod faq {}
#[doc = include_str!("guarantees.md")]
/// # How a lock passes
///
/// As a run of `examples/how_a_lock_passes.rs` drew it:
///
#[doc = include_str!("how_a_lock_passes.svg")]
pub mod guarantees {}
#[doc = include_str!("performance.md")]
pub mod performance {}
#[doc = include_str!("platforms.md")]
pub mod platforms {}
#[doc = include_str!("postgres.md")]
pub mod postgres {}
#[doc = include_str!("proof.md")]
pub mod proof {}
#[doc = include_str!("testing.md")]
pub mod testing {}
