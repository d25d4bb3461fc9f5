//! What a file is, whichever system says it.

/// The kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(windows, expect(dead_code, reason = "Unix has more kinds"))]
pub(crate) enum FileKind {
    Regular,
    Directory,
    SymbolicLink,
    Fifo,
    Socket,
    /// Of characters or of blocks.
    Device,
    Other,
}

/// What a file is, by a look at the open file or at its name.
///
/// The identity compares only while one of the two files is open: file systems
/// give a freed inode number to the next file at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) identity: (u64, u64),
    pub(crate) kind: FileKind,
    /// A user id; zero where a file has none.
    pub(crate) owner: u32,
    /// Permission bits.
    pub(crate) mode: u32,
    /// How many names it has.
    pub(crate) links: u64,
    /// Whether the file itself is mounted where it was opened. `None` where the
    /// system does not tell.
    pub(crate) is_mount: Option<bool>,
}

impl Inode {
    /// A fifo wakes a process that waits for a reader, and a device may do anything.
    pub(crate) fn does_more_when_opened(self) -> bool {
        matches!(self.kind, FileKind::Fifo | FileKind::Device)
    }
}
