//! What other processes do: this program, run again.

use std::any::{Any, TypeId};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use lockkeeper::{Guard, Lock, SharedLock, Status};

#[allow(unused_imports)]
use crate::kinds::*;
use crate::support::{self, Process};

/// The test that plays what other processes do. Without a role it has nothing to do.
const NAME: &str = "another_process::plays_its_part";

macro_rules! parts_of_kinds {
    (($kind_name:ident $part:ident $address:ident)
     $($(#[$when:meta])* $name:ident: $kind:ty,)*) => {
        match $kind_name {
            $( $(#[$when])* stringify!($name) => play::<$kind>($part, $address), )*
            other => panic!("no kind {other}"),
        }
    };
}

macro_rules! readers_of_kinds {
    (($kind_name:ident $address:ident) $($(#[$when:meta])* $name:ident: $kind:ty,)*) => {
        match $kind_name {
            $( $(#[$when])* stringify!($name) => read::<$kind>($address), )*
            other => panic!("{other} cannot be shared"),
        }
    };
}

macro_rules! names_of_kinds {
    (($wanted:ident) $($(#[$when:meta])* $name:ident: $kind:ty,)*) => {
        $( $(#[$when])* {
            if TypeId::of::<$wanted>() == TypeId::of::<$kind>() {
                return stringify!($name);
            }
        } )*
    };
}

/// A process that plays a part at a place.
pub fn start<K: Kind>(part: &str, place: &Place<K>) -> Process {
    Process::play(NAME, &format!("{} {part}", name_of::<K>()), Path::new(&place.address))
}

/// As the list has it.
fn name_of<K: Kind>() -> &'static str {
    kinds! { names_of_kinds K }
    panic!("a kind without a line");
}

/// One that holds the lock.
pub fn holder<K: Kind>(part: &str, place: &Place<K>) -> Process {
    let holder = start(part, place);
    holder.expect("held");
    holder
}

#[test]
fn plays_its_part() {
    let Some((role, address)) = support::role() else { return };
    let address = address.to_str().expect("an address");
    let (kind, part) = role.split_once(' ').expect("a kind and a part");
    if part == "read" {
        return shared_kinds! { readers_of_kinds kind address };
    }
    kinds! { parts_of_kinds kind part address }
}

fn play<K: Kind>(part: &str, address: &str) {
    let words: Vec<&str> = part.split(' ').collect();
    match words[..] {
        ["hold"] => hold::<K>(address, Life::Long),
        ["hold", "mortal"] => hold::<K>(address, Life::Short),
        ["hold", "for", "moments"] => hold_for_moments::<K>(address),
        ["end", "dropping"] => end::<K>(address, Life::Long, false),
        ["end", "holding"] => end::<K>(address, Life::Short, true),
        ["look"] => look::<K>(address),
        ["visit", times, ledger] => {
            let times = times.parse().expect("a number");
            support::block_on(crate::exclusion::visit_often::<K>(address, ledger, times));
        }
        ["wait", number, journal] => wait_in_line::<K>(address, number, Path::new(journal)),
        _ => panic!("no part {part:?}"),
    }
}

/// Hold, and answer to what is told, until the other side hangs up.
fn hold<K: Kind>(address: &str, life: Life) {
    support::block_on(async {
        let lock = K::lock(address, None, life);
        let mut guard = Some(lock.acquire().await.expect("the lock"));
        support::tell("held");
        while let Some(order) = told().await {
            let held = guard.take().expect("it is held");
            match order.as_str() {
                "is it lost?" => {
                    support::tell(if held.is_lost() { "lost" } else { "mine" });
                    guard = Some(held);
                }
                "release" => {
                    held.release().await.expect("it was held");
                    support::tell("released");
                }
                other => panic!("no order {other:?}"),
            }
        }
    });
}

/// Hold for a moment, each time that it is told to.
fn hold_for_moments<K: Kind>(address: &str) {
    support::block_on(async {
        let lock = K::lock(address, None, Life::Long);
        while told().await.is_some() {
            let guard = acquired(&lock).await;
            support::tell("held");
            tokio::time::sleep(crate::cancellation::HELD_FOR).await;
            release(guard).await;
            support::tell("released");
        }
    });
}

/// Hold shared until told otherwise.
fn read<K: Kind<Lock: SharedLock>>(address: &str) {
    support::block_on(async {
        let lock = K::lock(address, None, Life::Long);
        let guard = lock.acquire_shared().await.expect("the lock");
        support::tell("held");
        told().await;
        guard.release().await.expect("it was held");
        support::tell("released");
    });
}

/// The runtime goes on meanwhile: what a wait left is put away by it later.
async fn told() -> Option<String> {
    tokio::task::spawn_blocking(support::told).await.expect("no panic")
}

/// Return from `main` with a guard that was dropped as the last thing, or never. Say before
/// whether it is lost.
fn end<K: Kind>(address: &str, life: Life, is_alive: bool) {
    static KEPT: Mutex<Option<Box<dyn Any + Send>>> = Mutex::new(None);
    let guard = support::block_on(K::lock(address, None, life).acquire()).expect("the lock");
    support::tell("held");
    support::told();
    support::tell(if guard.is_lost() { "lost" } else { "mine" });
    if is_alive {
        *KEPT.lock().expect("no panic") = Some(Box::new(guard));
    }
}

/// Say what the status is, each time that it is asked.
fn look<K: Kind>(address: &str) {
    let lock = K::lock(address, None, Life::Long);
    while let Some(process) = support::told() {
        let process: u32 = process.parse().expect("a process id");
        support::block_on(async {
            let status = lock.status().await.expect("a status");
            let holder = lock.holder().await.expect("a holder or none");
            assert_eq!(lock.is_locked().await.expect("an answer"), holder.is_some());
            support::tell(match (status, holder) {
                (Status::Free, None) => "free",
                (Status::Held(_), Some(holder)) if K::names(&holder, process) => "held by it",
                (Status::Held(_), Some(_)) => "held",
                other => panic!("{other:?}"),
            });
        });
    }
}

/// Wait, write down which of them holds, and release.
fn wait_in_line<K: Kind>(address: &str, number: &str, journal: &Path) {
    use std::io::Write;
    support::block_on(async {
        support::tell("asks");
        let lock = K::lock(address, None, Life::Short);
        let guard = lock.acquire().await.expect("the lock");
        let journal = std::fs::File::options().append(true).open(journal);
        journal.expect("a journal").write_all(number.as_bytes()).expect("a journal");
        tokio::time::sleep(Duration::from_millis(3)).await;
        guard.release().await.expect("it was held");
    });
}
