//! The kernel's list of locks, `/proc/locks`.
//!
//! It leaves out processes that this pid namespace does not see, and on file systems with
//! subvolumes it names other devices than `stat` does. Reading it takes some ten
//! milliseconds: before it lists locks the kernel waits until no processor is in the
//! middle of changing one (`percpu_down_write` in fs/locks.c).

#![expect(clippy::disallowed_methods, reason = "reads /proc")]

use std::fs::File;
use std::io::{ErrorKind, Read};

use rustix::fs::{major, minor};
use tokio::runtime::Handle;

/// The process that took a `flock` on this inode, if it is listed.
pub(crate) fn flock_owner((device, inode): (u64, u64)) -> Option<u32> {
    let locks = listing()?;
    locks.lines().find_map(|line| parse(line.split_ascii_whitespace().skip(1), (device, inode)))
}

/// `/proc/locks`, in reads as large as the kernel gives: it finds its place
/// again by counting lines, so that an unlock between two reads hides one.
fn listing() -> Option<String> {
    debug_assert!(Handle::try_current().is_err(), "BUG: a runtime's thread reads /proc/locks");
    let mut file = File::open("/proc/locks").ok()?;
    let (mut bytes, mut end) = (vec![0; 4 * READ], 0);
    loop {
        if bytes.len() - end < READ {
            bytes.resize(2 * bytes.len(), 0);
        }
        match file.read(&mut bytes[end..]) {
            Ok(0) => break,
            Ok(more) => end += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// More than a line of `/proc/locks` has, and than the kernel gives at once.
const READ: usize = 16 * 1024;

/// `FLOCK ADVISORY WRITE 4242 fe:00:131 0 EOF`, see proc_locks(5).
fn parse<'a>(mut words: impl Iterator<Item = &'a str>, identity: (u64, u64)) -> Option<u32> {
    if words.next() != Some("FLOCK") {
        return None;
    }
    let pid = words.nth(2)?.parse().ok().filter(|pid| *pid > 0)?;
    is_of(words.next()?, identity).then_some(pid)
}

fn is_of(word: &str, (device, inode): (u64, u64)) -> bool {
    let mut numbers = word.split(':');
    let hexadecimal = |number: Option<&str>| u32::from_str_radix(number?, 16).ok();
    hexadecimal(numbers.next()) == Some(major(device))
        && hexadecimal(numbers.next()) == Some(minor(device))
        && numbers.next().is_some_and(|number| number.parse() == Ok(inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read() {
        let device = rustix::fs::makedev(0xfe, 0x10);
        let find = |line: &str| parse(line.split_ascii_whitespace().skip(1), (device, 131));
        assert_eq!(find("1: FLOCK  ADVISORY  WRITE 4242 fe:10:131 0 EOF"), Some(4242));
        assert_eq!(find("1: FLOCK  ADVISORY  READ 7 fe:10:131 0 EOF"), Some(7));
        assert_eq!(find("1: FLOCK  ADVISORY  WRITE 4242 fe:10:132 0 EOF"), None);
        assert_eq!(find("1: FLOCK  ADVISORY  WRITE 4242 fe:11:131 0 EOF"), None);
        assert_eq!(find("1: POSIX  ADVISORY  WRITE 4242 fe:10:131 0 EOF"), None);
        assert_eq!(find("1: -> FLOCK  ADVISORY  WRITE 4242 fe:10:131 0 EOF"), None);
        assert_eq!(find("1: FLOCK  ADVISORY  WRITE 0 fe:10:131 0 EOF"), None);
    }
}
