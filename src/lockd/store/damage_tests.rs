//! What is missing is told, and no token is given again. (S7)

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::journal::MARK_BYTES_APART;
use super::record::{HEADER_BYTES, Header, JournalRecord, UNKNOWN_BOOT};
use super::tests::{
    BOOT, NEXT_BOOT, accepting, at, copy, end, entry, grant, held, open, refused, terms, try_open,
};
use super::*;

/// What a test does to a file, and what is to be said of it.
type Way = (&'static str, fn(&Path));

/// Longer than anything here takes that does not hang.
const LONG: Duration = Duration::from_secs(60);

type DirectoryContents = BTreeMap<String, Vec<u8>>;

fn contents(path: &Path) -> DirectoryContents {
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read(path).unwrap())
        })
        .collect()
}

/// A directory as a killed daemon leaves it, and what it gave.
struct LeftDirectory {
    directory: TempDir,
    given: Vec<Arc<Grant>>,
}

fn left(count: usize, sync: bool) -> LeftDirectory {
    left_in(BOOT, count, sync)
}

fn left_in(boot: [u8; 36], count: usize, sync: bool) -> LeftDirectory {
    let directory = TempDir::new_in("/dev/shm").unwrap();
    let (mut store, _) = open(directory.path(), boot, sync);
    let given = (0..count).map(|number| grant(&mut store, &format!("r{number}"), "c")).collect();
    LeftDirectory { directory, given }
}

impl LeftDirectory {
    /// Another directory with the same in it.
    fn copied(&self) -> TempDir {
        let copied = TempDir::new_in("/dev/shm").unwrap();
        copy(self.directory.path(), copied.path());
        copied
    }

    fn last(&self) -> u64 {
        self.given.last().unwrap().token
    }
}

/// The file that counts, its bytes, and where its records begin.
fn active(path: &Path) -> (&'static str, Vec<u8>, Vec<usize>) {
    let files = JOURNALS.map(|name| (name, fs::read(path.join(name)).unwrap()));
    let generation = |bytes: &[u8]| Header::decode(bytes).map_or(0, |header| header.generation);
    let (name, bytes) = files.into_iter().max_by_key(|(_, bytes)| generation(bytes)).unwrap();
    let salt = Header::decode(&bytes).unwrap().salt;
    let mut places = vec![HEADER_BYTES];
    while let Some((_, length, _)) = JournalRecord::decode(salt, &bytes[*places.last().unwrap()..])
    {
        places.push(places.last().unwrap() + length);
    }
    (name, bytes, places)
}

/// Started with the loss accepted: all that was damaged is beside it, and the next
/// start needs nothing.
#[track_caller]
fn accepted(path: &Path, last: u64) -> Recovered {
    let before = contents(path);
    let (mut store, recovered) = accepting(path, BOOT);
    assert!(grant(&mut store, "new", "c").token > last);
    drop(store);
    let after = contents(path);
    let own = |name: &&String| name.starts_with(".lockkeeper-") && !name.contains(".damaged-");
    for name in before.keys().filter(own) {
        let kept = after.iter().find(|(other, _)| other.starts_with(&format!("{name}.damaged-")));
        if let Some((_, bytes)) = kept {
            assert_eq!(*bytes, before[name], "{name}");
        }
    }
    let (mut store, again) = open(path, BOOT, true);
    assert_eq!(again.held.len(), recovered.held.len() + 1);
    assert!(grant(&mut store, "newer", "c").token > last + 1);
    recovered
}

/// J5, J6: every bit of the journal counts but those of its last record.
#[test]
fn a_flipped_bit_is_told_wherever_it_is() {
    let left = left(6, true);
    let (name, bytes, places) = active(left.directory.path());
    let [.., last, end] = places[..] else { panic!("{places:?}") };
    for place in (0..92).step_by(7).chain((HEADER_BYTES..end).step_by(3)) {
        let copied = left.copied();
        let mut damaged = bytes.clone();
        damaged[place] ^= 0x10;
        fs::write(copied.path().join(name), &damaged).unwrap();
        if place >= last {
            // It may be what a crash in a write leaves.
            let (mut store, recovered) = open(copied.path(), BOOT, true);
            assert_eq!(held(&recovered).len(), left.given.len());
            assert!(grant(&mut store, "new", "c").token > left.last());
            continue;
        }
        let before = contents(copied.path());
        let at = places.iter().rev().find(|&&start| start <= place).filter(|_| place >= 92);
        let expected = format!("{name} is damaged at byte {}: ", at.unwrap_or(&0));
        for boot in [BOOT, NEXT_BOOT] {
            let found = refused(copied.path(), boot);
            assert!(found.contains(&expected), "{place}: {found:?} has no {expected:?}");
        }
        assert!(contents(copied.path()) == before, "it was changed");
    }
}

/// What is behind a bad record is not lost with it.
#[test]
fn whole_records_behind_a_bad_one_count_when_the_loss_is_accepted() {
    let left = left(6, true);
    let (name, mut bytes, places) = active(left.directory.path());
    // The record of r1, behind that of r0 and the beginning.
    bytes[places[2] + 20] ^= 1;
    fs::write(left.directory.path().join(name), bytes).unwrap();
    let recovered = accepted(left.directory.path(), left.last());
    let found = held(&recovered);
    let mut expected: BTreeMap<_, _> = left.given.iter().map(entry).collect();
    // r0 may have been given again in the bad record, to the same client.
    for name in ["r0", "r1"] {
        let before = expected.remove(name).unwrap();
        assert!(found[name].1 > before.1, "it is held by its file, under a new token");
    }
    let behind = |name: &String| expected.contains_key(name);
    let found: BTreeMap<_, _> = found.into_iter().filter(|(name, _)| behind(name)).collect();
    assert_eq!(found, expected);
}

/// How the end of what a journal says is lost.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// It was in a generation of its own, whose header is bad.
    Header,
    /// And whose file is missing.
    File,
    /// Its records are bad, and there is a whole one behind them.
    Records,
}

const LOSSES: [Loss; 3] = [Loss::Header, Loss::File, Loss::Records];

/// Do this, and lose the records of it.
fn lose<T>(loss: Loss, store: &mut Store, path: &Path, lost: impl FnOnce(&mut Store) -> T) -> T {
    if !matches!(loss, Loss::Records) {
        store.append_to_next(&[]).unwrap();
    }
    let from = active(path).2.len() - 1;
    let result = lost(store);
    grant(store, "later", "c");
    let (name, mut bytes, places) = active(path);
    match loss {
        Loss::Header => bytes[20] ^= 1,
        Loss::File => return fs::remove_file(path.join(name)).map(|()| result).unwrap(),
        Loss::Records => {
            places[from..places.len() - 2].iter().for_each(|place| bytes[place + 9] ^= 1);
        }
    }
    fs::write(path.join(name), bytes).unwrap();
    result
}

/// Each way to lose it, and whether the machine was off since.
fn losses() -> impl Iterator<Item = (Loss, [u8; 36])> {
    LOSSES.into_iter().flat_map(|loss| [(loss, BOOT), (loss, NEXT_BOOT)])
}

/// What was ended may have been given again since.
#[test]
fn accepted_damage_takes_no_file_of_a_lock_that_may_be_held() {
    for (loss, boot) in losses() {
        let directory = TempDir::new_in("/dev/shm").unwrap();
        let path = directory.path();
        let (mut store, _) = open(path, BOOT, true);
        let first = grant(&mut store, "r", "c");
        end(&mut store, &first);
        let second = lose(loss, &mut store, path, |store| grant(store, "r", "c"));
        drop(store);
        refused(path, boot);
        let (_, recovered) = accepting(path, boot);
        let found = held(&recovered).remove("r");
        let (client, token) = found.unwrap_or_else(|| panic!("{loss:?} {boot:?}: it is free"));
        assert!(client == "c" && token > second.token, "{loss:?}: {token}");
        assert_eq!(fs::read(at(path, "r")).unwrap(), b"c");
    }
}

/// The token, the lease and the request id of the older grant are not the later one's.
#[test]
fn a_lock_that_may_have_been_given_again_has_a_new_token_and_no_lease() {
    for (loss, boot) in losses() {
        let directory = TempDir::new_in("/dev/shm").unwrap();
        let path = directory.path();
        let (mut store, _) = open(path, BOOT, true);
        let (lease, request_id) = (Some(Duration::from_secs(10)), Some("id".into()));
        let leased = GrantTerms { lease, request_id, ..terms("r", "c") };
        let changed = store.commit(vec![ChangeRequest::Grant(leased)]).remove(0);
        let ChangeOutcome::Granted(first) = changed else { panic!("{changed:?}") };
        let second = lose(loss, &mut store, path, |store| {
            end(store, &first);
            grant(store, "r", "c")
        });
        drop(store);
        let grant = &accepting(path, boot).1.held["r"];
        assert!(grant.token > second.token, "{loss:?} {boot:?}: {grant:?}");
        assert_eq!((grant.terms.lease, &grant.terms.request_id), (None, &None));
    }
}

/// While the machine runs its file is gone. After a power cut it may be held: see below.
#[test]
fn a_lock_whose_end_was_lost_is_free_or_has_a_new_token() {
    for (loss, boot) in losses() {
        let directory = TempDir::new_in("/dev/shm").unwrap();
        let path = directory.path();
        let (mut store, _) = open(path, BOOT, true);
        let ended = grant(&mut store, "r", "c");
        lose(loss, &mut store, path, |store| end(store, &ended));
        drop(store);
        let found = held(&accepting(path, boot).1).remove("r");
        assert_eq!(found.is_some(), boot == NEXT_BOOT, "{loss:?}");
        assert!(found.is_none_or(|(_, token)| token > ended.token + 1));
    }
}

/// The journal that is whole may be the newer one, and a power cut takes the names of
/// files: what it says is held is not free then.
#[test]
fn a_file_that_a_power_cut_took_is_made_again_though_the_other_journal_is_damaged() {
    let left = left(3, true);
    let path = left.directory.path();
    let newer = active(path).0;
    for name in JOURNALS.into_iter().filter(|name| *name != newer) {
        fs::remove_file(path.join(name)).unwrap();
    }
    fs::remove_file(at(path, "r0")).unwrap();
    fs::write(at(path, "r1"), "").unwrap();
    let (_, recovered) = accepting(path, NEXT_BOOT);
    let found = held(&recovered);
    for name in ["r0", "r1", "r2"] {
        assert!(found[name].0 == "c" && found[name].1 > left.last(), "{found:?}");
        assert_eq!(fs::read(at(path, name)).unwrap(), b"c");
    }
}

/// A later grant of the same lock shows that the one before ended.
#[test]
fn what_is_behind_the_damage_counts_before_what_may_have_ended() {
    for boot in [BOOT, NEXT_BOOT] {
        let directory = TempDir::new_in("/dev/shm").unwrap();
        let path = directory.path();
        let (mut store, _) = open(path, BOOT, true);
        let firsts = ["held", "ended"].map(|name| grant(&mut store, name, "c"));
        lose(Loss::Records, &mut store, path, |store| {
            firsts.iter().for_each(|grant| end(store, grant));
        });
        let seconds = ["held", "ended"].map(|name| grant(&mut store, name, "d"));
        end(&mut store, &seconds[1]);
        drop(store);
        if boot == NEXT_BOOT {
            fs::remove_file(at(path, "held")).unwrap();
            fs::write(at(path, "ended"), "d").unwrap();
        }
        let found = held(&accepting(path, boot).1);
        assert_eq!(found.get("held"), Some(&entry(&seconds[0]).1), "{found:?}");
        assert!(!found.contains_key("ended") && !at(path, "ended").exists());
    }
}

/// The records that a generation begins with were held when it began, whichever of
/// them are bad.
#[test]
fn a_bad_record_among_those_of_the_beginning_puts_only_itself_in_doubt() {
    let LeftDirectory { directory, mut given } = left(4, true);
    let path = directory.path();
    let (mut store, _) = open(path, BOOT, true);
    // Without a later batch it could come from a crash.
    given.push(grant(&mut store, "later", "c"));
    drop(store);
    let (name, mut bytes, places) = active(path);
    bytes[places[1] + 9] ^= 1;
    fs::write(path.join(name), bytes).unwrap();
    let found = held(&accepting(path, BOOT).1);
    let given: BTreeMap<_, _> = given.iter().map(entry).collect();
    let same = found.iter().filter(|(name, entry)| given[*name] == **entry);
    assert_eq!((found.len(), same.count()), (5, 4));
}

/// The end of the newer file may be lost with the rest; the older one says nothing.
#[test]
fn a_file_that_is_cut_puts_in_doubt_what_it_says_last_if_it_is_the_newer_one() {
    let left = left(20, true);
    let newer = active(left.directory.path()).0;
    for name in JOURNALS {
        let copied = left.copied();
        let file = fs::File::options().write(true).open(copied.path().join(name)).unwrap();
        // Behind all that is in it.
        file.set_len(100_000).unwrap();
        let found = held(&accepting(copied.path(), BOOT).1);
        let given: BTreeMap<_, _> = left.given.iter().map(entry).collect();
        assert_eq!(found == given, name != newer, "{name}: {found:?}");
        assert!(found.keys().eq(given.keys()));
    }
}

#[test]
fn files_that_are_missing_cut_or_blank_are_told() {
    let left = left(50, true);
    let ways: [Way; 4] = [
        ("is missing", |file| fs::remove_file(file).unwrap()),
        ("is damaged at byte 0: it is empty", |file| fs::write(file, "").unwrap()),
        ("is damaged at byte 0: it is blank", |file| {
            let length = fs::metadata(file).unwrap().len();
            fs::write(file, vec![0; usize::try_from(length).unwrap()]).unwrap();
        }),
        ("is damaged at byte 2000: it is cut there", |file| {
            fs::File::options().write(true).open(file).unwrap().set_len(2000).unwrap();
        }),
    ];
    for (what, damage) in ways {
        for names in [&JOURNALS[..1], &JOURNALS[1..], &JOURNALS[..]] {
            let copied = left.copied();
            let path = copied.path();
            names.iter().for_each(|name| damage(&path.join(name)));
            let before = contents(path);
            let found = refused(path, BOOT);
            for name in names {
                assert!(found.contains(&format!("{name} {what}")), "{found:?} has no {what:?}");
            }
            assert!(contents(path) == before, "it was changed");
            let recovered = accepted(path, left.last());
            assert_eq!(recovered.held.len(), left.given.len(), "{what} {names:?}");
        }
    }
}

/// J5: a block of zeros at the end of a journal ends it too early.
#[test]
fn a_blank_end_is_told() {
    let left = left(200, true);
    let (name, mut bytes, places) = active(left.directory.path());
    let place = places[20];
    bytes[place..].fill(0);
    fs::write(left.directory.path().join(name), bytes).unwrap();
    let found = refused(left.directory.path(), BOOT);
    assert!(
        found.contains(&format!("{name} is damaged at byte {place}: it ends there")),
        "{found}"
    );
    accepted(left.directory.path(), left.last());
}

/// J5: the mark follows the batches, so that a blank end is told late in a generation too.
#[test]
fn a_blank_end_is_told_behind_many_batches() {
    let directory = TempDir::new_in("/dev/shm").unwrap();
    let path = directory.path();
    let (mut store, _) = open(path, BOOT, true);
    let start = Instant::now();
    let mark = loop {
        let grant = grant(&mut store, "r", "c");
        end(&mut store, &grant);
        let bytes = active(path).1;
        let mark = Header::decode(&bytes).unwrap().decode_mark(&bytes);
        if mark > 3 * MARK_BYTES_APART {
            break mark;
        }
        assert!(start.elapsed() < LONG, "the mark stays at byte {mark}");
        std::thread::sleep(Duration::from_millis(1));
    };
    drop(store);
    let (name, mut bytes, places) = active(path);
    let place = places.into_iter().rfind(|place| *place < mark).unwrap();
    bytes[place..].fill(0);
    fs::write(path.join(name), bytes).unwrap();
    let found = refused(path, BOOT);
    let expected =
        format!("{name} is damaged at byte {place}: it ends there, and was written to byte {mark}");
    assert!(found.contains(&expected), "{found}");
}

/// J5: without syncs the disk may have any part of what was written last.
#[test]
fn what_was_not_synced_may_be_missing_after_a_power_cut() {
    // A boot that cannot be told is like no other.
    for (before, after) in [(BOOT, NEXT_BOOT), (UNKNOWN_BOOT, UNKNOWN_BOOT)] {
        let left = left_in(before, 200, false);
        let (name, mut bytes, places) = active(left.directory.path());
        bytes[places[20]..places[60]].fill(0);
        fs::write(left.directory.path().join(name), bytes).unwrap();
        if before != UNKNOWN_BOOT {
            refused(left.directory.path(), before);
        }
        let (mut store, recovered) = open(left.directory.path(), after, false);
        assert!(recovered.held.len() >= 160);
        assert!(grant(&mut store, "new", "c").token > left.last());
    }
}

/// J5: no batch but the last can be torn, and that was not answered.
#[test]
fn a_torn_batch_is_normal_in_whatever_order_it_was_written() {
    let directory = TempDir::new_in("/dev/shm").unwrap();
    let path = directory.path();
    let (mut store, _) = open(path, BOOT, true);
    grant(&mut store, "first", "c");
    let changes =
        (0..BATCH_MAX).map(|number| ChangeRequest::Grant(terms(&format!("r{number}"), "c")));
    store.commit(changes.collect());
    drop(store);
    let (name, bytes, places) = active(path);
    for hole in [3..4, 3..20, 30..places.len() - 1] {
        let mut torn = bytes.clone();
        torn[places[hole.start]..places[hole.end]].fill(0);
        fs::write(path.join(name), &torn).unwrap();
        let copied = TempDir::new_in("/dev/shm").unwrap();
        copy(path, copied.path());
        let (_, recovered) = open(copied.path(), BOOT, true);
        assert_eq!(held(&recovered)["first"].0, "c");
    }
}

/// The bound alone cannot be made up: the journal may say less than was given.
#[test]
fn a_bound_that_is_missing_is_asked_for() {
    let left = left(3, true);
    let ways: [Way; 4] = [
        ("is missing", |file| fs::remove_file(file).unwrap()),
        ("is damaged at byte 0", |file| fs::write(file, "").unwrap()),
        ("is damaged at byte 0", |file| fs::write(file, [0; 1024]).unwrap()),
        ("is damaged at byte 0", |file| fs::write(file, "what is this").unwrap()),
    ];
    for (what, damage) in ways {
        let copied = left.copied();
        let path = copied.path();
        damage(&path.join(TOKENS));
        let before = contents(path);
        assert!(refused(path, BOOT).contains(&format!("{TOKENS} {what}")));
        // To accept the loss says nothing of the tokens.
        let accept = StoreOptions { sync: true, accept_damage: true, tokens_above: None };
        assert!(matches!(try_open(path, BOOT, accept), Err(Unopened::Damaged { .. })));
        assert!(contents(path) == before);
        let above =
            StoreOptions { sync: true, accept_damage: false, tokens_above: Some(5_000_000) };
        let (mut store, recovered) = try_open(path, BOOT, above).unwrap();
        assert_eq!(held(&recovered), left.given.iter().map(entry).collect());
        assert_eq!(grant(&mut store, "new", "c").token, 5_000_001);
        drop(store);
        let after = contents(path);
        assert_eq!(after.get(&format!("{TOKENS}.damaged-1")), before.get(TOKENS));
        open(path, BOOT, true);
    }
}

/// A number that was left from an earlier start does not answer for the counter.
#[test]
fn a_number_below_what_the_journal_shows_does_not_stand_in_for_the_counter() {
    let left = left(3, true);
    let ways: [Way; 2] = [
        ("is missing", |file| fs::remove_file(file).unwrap()),
        ("is damaged", |file| fs::write(file, [0; 1024]).unwrap()),
    ];
    for (what, damage) in ways {
        let copied = left.copied();
        let path = copied.path();
        damage(&path.join(TOKENS));
        let before = contents(path);
        let with =
            |above| StoreOptions { sync: true, accept_damage: true, tokens_above: Some(above) };
        for boot in [BOOT, NEXT_BOOT] {
            let refused = try_open(path, boot, with(left.last() - 1));
            let Err(Unopened::Damaged { found, .. }) = refused else { panic!("{refused:?}") };
            let low = format!("--tokens-above {} is below {}", left.last() - 1, left.last());
            assert!(found.contains(what) && found.contains(&low), "{found}");
        }
        assert!(contents(path) == before, "it was changed");
        let (mut store, _) = try_open(path, NEXT_BOOT, with(left.last())).unwrap();
        assert_eq!(grant(&mut store, "new", "c").token, left.last() + 1);
    }
}

/// T4.
#[test]
fn one_slot_of_the_bound_is_enough() {
    let left = left(3, true);
    // The bound has come a long way since the slots were last written.
    let above = StoreOptions { sync: true, accept_damage: false, tokens_above: Some(50_000_000) };
    let (mut store, _) = try_open(left.directory.path(), BOOT, above).unwrap();
    let last = grant(&mut store, "last", "c").token;
    drop(store);
    for slot in [0, 512] {
        let copied = left.copied();
        let file = copied.path().join(TOKENS);
        let mut bytes = fs::read(&file).unwrap();
        bytes[slot + 3] ^= 1;
        fs::write(&file, bytes).unwrap();
        let (mut store, _) = open(copied.path(), BOOT, true);
        assert!(grant(&mut store, "new", "c").token > last);
    }
}

/// T4 over the only moment at which the slots differ.
#[test]
fn the_greater_slot_may_be_lost_when_all_below_the_smaller_was_given() {
    let directory = TempDir::new_in("/dev/shm").unwrap();
    let path = directory.path();
    let (mut store, _) = open(path, BOOT, true);
    let first = grant(&mut store, "r0", "c").token;
    store.tokens.skip_to_the_bound();
    let last = grant(&mut store, "r1", "c").token;
    assert!(last > first + 1000);
    drop(store);
    for slot in [0, 512] {
        let copied = TempDir::new_in("/dev/shm").unwrap();
        copy(path, copied.path());
        let mut bytes = fs::read(path.join(TOKENS)).unwrap();
        bytes[slot] ^= 1;
        fs::write(copied.path().join(TOKENS), bytes).unwrap();
        let (mut store, _) = open(copied.path(), BOOT, true);
        assert!(grant(&mut store, "new", "c").token > last, "slot {slot}");
    }
}

#[test]
fn a_bound_from_an_older_copy_is_told() {
    let left = left(3, true);
    let path = left.directory.path();
    let old = fs::read(path.join(TOKENS)).unwrap();
    let (mut store, _) = open(path, BOOT, true);
    store.tokens.skip_to_the_bound();
    let last = grant(&mut store, "new", "c").token;
    drop(store);
    fs::write(path.join(TOKENS), old).unwrap();
    let found = refused(path, BOOT);
    assert!(found.contains("is older than the journal") && found.contains(&last.to_string()));
}

/// T2: a journal that was closed is whole, but there may have been another after it.
#[test]
fn a_closed_journal_that_was_followed_by_another_does_not_count_the_tokens() {
    let directory = TempDir::new_in("/dev/shm").unwrap();
    let path = directory.path();
    open(path, BOOT, true).0.close().unwrap();
    fs::write(path.join("r.resource.lock"), "foreign").unwrap();
    let (store, recovered) = open(path, BOOT, true);
    let shown = held(&recovered)["r"].1;
    drop(store);
    let (name, mut bytes, places) = active(path);
    bytes[places[0] + 20] ^= 1;
    fs::write(path.join(name), bytes).unwrap();
    assert!(held(&open(path, BOOT, true).1)["r"].1 > shown);
}

/// T3: whatever a crash leaves of the first start is no damage.
#[test]
fn a_first_start_may_be_interrupted() {
    let place = TempDir::new_in("/dev/shm").unwrap();
    let directory = LockDirectory::open(place.path()).unwrap();
    TokenCounter::create(&directory).unwrap();
    let tokens = fs::read(place.path().join(TOKENS)).unwrap();
    drop(past::open(&directory).unwrap());
    Journal::create(&directory, past::open(&directory).unwrap(), BOOT, FIRST).unwrap();
    let whole = JOURNALS.map(|name| fs::read(place.path().join(name)).unwrap());
    let blank = || Some(vec![0; 70_000]);
    let states = [
        [None, None],
        [Some(Vec::new()), None],
        [Some(Vec::new()), Some(Vec::new())],
        [blank(), Some(Vec::new())],
        [blank(), blank()],
        [blank(), Some(whole[1].clone())],
        [Some(whole[0].clone()), Some(whole[1].clone())],
    ];
    for state in states {
        let place = TempDir::new_in("/dev/shm").unwrap();
        fs::write(place.path().join(TOKENS), &tokens).unwrap();
        fs::write(place.path().join("r.resource.lock"), "foreign").unwrap();
        for (name, bytes) in JOURNALS.iter().zip(state) {
            if let Some(bytes) = bytes {
                fs::write(place.path().join(name), bytes).unwrap();
            }
        }
        let (mut store, recovered) = open(place.path(), NEXT_BOOT, true);
        assert_eq!(held(&recovered), [("r".to_owned(), ("foreign".to_owned(), 1))].into());
        assert_eq!(grant(&mut store, "new", "c").token, 2);
    }
    // But what is no journal is not written over.
    fs::write(place.path().join(JOURNALS[0]), "my notes").unwrap();
    assert!(refused(place.path(), BOOT).contains("does not begin as a journal does"));
}
