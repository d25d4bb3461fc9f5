use std::collections::BTreeMap;
use std::fs;

use tempfile::TempDir;

use super::record::HEADER_BYTES;
use super::*;

pub(super) const BOOT: [u8; 36] = [b'1'; 36];
pub(super) const NEXT_BOOT: [u8; 36] = [b'2'; 36];

pub(super) fn terms(resource: &str, client: &str) -> GrantTerms {
    let (resource, client) = (resource.into(), client.into());
    GrantTerms { resource, client, lease: None, request_id: None, is_literal: false }
}

pub(super) fn open(path: &Path, boot: [u8; 36], sync: bool) -> (Store, Recovered) {
    let options = StoreOptions { sync, accept_damage: false, tokens_above: None };
    try_open(path, boot, options).unwrap_or_else(|error| panic!("{error:?}"))
}

pub(super) fn try_open(
    path: &Path,
    boot: [u8; 36],
    options: StoreOptions,
) -> Result<(Store, Recovered), Unopened> {
    Store::open(path, boot, options)
}

const ACCEPTING: StoreOptions =
    StoreOptions { sync: true, accept_damage: true, tokens_above: None };

pub(super) fn accepting(path: &Path, boot: [u8; 36]) -> (Store, Recovered) {
    Store::open(path, boot, ACCEPTING).unwrap_or_else(|error| panic!("{error:?}"))
}

/// What a start that must fail says is damaged.
pub(super) fn refused(path: &Path, boot: [u8; 36]) -> String {
    let options = StoreOptions { accept_damage: false, ..ACCEPTING };
    match Store::open(path, boot, options) {
        Err(Unopened::Damaged { found, .. }) => found,
        other => panic!("{other:?}"),
    }
}

pub(super) fn grant(store: &mut Store, resource: &str, client: &str) -> Arc<Grant> {
    match store.commit(vec![ChangeRequest::Grant(terms(resource, client))]).remove(0) {
        ChangeOutcome::Granted(grant) => grant,
        other => panic!("{other:?}"),
    }
}

pub(super) fn end(store: &mut Store, grant: &Arc<Grant>) {
    let ended = store.commit(vec![ChangeRequest::End(Arc::clone(grant))]);
    assert_eq!(ended, [ChangeOutcome::Ended { had_file: true }]);
}

/// The holders by resource, with their tokens.
pub(super) fn held(recovered: &Recovered) -> BTreeMap<String, (String, u64)> {
    let holds = recovered.held.values();
    holds
        .map(|it| (it.terms.resource.to_string(), (it.terms.client.to_string(), it.token)))
        .collect()
}

pub(super) fn entry(grant: &Arc<Grant>) -> (String, (String, u64)) {
    (grant.terms.resource.to_string(), (grant.terms.client.to_string(), grant.token))
}

pub(super) fn at(path: &Path, name: &str) -> PathBuf {
    path.join(format!("{name}.resource.lock"))
}

pub(super) fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// R2: whatever has become of the files, the journal says what was held.
#[test]
fn a_power_cut_takes_no_lock_and_gives_none_back() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let (mut store, _) = open(path, BOOT, true);
    let names = ["kept", "lost", "empty", "torn", "zeros", "a/b", ""];
    let holds: Vec<_> = names.map(|name| grant(&mut store, name, "client")).into();
    let nameless = grant(&mut store, "nameless", "");
    let ended: Vec<_> = ["back", "back torn"].map(|name| grant(&mut store, name, "client")).into();
    ended.iter().for_each(|grant| end(&mut store, grant));
    let last = ended[1].token;
    drop(store);
    fs::remove_file(at(path, "lost")).unwrap();
    fs::remove_file(at(path, "a%2Fb")).unwrap();
    fs::write(at(path, "empty"), "").unwrap();
    fs::write(at(path, "torn"), "cli").unwrap();
    fs::write(at(path, "zeros"), "\0\0\0\0\0\0").unwrap();
    fs::write(at(path, "back"), "client").unwrap();
    fs::write(at(path, "back torn"), "").unwrap();
    // Another program changed the holder since; and a file that was never ours.
    fs::write(at(path, "kept"), "another").unwrap();
    fs::write(at(path, "foreign"), "c").unwrap();
    let (mut store, recovered) = open(path, NEXT_BOOT, true);
    let mut expected: BTreeMap<_, _> = holds[1..].iter().chain([&nameless]).map(entry).collect();
    let mut found = held(&recovered);
    // A prefix of the name is a name, too.
    expected.remove("torn");
    assert_eq!(found.remove("torn").unwrap().0, "cli");
    let kept = found.remove("kept").unwrap();
    assert!(kept.0 == "another" && kept.1 > last);
    assert!(found.remove("foreign").unwrap().1 > last);
    assert_eq!(found, expected);
    assert_eq!(recovered.problems, BTreeMap::new());
    for name in ["lost", "a%2Fb", "empty", "zeros"] {
        assert_eq!(fs::read(at(path, name)).unwrap(), b"client");
    }
    assert!(!at(path, "back").exists() && !at(path, "back torn").exists());
    assert!(grant(&mut store, "new", "c").token > kept.1);
}

/// T2: what an unsynced journal forgot was given all the same.
#[test]
fn tokens_go_on_behind_what_a_power_cut_took() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let (mut store, _) = open(path, BOOT, false);
    let before = TempDir::new().unwrap();
    copy(path, before.path());
    let last = (0..100).map(|number| grant(&mut store, &number.to_string(), "c").token).max();
    drop(store);
    // The disk has what was synced: the start.
    let (mut store, recovered) = open(before.path(), NEXT_BOOT, false);
    assert_eq!(held(&recovered), BTreeMap::new());
    assert!(grant(&mut store, "r", "c").token > last.unwrap());
    // And where the whole journal is gone.
    drop(store);
    for name in JOURNALS {
        fs::remove_file(before.path().join(name)).unwrap();
    }
    let (mut store, _) = accepting(before.path(), NEXT_BOOT);
    assert!(grant(&mut store, "s", "c").token > last.unwrap());
}

/// R1: while the machine runs, what others did to the files counts.
#[test]
fn files_count_while_the_machine_runs() {
    for (boot, is_closed) in [(BOOT, false), (BOOT, true), (NEXT_BOOT, true)] {
        let directory = TempDir::new().unwrap();
        let path = directory.path();
        let (mut store, _) = open(path, BOOT, true);
        let (gone, _) = (grant(&mut store, "gone", "c"), grant(&mut store, "emptied", "c"));
        let kept = grant(&mut store, "kept", "c");
        if is_closed {
            store.close().unwrap();
        } else {
            drop(store);
        }
        fs::remove_file(at(path, "gone")).unwrap();
        fs::write(at(path, "emptied"), "").unwrap();
        let (_, recovered) = open(path, boot, true);
        assert_eq!(held(&recovered), BTreeMap::from([entry(&kept)]));
        assert!(recovered.gone.contains(&gone));
        assert!(recovered.problems.contains_key("emptied"));
    }
}

/// J1, S2: killed between the record and the file, for each number of bytes
/// of the record that were written.
#[test]
fn what_was_granted_last_is_there_whole_or_not_at_all() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let (mut store, _) = open(path, BOOT, true);
    let first = grant(&mut store, "first", "c");
    let snapshot = TempDir::new().unwrap();
    copy(path, snapshot.path());
    let last = grant(&mut store, "last", "d");
    let files = JOURNALS.map(|name| (name, fs::read(path.join(name)).unwrap()));
    let (name, after) = files.iter().max_by_key(|(_, bytes)| generation(bytes)).unwrap();
    let before = fs::read(snapshot.path().join(name)).unwrap();
    let changed = |(one, other): (&u8, &u8)| one != other;
    let start = before.iter().zip(after).position(changed).unwrap();
    let stop =
        before.len() - before.iter().rev().zip(after.iter().rev()).position(changed).unwrap();
    for cut in start..=stop {
        let torn = TempDir::new().unwrap();
        copy(snapshot.path(), torn.path());
        fs::write(torn.path().join(name), [&after[..cut], &before[cut..]].concat()).unwrap();
        let (mut store, recovered) = open(torn.path(), BOOT, true);
        let mut expected = BTreeMap::from([entry(&first)]);
        expected.extend((cut == stop).then(|| entry(&last)));
        assert_eq!(held(&recovered), expected, "{cut} of {start} to {stop}");
        assert_eq!(at(torn.path(), "last").exists(), cut == stop);
        assert!(grant(&mut store, "new", "c").token > first.token);
    }
}

fn generation(bytes: &[u8]) -> u64 {
    record::Header::decode(bytes).map_or(0, |header| header.generation)
}

/// J2: a generation that was not finished leaves the one before in force.
#[test]
fn a_torn_generation_counts_for_nothing() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let (mut store, _) = open(path, BOOT, true);
    let holds: Vec<_> = (0..10).map(|number| grant(&mut store, &number.to_string(), "c")).collect();
    let expected: BTreeMap<_, _> = holds.iter().map(entry).collect();
    let snapshot = TempDir::new().unwrap();
    copy(path, snapshot.path());
    drop(store);
    drop(open(path, BOOT, true));
    let pairs = JOURNALS.map(|name| {
        let read = |path: &Path| fs::read(path.join(name)).unwrap();
        (name, read(snapshot.path()), read(path))
    });
    let (name, old, new) = pairs.iter().max_by_key(|(_, _, new)| generation(new)).unwrap();
    // A sector is written whole or not at all.
    let cuts = [0, 512].into_iter().chain((HEADER_BYTES..HEADER_BYTES + 700).step_by(13));
    for cut in cuts {
        let torn = TempDir::new().unwrap();
        copy(snapshot.path(), torn.path());
        fs::write(torn.path().join(name), [&new[..cut], &old[cut..]].concat()).unwrap();
        // After a power cut: the files need not be there.
        fs::remove_file(at(torn.path(), "3")).unwrap();
        let (_, recovered) = open(torn.path(), NEXT_BOOT, true);
        assert_eq!(held(&recovered), expected, "{cut}");
    }
}

#[test]
fn a_journal_takes_turns_and_grows() {
    for sync in [true, false] {
        let directory = TempDir::new_in("/dev/shm").unwrap();
        let path = directory.path();
        let (mut store, _) = open(path, BOOT, sync);
        for _ in 0..4000 {
            let grant = grant(&mut store, "r", "c");
            end(&mut store, &grant);
        }
        let length = |name| fs::metadata(path.join(name)).unwrap().len();
        assert_eq!(JOURNALS.map(length), [128 * 1024; 2]);
        let client = "c".repeat(CLIENT);
        let holds: Vec<_> =
            (0..300).map(|number| grant(&mut store, &number.to_string(), &client)).collect();
        assert!(length(JOURNALS[0]) >= 300 * CLIENT as u64);
        assert_eq!(length(JOURNALS[0]), length(JOURNALS[1]));
        drop(store);
        let (mut store, recovered) = open(path, NEXT_BOOT, sync);
        assert_eq!(held(&recovered), holds.iter().map(entry).collect());
        holds.iter().for_each(|grant| end(&mut store, grant));
        drop(store);
        assert_eq!(held(&open(path, NEXT_BOOT, sync).1), BTreeMap::new());
    }
}

const CLIENT: usize = 4000;

/// S3: what cannot be removed is still held, and the grant behind it fails.
#[test]
fn an_end_that_fails_changes_nothing() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let (mut store, _) = open(path, BOOT, true);
    let grant = grant(&mut store, "r", "c");
    // A file that cannot be removed, not even by root.
    fs::remove_file(at(path, "r")).unwrap();
    fs::create_dir(at(path, "r")).unwrap();
    let next = ChangeRequest::Grant(terms("r", "d"));
    let changed = store.commit(vec![ChangeRequest::End(Arc::clone(&grant)), next]);
    assert!(matches!(changed[0], ChangeOutcome::Failed(_)), "{changed:?}");
    assert_eq!(changed[1], ChangeOutcome::Held(Arc::clone(&grant)));
    fs::remove_dir(at(path, "r")).unwrap();
    fs::write(at(path, "r"), "c").unwrap();
    drop(store);
    assert_eq!(held(&open(path, BOOT, true).1), BTreeMap::from([entry(&grant)]));
}

/// S4: a grant that is refused is not in the journal.
#[test]
fn a_file_in_the_way_stays_as_it_is() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let (mut store, _) = open(path, BOOT, true);
    fs::write(at(path, "r"), "by hand").unwrap();
    fs::write(at(path, "empty"), "").unwrap();
    let changes = ["r", "empty", "free"].map(|name| ChangeRequest::Grant(terms(name, "c")));
    let changed = store.commit(changes.into());
    let [ChangeOutcome::Adopted(adopted), ChangeOutcome::Poisoned(_), ChangeOutcome::Granted(free)] =
        &changed[..]
    else {
        panic!("{changed:?}");
    };
    drop(store);
    for boot in [NEXT_BOOT, BOOT] {
        let (_, recovered) = open(path, boot, true);
        assert_eq!(held(&recovered), [adopted, free].map(entry).into());
        assert!(recovered.problems.contains_key("empty"));
        assert_eq!(fs::read(at(path, "r")).unwrap(), b"by hand");
    }
}

fn spares_in(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.to_string_lossy().contains("-spare-")).collect()
}

fn inode(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap())
}

/// P1, P2: a program that has the file of an ended lock open reads its holder.
#[test]
fn a_file_is_used_again_by_its_own_client_only() {
    use std::io::Read;
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let (mut store, _) = open(path, BOOT, false);
    let one = grant(&mut store, "one", "c");
    let mut open_still = fs::File::open(at(path, "one")).unwrap();
    let first = inode(&at(path, "one"));
    let long_ago = std::time::UNIX_EPOCH;
    fs::File::open(at(path, "one")).unwrap().set_modified(long_ago).unwrap();
    end(&mut store, &one);
    assert!(!at(path, "one").exists());
    grant(&mut store, "two", "d");
    assert_ne!(inode(&at(path, "two")), first);
    grant(&mut store, "three", "c");
    assert_eq!(inode(&at(path, "three")), first);
    assert_ne!(fs::metadata(at(path, "three")).unwrap().modified().unwrap(), long_ago);
    let read = |name| fs::read_to_string(at(path, name)).unwrap();
    assert_eq!((read("two"), read("three")), ("d".to_owned(), "c".to_owned()));
    let mut seen = String::new();
    open_still.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "c");
}

/// P2.
#[test]
fn a_file_that_was_touched_is_not_used_again() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let (mut store, _) = open(path, BOOT, false);
    let touch: [fn(&Path); 6] = [
        |file| fs::write(file, "d").unwrap(),
        |file| fs::write(file, "cc").unwrap(),
        |file| fs::hard_link(file, file.with_extension("kept")).unwrap(),
        |file| fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap(),
        |file| {
            fs::remove_file(file).unwrap();
            symlink("/etc/hostname", file).unwrap();
        },
        |file| fs::remove_file(file).unwrap(),
    ];
    for (number, touch) in touch.into_iter().enumerate() {
        for is_spare in [false, true] {
            let first = grant(&mut store, "r", "c");
            if !is_spare {
                touch(&at(path, "r"));
            }
            store.commit(vec![ChangeRequest::End(first)]);
            if is_spare {
                touch(&spares_in(path)[0]);
            }
            let grant = grant(&mut store, "r", "c");
            let metadata = fs::symlink_metadata(at(path, "r")).unwrap();
            let is_as_new = metadata.permissions().mode() & 0o7777 != 0o600;
            let is_alone = metadata.is_file() && metadata.nlink() == 1;
            assert!(is_as_new && is_alone, "{number} {is_spare}");
            assert_eq!(fs::read(at(path, "r")).unwrap(), b"c");
            end(&mut store, &grant);
            store.spares.clear(&store.directory);
            for entry in fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|it| it == "kept") {
                    assert_eq!(fs::read(&path).unwrap(), b"c");
                    fs::remove_file(path).unwrap();
                }
            }
        }
    }
}

/// P3.
#[test]
fn spares_are_few_and_go_with_the_daemon() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let (mut store, _) = open(path, BOOT, false);
    let many = spares::SPARES_MAX + 5;
    let holds: Vec<_> =
        (0..many).map(|it| grant(&mut store, &format!("r{it}"), &format!("c{it}"))).collect();
    holds.iter().for_each(|grant| end(&mut store, grant));
    assert_eq!(spares_in(path).len(), spares::SPARES_MAX);
    drop(store);
    let (mut store, _) = open(path, BOOT, false);
    assert!(spares_in(path).is_empty(), "a killed daemon's");
    let grant = grant(&mut store, "r", "c");
    end(&mut store, &grant);
    assert_eq!(spares_in(path).len(), 1);
    store.close().unwrap();
    assert!(spares_in(path).is_empty());
}
