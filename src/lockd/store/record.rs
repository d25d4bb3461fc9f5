//! The bytes of a journal: its header and its records.
//!
//! Every record carries the checksum of itself and of the salt of its generation. So the
//! records that an older generation left in the file are none of this one, torn or whole.

use std::sync::Arc;
use std::time::Duration;

use super::grant::{Grant, GrantTerms};
use crate::wire::CLIENT_MAX_BYTES;

/// One step of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum JournalRecord {
    /// A lock was granted.
    Granted(Arc<Grant>),
    /// The lock with this token was ended, and its file is gone.
    Ended(u64),
    /// The grant with this token was taken back: it never had a file.
    Withdrawn(u64),
    /// The records before are all that was held when this generation began.
    Begun,
    /// All files were synced. Nothing comes after it.
    Closed,
}

/// Which generation a file holds, and where it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Counts up with each generation; the valid file with the greater one counts.
    pub(crate) generation: u64,
    /// By chance, for the checksums of the records.
    pub(crate) salt: u64,
    /// How long the file is at least.
    pub(crate) capacity: u64,
    /// Whether every batch was synced before the next.
    pub(crate) is_synced: bool,
    /// `boot_id` of the boot it was written in, as 36 bytes.
    pub(crate) boot: [u8; 36],
    /// The smallest token that was not given when it began.
    pub(crate) next_token: u64,
}

/// The two files of a journal, which take turns.
pub(crate) const JOURNALS: [&str; 2] = [".lockkeeper-journal-a", ".lockkeeper-journal-b"];

/// The place of a batch is a 32-bit number.
pub(crate) const CAPACITY_MAX: usize = 1 << 31;

/// A boot that is like no other.
pub(crate) const UNKNOWN_BOOT: [u8; 36] = [0; 36];

const MAGIC: [u8; 16] = *b"lockkeeper jrnl2";

/// The header with its checksum. One sector at most: a crash could tear more.
const HEADER_LENGTH: usize = 92;

/// Where the mark is: in a sector of its own.
pub(crate) const MARK_PLACE: usize = 512;

/// A place in the file, and its checksum.
const MARK_BYTES: usize = 12;

/// Where the records begin.
pub(crate) const HEADER_BYTES: usize = 1024;

/// Length, checksum, where the batch began, kind.
const FRAME_BYTES: usize = 4 + 4 + 4 + 1;

/// Longer than any record: the longest part is a client's name. The search for whole
/// records reads so much at each byte at most.
const RECORD_MAX_BYTES: usize = 2 * CLIENT_MAX_BYTES;

const NO_LEASE: u64 = u64::MAX;

impl Header {
    /// The bytes before the records. They have no mark.
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..16].copy_from_slice(&MAGIC);
        let numbers = [self.generation, self.next_token, self.salt, self.capacity];
        for (place, number) in (16..).step_by(8).zip(numbers) {
            bytes[place..place + 8].copy_from_slice(&number.to_le_bytes());
        }
        bytes[48] = u8::from(self.is_synced);
        bytes[52..88].copy_from_slice(&self.boot);
        let checksum = crc32fast::hash(&bytes[..88]);
        bytes[88..HEADER_LENGTH].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = FieldReader(bytes.get(..HEADER_LENGTH)?);
        let magic = fields.take(16)?;
        let (generation, next_token) = (fields.u64()?, fields.u64()?);
        let (salt, capacity) = (fields.u64()?, fields.u64()?);
        let is_synced = fields.u32()? != 0;
        let boot = fields.take(36)?.try_into().ok()?;
        let is_whole = magic == MAGIC && fields.u32()? == crc32fast::hash(&bytes[..88]);
        is_whole.then_some(Self { generation, salt, capacity, is_synced, boot, next_token })
    }

    /// A mark in this generation: all before this place was written.
    pub(crate) fn encode_mark(&self, place: usize) -> [u8; MARK_BYTES] {
        let mut bytes = [0; MARK_BYTES];
        let place = (place as u64).to_le_bytes();
        bytes[..8].copy_from_slice(&place);
        bytes[8..].copy_from_slice(&checksum(self.salt, &place).to_le_bytes());
        bytes
    }

    /// The mark of this generation in a file; 0 if it has none.
    pub(crate) fn decode_mark(&self, file: &[u8]) -> usize {
        let mark = || {
            let mut fields = FieldReader(file.get(MARK_PLACE..MARK_PLACE + MARK_BYTES)?);
            let (place, sum) = (fields.u64()?, fields.u32()?);
            let is_whole = checksum(self.salt, &place.to_le_bytes()) == sum;
            usize::try_from(place).ok().filter(|_| is_whole)
        };
        mark().unwrap_or(0)
    }
}

fn checksum(salt: u64, framed: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(framed);
    hasher.finalize()
}

impl JournalRecord {
    /// Add the record to what is to be written. `batch` is the place in the
    /// file where its batch begins: all before that was done.
    pub(crate) fn encode(&self, salt: u64, batch: u32, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([0; 8]);
        out.extend(masked(salt, batch).to_le_bytes());
        match self {
            Self::Granted(grant) => {
                out.push(b'g');
                encode_grant(grant, out);
            }
            Self::Ended(token) => {
                out.push(b'e');
                out.extend(token.to_le_bytes());
            }
            Self::Withdrawn(token) => {
                out.push(b'w');
                out.extend(token.to_le_bytes());
            }
            Self::Begun => out.push(b'b'),
            Self::Closed => out.push(b'c'),
        }
        let length = u32::try_from(out.len() - start).expect("BUG: a record is too long");
        let checksum = checksum(salt, &out[start + 8..]);
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
        out[start + 4..start + 8].copy_from_slice(&checksum.to_le_bytes());
    }

    /// The record at the start of these bytes, how many it has, and where its
    /// batch began.
    pub(crate) fn decode(salt: u64, bytes: &[u8]) -> Option<(Self, usize, u32)> {
        let mut fields = FieldReader(bytes);
        let (length, sum) = (fields.u32()? as usize, fields.u32()?);
        if !(FRAME_BYTES..=RECORD_MAX_BYTES).contains(&length) {
            return None;
        }
        let framed = bytes.get(8..length)?;
        if checksum(salt, framed) != sum {
            return None;
        }
        let mut fields = FieldReader(framed);
        let batch = masked(salt, fields.u32()?);
        let record = match fields.take(1)? {
            b"g" => Self::Granted(Arc::new(decode_grant(&mut fields)?)),
            b"e" => Self::Ended(fields.u64()?),
            b"w" => Self::Withdrawn(fields.u64()?),
            b"b" => Self::Begun,
            b"c" => Self::Closed,
            _ => return None,
        };
        fields.0.is_empty().then_some((record, length, batch))
    }
}

/// The first whole record behind this place, and whether there is one of a later batch.
/// Then all records before that batch were written whole.
pub(crate) fn whole_behind(salt: u64, bytes: &[u8], place: usize) -> Option<(usize, bool)> {
    let mut first = None;
    // By the byte that tells the kind, as nearly all of a file is blank.
    let kinds = bytes.iter().enumerate().skip(place + FRAME_BYTES);
    for (kind, _) in kinds.filter(|(_, byte)| matches!(byte, b'g' | b'e' | b'w' | b'b' | b'c')) {
        let next = kind + 1 - FRAME_BYTES;
        let Some((_, _, batch)) = decode_if_likely(salt, bytes, next) else { continue };
        let first = *first.get_or_insert(next);
        if batch as usize > place {
            return Some((first, true));
        }
    }
    first.map(|first| (first, false))
}

/// Whether these bytes are a record that was not written to its end. Such a record says
/// that its batch began here, or where the last one did.
pub(crate) fn is_torn(salt: u64, bytes: &[u8], place: usize, last_batch: u32) -> bool {
    batch_at(salt, bytes, place).is_some_and(|batch| batch == last_batch || batch as usize == place)
}

fn batch_at(salt: u64, bytes: &[u8], place: usize) -> Option<u32> {
    Some(masked(salt, FieldReader(bytes.get(place + 8..)?).u32()?))
}

/// The place of a batch as it is written, and back. No other generation writes the same.
fn masked(salt: u64, batch: u32) -> u32 {
    batch ^ salt as u32
}

/// A record, if its batch began no later: else the checksum is not computed.
fn decode_if_likely(salt: u64, bytes: &[u8], place: usize) -> Option<(JournalRecord, usize, u32)> {
    let is_likely = batch_at(salt, bytes, place)? as usize <= place;
    if is_likely { JournalRecord::decode(salt, &bytes[place..]) } else { None }
}

/// How many bytes the record of a grant has.
pub(crate) fn granted_bytes(terms: &GrantTerms) -> usize {
    let request_id = terms.request_id.as_deref().map_or(0, str::len);
    FRAME_BYTES + 3 * 8 + 1 + 3 * 4 + terms.resource.len() + terms.client.len() + request_id
}

/// How many bytes the record of an end has.
pub(crate) const ENDED_BYTES: usize = FRAME_BYTES + 8;

fn encode_grant(grant: &Grant, out: &mut Vec<u8>) {
    let terms = &grant.terms;
    let lease = terms.lease.map_or(NO_LEASE, whole_milliseconds);
    for number in [grant.token, grant.since, lease] {
        out.extend(number.to_le_bytes());
    }
    out.push(u8::from(terms.is_literal) | u8::from(terms.request_id.is_some()) << 1);
    let request_id = terms.request_id.as_deref().unwrap_or_default();
    for text in [&*terms.resource, &*terms.client, request_id] {
        let length = u32::try_from(text.len()).expect("BUG: a name is too long");
        out.extend(length.to_le_bytes());
        out.extend(text.as_bytes());
    }
}

fn decode_grant(fields: &mut FieldReader<'_>) -> Option<Grant> {
    let (token, since, lease) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let flags = fields.take(1)?[0];
    let resource = fields.text()?;
    let client = fields.text()?;
    let request_id = fields.text()?;
    let terms = GrantTerms {
        resource,
        client,
        lease: (lease != NO_LEASE).then(|| Duration::from_millis(lease)),
        request_id: (flags & 2 != 0).then_some(request_id),
        is_literal: flags & 1 != 0,
    };
    Some(Grant { terms, token, since })
}

/// Rounded up: a lease is never shorter than its holder believes.
fn whole_milliseconds(lease: Duration) -> u64 {
    let milliseconds = lease.as_nanos().div_ceil(1_000_000);
    u64::try_from(milliseconds).unwrap_or(u64::MAX).min(NO_LEASE - 1)
}

/// What is left to be decoded.
struct FieldReader<'a>(&'a [u8]);

impl<'a> FieldReader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<Arc<str>> {
        let length = self.u32()? as usize;
        std::str::from_utf8(self.take(length)?).ok().map(Arc::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(client: &str, request_id: Option<&str>) -> Arc<Grant> {
        let terms = GrantTerms {
            resource: "r-é".into(),
            client: client.into(),
            lease: request_id.map(|_| Duration::from_micros(1500)),
            request_id: request_id.map(Arc::from),
            is_literal: request_id.is_none(),
        };
        Arc::new(Grant { terms, token: u64::MAX - 1, since: 1_700_000_000_123 })
    }

    #[test]
    fn records_come_back() {
        let holds = [hold("", None), hold("c", Some("")), hold(" c\n", Some("id"))];
        let granted = holds.map(JournalRecord::Granted);
        let rest = [
            JournalRecord::Ended(7),
            JournalRecord::Withdrawn(8),
            JournalRecord::Begun,
            JournalRecord::Closed,
        ];
        for record in granted.into_iter().chain(rest) {
            let mut bytes = Vec::new();
            record.encode(9, 72, &mut bytes);
            match &record {
                JournalRecord::Granted(grant) => {
                    assert_eq!(bytes.len(), granted_bytes(&grant.terms))
                }
                JournalRecord::Ended(_) | JournalRecord::Withdrawn(_) => {
                    assert_eq!(bytes.len(), ENDED_BYTES)
                }
                _ => {}
            }
            let (back, length, batch) = JournalRecord::decode(9, &bytes).unwrap();
            assert_eq!((length, batch), (bytes.len(), 72));
            match (back, record) {
                (JournalRecord::Granted(back), JournalRecord::Granted(grant)) => {
                    let rounded = grant.terms.lease.map(|_| Duration::from_millis(2));
                    assert_eq!(back.terms.lease, rounded);
                    assert_eq!(back.terms.request_id, grant.terms.request_id);
                    assert_eq!((back.token, back.since), (grant.token, grant.since));
                }
                (back, record) => assert_eq!(back, record),
            }
        }
    }

    #[test]
    fn no_damaged_record_is_believed() {
        let mut bytes = Vec::new();
        JournalRecord::Granted(hold("client", Some("id"))).encode(3, 72, &mut bytes);
        assert!(JournalRecord::decode(4, &bytes).is_none(), "of another salt");
        for cut in 0..bytes.len() {
            assert!(JournalRecord::decode(3, &bytes[..cut]).is_none());
        }
        for place in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[place] ^= 1 << bit;
                assert!(JournalRecord::decode(3, &damaged).is_none(), "bit {bit} of byte {place}");
            }
        }
    }

    #[test]
    fn no_damaged_header_is_believed() {
        let (capacity, is_synced, boot) = (1 << 17, true, [b'a'; 36]);
        let header = Header { generation: 5, salt: 6, capacity, is_synced, boot, next_token: 77 };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Some(header));
        for place in 0..HEADER_LENGTH {
            let mut damaged = bytes;
            damaged[place] ^= 1;
            assert!(Header::decode(&damaged).is_none());
        }
        assert!(Header::decode(&[0; HEADER_BYTES]).is_none());
    }

    #[test]
    fn no_damaged_mark_is_believed() {
        let header = |salt| Header {
            generation: 5,
            salt,
            capacity: 1 << 17,
            is_synced: true,
            boot: [b'a'; 36],
            next_token: 77,
        };
        let mut bytes = header(6).encode();
        assert_eq!(header(6).decode_mark(&bytes), 0);
        let marked = MARK_PLACE..MARK_PLACE + MARK_BYTES;
        bytes[marked.clone()].copy_from_slice(&header(6).encode_mark(4711));
        assert_eq!(header(6).decode_mark(&bytes), 4711);
        assert_eq!(header(7).decode_mark(&bytes), 0);
        assert_eq!(header(6).decode_mark(&bytes[..600]), 4711);
        assert_eq!(header(6).decode_mark(&bytes[..520]), 0);
        for place in marked {
            let mut damaged = bytes;
            damaged[place] ^= 1;
            assert_eq!(header(6).decode_mark(&damaged), 0);
        }
    }
}
