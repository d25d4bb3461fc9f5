//! One line for each lock that is given or ended, for the target `lockkeeper::audit`.

use std::borrow::Cow;

use super::super::store::Hold;

/// What happened to a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Granted,
    Released,
    Expired,
    Forced,
    /// Given, but nobody was there any more to hear of it.
    Undone,
    /// Its file was removed by another program.
    Removed,
    /// Found in the directory.
    Adopted,
}

impl Event {
    fn word(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Released => "released",
            Self::Expired => "expired",
            Self::Forced => "forced",
            Self::Undone => "undone",
            Self::Removed => "removed",
            Self::Adopted => "adopted",
        }
    }
}

/// Write the line. `by` is the administrator, if there was one.
pub(super) fn audit(event: Event, hold: &Hold, by: Option<&str>) {
    let event = event.word();
    let (resource, client) = (escaped(&hold.wanted.resource), escaped(&hold.wanted.client));
    let token = hold.token;
    match by {
        None => tracing::info!(target: "lockkeeper::audit", event, %resource, %client, token),
        Some(by) => {
            let by = escaped(by);
            tracing::info!(target: "lockkeeper::audit", event, %resource, %client, token, %by);
        }
    }
}

/// Without what could break the line, or make it look like another.
fn escaped(text: &str) -> Cow<'_, str> {
    let is_plain = |character: char| {
        !character.is_control()
            && !matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '"' | '\\')
    };
    if !text.is_empty() && text.chars().all(|character| is_plain(character) && character != ' ') {
        return Cow::Borrowed(text);
    }
    let mut quoted = String::from("\"");
    for character in text.chars() {
        if is_plain(character) {
            quoted.push(character);
        } else {
            quoted.extend(character.escape_default());
        }
    }
    quoted.push('"');
    Cow::Owned(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_word_of_one_line() {
        for (given, expected) in [
            ("client1", "client1"),
            ("日本", "日本"),
            ("", r#""""#),
            ("a b", r#""a b""#),
            ("a\nevent=forced", r#""a\nevent=forced""#),
            ("x\" token=9", r#""x\" token=9""#),
            ("\u{1b}[2J\u{202e}", r#""\u{1b}[2J\u{202e}""#),
        ] {
            assert_eq!(escaped(given), expected);
        }
    }
}
