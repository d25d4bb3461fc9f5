//! Resource names and file names, client names and file contents.
//!
//! N1. Two resources never have one file. A name that is plainly safe is its
//!     own file name; every byte that is not is `%` and two digits, `%` itself
//!     among them.
//! N2. A file name is that of one entry of the directory: it holds no slash
//!     and no NUL, and it ends in [`SUFFIX`]. Only that of the empty name, which
//!     is the suffix, is hidden.
//! N3. A file whose name no resource has by N1 belongs to the resource that is called as
//!     the file is. The store gives that resource no second file.

use std::fmt::Write as _;
use std::sync::Arc;

use crate::wire::{CLIENT_MAX_BYTES, RESOURCE_MAX_BYTES};

/// What the name of a lock's file ends in.
pub(crate) const SUFFIX: &str = ".resource.lock";

/// `NAME_MAX` of every local file system.
const FILE_NAME_MAX_BYTES: usize = 255;

const _: () = assert!(RESOURCE_MAX_BYTES + SUFFIX.len() == FILE_NAME_MAX_BYTES);

/// The name of the file of a resource.
pub(crate) fn file_name(resource: &str) -> Result<String, String> {
    let mut name = String::with_capacity(resource.len() + SUFFIX.len());
    for (position, character) in resource.char_indices() {
        let is_plain = !(matches!(character, '/' | '%')
            || character.is_control()
            || (character == '.' && position == 0));
        if is_plain {
            name.push(character);
            continue;
        }
        for byte in character.encode_utf8(&mut [0; 4]).bytes() {
            write!(name, "%{byte:02X}").expect("BUG: a string was not written");
        }
    }
    name.push_str(SUFFIX);
    if name.len() > FILE_NAME_MAX_BYTES {
        let (length, longest) = (name.len() - SUFFIX.len(), RESOURCE_MAX_BYTES);
        return Err(format!("it has {length} bytes as a file name, and {longest} are the most"));
    }
    Ok(name)
}

/// As [`stripped`], without a copy where there is no white space.
pub(crate) fn shared_stripped(client: &Arc<str>) -> Arc<str> {
    match stripped(client) {
        name if name.len() == client.len() => Arc::clone(client),
        name => name.into(),
    }
}

/// The resource a file belongs to, and whether it is called as the file is
/// though [`file_name`] would call it otherwise (N3). `None` for a file that
/// is no lock; an error for a lock with a name that is not UTF-8.
pub(crate) fn resource(file_name: &[u8]) -> Option<Result<(String, bool), ()>> {
    let stem = file_name.strip_suffix(SUFFIX.as_bytes())?;
    let Ok(stem) = std::str::from_utf8(stem) else {
        return Some(Err(()));
    };
    let decoded = decode(stem)
        .filter(|decoded| self::file_name(decoded).is_ok_and(|name| name.as_bytes() == file_name));
    Some(Ok(decoded.map_or_else(|| (stem.to_owned(), true), |decoded| (decoded, false))))
}

fn decode(stem: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(stem.len());
    let mut rest = stem.as_bytes();
    while let [first, behind @ ..] = rest {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, behind) = rest.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok()?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = behind;
    }
    String::from_utf8(bytes).ok()
}

/// A client's name without the white space around it, by Python's `str.strip`. Clients are
/// told apart by that, as the original did where it read a file.
pub(crate) fn stripped(client: &str) -> &str {
    client.trim_matches(|character: char| {
        character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
    })
}

/// What is wrong with a client's name.
pub(crate) fn check_client(client: &str) -> Result<(), String> {
    if client.contains('\0') {
        return Err("a client's name cannot contain a NUL".to_owned());
    }
    if client.len() > CLIENT_MAX_BYTES {
        let length = client.len();
        return Err(format!("it has {length} bytes, and {CLIENT_MAX_BYTES} are the most"));
    }
    Ok(())
}

/// The client a file names. The error says what is wrong with the file.
pub(crate) fn client(contents: Vec<u8>) -> Result<String, &'static str> {
    if contents.contains(&0) {
        return Err("it contains NUL bytes, as a file does that was torn by a power cut");
    }
    if contents.len() > CLIENT_MAX_BYTES {
        return Err("it is longer than the name of any client");
    }
    let client = String::from_utf8(contents).map_err(|_| "what it contains is not UTF-8")?;
    if stripped(&client).is_empty() {
        return Err("it is empty, so it does not name the holder");
    }
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stem(resource: &str) -> String {
        file_name(resource).unwrap().strip_suffix(SUFFIX).unwrap().to_owned()
    }

    #[test]
    fn plain_names_are_their_own() {
        for plain in ["r1", "r-é日", "a b", " x ", "a.b", "a..b", "C:\\x", "~", "x.resource.lock"]
        {
            assert_eq!(stem(plain), plain);
        }
    }

    #[test]
    fn other_names_stay_in_the_directory_and_come_back() {
        for (given, expected) in [
            ("../../etc/x", "%2E.%2F..%2Fetc%2Fx"),
            ("/", "%2F"),
            (".hidden", "%2Ehidden"),
            ("..", "%2E."),
            ("50%", "50%25"),
            ("%2F", "%252F"),
            ("a\0b\nc\u{7f}\u{85}", "a%00b%0Ac%7F%C2%85"),
        ] {
            assert_eq!(stem(given), expected);
            let back = resource(file_name(given).unwrap().as_bytes());
            assert_eq!(back, Some(Ok((given.to_owned(), false))));
        }
    }

    #[test]
    fn a_name_that_does_not_decode_is_literal() {
        for literal in ["%", "%2", "%zz", "%2f", "%41", "%+1", "100%", ".hidden", "%FF", "%C3%A9"] {
            let name = format!("{literal}{SUFFIX}");
            assert_eq!(
                resource(name.as_bytes()),
                Some(Ok((literal.to_owned(), true))),
                "{literal}"
            );
        }
        assert_eq!(resource(b"caf\xe9.resource.lock"), Some(Err(())));
        assert_eq!(resource(b"notes.txt"), None);
        assert_eq!(resource(b".lockkeeper.lock"), None);
    }

    /// N1, over all short names of an alphabet made to meet.
    #[test]
    fn no_two_names_meet() {
        let alphabet = ['a', '%', '2', '5', 'F', '.', '/', '\0', 'é'];
        let mut seen = std::collections::HashMap::new();
        let mut names = vec![String::new()];
        for _ in 0..4 {
            names = names
                .iter()
                .flat_map(|name| alphabet.map(|character| format!("{name}{character}")))
                .collect();
            for name in &names {
                let file = file_name(name).unwrap();
                assert!(!file.contains(['/', '\0']) && !file.starts_with('.'));
                assert_eq!(resource(file.as_bytes()), Some(Ok((name.clone(), false))));
                if let Some(other) = seen.insert(file, name.clone()) {
                    panic!("{other:?} and {name:?} meet");
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert_eq!(file_name("").as_deref(), Ok(SUFFIX));
        assert_eq!(resource(SUFFIX.as_bytes()), Some(Ok((String::new(), false))));
        assert!(file_name(&"x".repeat(241)).is_ok());
        assert!(file_name(&"x".repeat(242)).is_err());
        assert!(file_name(&"/".repeat(81)).is_err());
        assert!(check_client("a\0b").is_err());
        assert!(check_client(&"c".repeat(CLIENT_MAX_BYTES + 1)).is_err());
    }

    #[test]
    fn clients_are_stripped_as_python_does() {
        assert_eq!(stripped(" \t\u{1c}\u{85}\u{a0} a b\u{2003}\n"), "a b");
        assert_eq!(stripped("\u{200b}x\u{180e}"), "\u{200b}x\u{180e}");
    }

    #[test]
    fn what_is_torn_names_nobody() {
        assert!(client(vec![]).is_err());
        assert!(client(b" \n".to_vec()).is_err());
        assert!(client(b"cli\0\0".to_vec()).is_err());
        assert!(client(b"\xff".to_vec()).is_err());
        assert_eq!(client(b" lead\n".to_vec()).as_deref(), Ok(" lead\n"));
    }
}
