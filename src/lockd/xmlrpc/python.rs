//! Values as Python's `repr` shows them, which is how faults quote names.

use std::fmt::Write;

use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

use super::value::Value;

/// A string as `repr` shows it.
pub(crate) fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut shown = String::with_capacity(text.len() + 2);
    shown.push(quote);
    for character in text.chars() {
        push_escaped(&mut shown, character, quote);
    }
    shown.push(quote);
    shown
}

fn push_escaped(shown: &mut String, character: char, quote: char) {
    match character {
        '\\' => shown.push_str("\\\\"),
        '\n' => shown.push_str("\\n"),
        '\r' => shown.push_str("\\r"),
        '\t' => shown.push_str("\\t"),
        _ if character == quote => shown.extend(['\\', quote]),
        _ if is_printable(character) => shown.push(character),
        _ => push_number(shown, u32::from(character)),
    }
}

fn push_number(shown: &mut String, code: u32) {
    let written = match code {
        0..=0xff => write!(shown, "\\x{code:02x}"),
        0x100..=0xffff => write!(shown, "\\u{code:04x}"),
        _ => write!(shown, "\\U{code:08x}"),
    };
    written.expect("BUG: a string takes all that is written");
}

/// Python's `str.isprintable`, by a newer Unicode than that of Python 3.11.
fn is_printable(character: char) -> bool {
    use GeneralCategory::{
        Control, Format, LineSeparator, ParagraphSeparator, PrivateUse, SpaceSeparator, Surrogate,
        Unassigned,
    };
    let unprintable = matches!(
        character.general_category(),
        Control
            | Format
            | LineSeparator
            | ParagraphSeparator
            | PrivateUse
            | SpaceSeparator
            | Surrogate
            | Unassigned
    );
    character == ' ' || !unprintable
}

/// A value as `repr` shows it. Where Python shows an address in memory, what
/// kind of value it is.
pub(crate) fn repr(value: &Value) -> String {
    match value {
        Value::Nil => "None".to_owned(),
        Value::Int(number) => number.to_string(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Double(number) => double(*number),
        Value::Text(text) => quoted(text),
        Value::Binary | Value::DateTime => format!("<{}>", value.kind()),
        Value::Array(values) => {
            let shown: Vec<String> = values.iter().map(repr).collect();
            format!("[{}]", shown.join(", "))
        }
        Value::Struct(members) => {
            let show =
                |(name, value): &(String, Value)| format!("{}: {}", quoted(name), repr(value));
            let shown: Vec<String> = members.iter().map(show).collect();
            format!("{{{}}}", shown.join(", "))
        }
    }
}

/// The shortest digits that mean this number, with an exponent where Python has one.
fn double(number: f64) -> String {
    let magnitude = number.abs();
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    if magnitude == 0.0 || (1e-4..1e16).contains(&magnitude) {
        return format!("{number:?}");
    }
    let shown = format!("{number:e}");
    let (digits, exponent) = shown.split_once('e').expect("BUG: an exponent was asked for");
    match exponent.strip_prefix('-') {
        Some(exponent) => format!("{digits}e-{exponent:0>2}"),
        None => format!("{digits}e+{exponent:0>2}"),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Runs Python, which writes one line for each.
    fn python(program: &str) -> Vec<String> {
        let output = Command::new("python3").args(["-c", program]).output().expect("python3");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_printable_characters_are_pythons() {
        let lines = python(
            "from unicodedata import category\n\
             known = (chr(c) for c in range(0x110000) if not 0xd800 <= c < 0xe000)\n\
             print(''.join('?' if category(c) == 'Cn' else 'ny'[c.isprintable()] for c in known))",
        );
        let characters = '\0'..=char::MAX;
        assert_eq!(lines[0].len(), characters.clone().count());
        for (character, theirs) in characters.zip(lines[0].chars()) {
            // One of the two may know characters that the other does not have yet.
            let is_new =
                theirs == '?' || character.general_category() == GeneralCategory::Unassigned;
            assert!(is_new || is_printable(character) == (theirs == 'y'), "{character:?}");
        }
    }

    #[test]
    fn what_is_not_printable_is_shown_as_a_number() {
        for (text, shown) in [
            ("\x7f\u{a0}\u{ad}", "'\\x7f\\xa0\\xad'"),
            ("\u{200b}\u{2028}\u{e000}", "'\\u200b\\u2028\\ue000'"),
            ("\u{e0001}\u{10ffff}", "'\\U000e0001\\U0010ffff'"),
            ("clïent-日本 🔒", "'clïent-日本 🔒'"),
        ] {
            assert_eq!(quoted(text), shown);
        }
    }

    #[test]
    fn quotes_are_chosen_as_python_chooses_them() {
        for (text, shown) in [
            ("", "''"),
            ("o'neil", "\"o'neil\""),
            ("a\"b", "'a\"b'"),
            ("a\"b'c", "'a\"b\\'c'"),
            ("back\\slash", "'back\\\\slash'"),
            ("tab\tnl\ncr\r", "'tab\\tnl\\ncr\\r'"),
        ] {
            assert_eq!(quoted(text), shown);
        }
    }

    #[test]
    fn numbers_are_shown_as_python_shows_them() {
        let numbers = [
            0.0,
            -0.0,
            1.0,
            1.5,
            -2.25,
            0.1,
            1e15,
            1e16,
            1.5e16,
            123456789012345680.0,
            1e22,
            1e100,
            1e-4,
            1e-5,
            1.5e-7,
            1e-100,
            f64::MAX,
            f64::MIN_POSITIVE,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
        ];
        let bits = numbers.map(f64::to_bits);
        let program = format!(
            "import struct\nfor n in {bits:?}: print(struct.unpack('d', struct.pack('Q', n))[0])"
        );
        assert_eq!(numbers.map(double).to_vec(), python(&program));
    }

    #[test]
    fn other_values_are_shown_as_python_shows_them() {
        let members = vec![("a'".to_owned(), Value::Nil), ("b".to_owned(), Value::Int(-5))];
        let value =
            Value::Array(vec![Value::Bool(true), Value::Struct(members), Value::Text("x".into())]);
        assert_eq!(repr(&value), "[True, {\"a'\": None, 'b': -5}, 'x']");
    }
}
