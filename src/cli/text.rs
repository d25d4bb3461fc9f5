//! What is printed. Names, hosts and notes come from files that any user may
//! have written, so nothing that could steer a terminal passes.

use std::fmt::Display;
use std::io::{IsTerminal, Write};

/// `text` on one line, with what could steer a terminal or turn its text
/// around written as an escape.
pub(super) fn printable(text: impl Display) -> String {
    let mut line = String::new();
    for character in text.to_string().chars() {
        if character.is_control() || turns_text(character) {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// What makes a state stand out.
#[derive(Clone, Copy, Debug)]
pub(super) enum Colour {
    Green,
    Yellow,
    Red,
}

/// Whether standard output shows colours: a terminal that can, and no NO_COLOR
/// (<https://no-color.org>).
pub(super) fn has_colours() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_none_or(|name| name == "dumb");
    std::io::stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb
}

pub(super) fn painted(text: &str, colour: Option<Colour>) -> String {
    let number = match colour {
        None => return text.to_owned(),
        Some(Colour::Green) => 32,
        Some(Colour::Yellow) => 33,
        Some(Colour::Red) => 31,
    };
    format!("\u{1b}[{number}m{text}\u{1b}[0m")
}

/// Line separators and Unicode's direction controls.
fn turns_text(character: char) -> bool {
    matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

/// A line on standard error. Without a reader, the command goes on all the same.
pub(super) fn tell(message: impl Display) {
    let _ = writeln!(std::io::stderr(), "lockkeeper: {}", printable(message));
}

/// A line on standard output, which a closed pipe does not make a failure.
pub(super) fn print(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(
            printable("a\u{1b}[2Jb\nc\u{9b}d\u{202e}e é"),
            "a\\u{1b}[2Jb\\nc\\u{9b}d\\u{202e}e é"
        );
    }
}
