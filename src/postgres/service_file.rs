//! `pg_service.conf`: what an administrator wrote down under a name.

#![expect(clippy::disallowed_methods, reason = "reads the files that libpq would read")]

use std::io;
use std::path::{Path, PathBuf};

use super::connection_string::Pairs;
use super::environment::Environment;
use crate::lock::error::Error;
use crate::sys::libpq;

/// What the service says.
///
/// # Errors
/// [`Error::InvalidOption`]: no file has it, or a file is wrong in it.
pub(super) fn pairs(service: &str, environment: Environment<'_>) -> Result<Pairs, Error> {
    let own = match environment.variable("PGSERVICEFILE")? {
        Some(file) if !Path::new(&file).exists() => {
            let why = format!("{file:?} is not there");
            return Err(Error::InvalidOption { option: "PGSERVICEFILE", why });
        }
        Some(file) => Some(PathBuf::from(file)),
        None => environment.at_home(libpq::SERVICES)?,
    };
    let machine = environment.variable("PGSYSCONFDIR")?;
    let machine = machine.as_deref().or(libpq::OF_THE_MACHINE).map(Path::new);
    let machine = machine.map(|machine| machine.join("pg_service.conf"));
    let files: Vec<PathBuf> = own.into_iter().chain(machine).collect();
    for file in &files {
        let found = read(file).and_then(|text| group(&text, service));
        let found = found.map_err(|why| wrong(format!("{}: {why}", file.display())))?;
        if let Some(pairs) = found {
            return Ok(pairs);
        }
    }
    let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
    Err(wrong(format!("there is no [{service}] in {}", files.join(" or "))))
}

fn wrong(why: String) -> Error {
    Error::InvalidOption { option: "service", why }
}

/// A file that is not there is an empty one.
fn read(file: &Path) -> Result<String, String> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(text),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(String::new()),
            _ => Err(format!("it cannot be read: {error}")),
        },
    }
}

/// The lines below the first `[service]`, up to the next `[`.
fn group(text: &str, service: &str) -> Result<Option<Pairs>, String> {
    let mut found: Option<Pairs> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        let number = index + 1;
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            // As libpq, which does not look behind the bracket.
            let is_it = name.strip_prefix(service).is_some_and(|rest| rest.starts_with(']'));
            found = is_it.then(Pairs::default);
            continue;
        }
        let Some(pairs) = &mut found else { continue };
        let (key, value) =
            line.split_once('=').ok_or_else(|| format!("line {number} is not key=value"))?;
        if key == "service" {
            return Err(format!("line {number} names a service within a service"));
        }
        let set = pairs.set(key, value).map_err(|refusal| refusal.of_pair(number, Some(&[])));
        set.map_err(|why| format!("line {number}: {why}"))?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# all\n[one]\n host=h1\n\n[two] # not looked at\nhost=h2\nport=2\n[two]\n";

    #[test]
    fn a_group_ends_at_the_next() {
        let two = group(TEXT, "two").unwrap().unwrap();
        assert_eq!((two.get("host"), two.get("port")), (Some("h2"), Some("2")));
        assert_eq!(group(TEXT, "one").unwrap().unwrap().get("port"), None);
        assert!(group(TEXT, "tw").unwrap().is_none());
        assert!(group(TEXT, "").unwrap().is_none());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (line, part) in [
            ("host", "line 2 is not key=value"),
            ("service=other", "line 2 names a service"),
            ("hosts=a", "line 2: there is no key \"hosts\""),
            ("host=a\nhost=b", "line 3: host is given twice"),
            ("sslcrl=a", "line 2: sslcrl is libpq's"),
        ] {
            let error = group(&format!("[s]\n{line}"), "s").err().unwrap();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
