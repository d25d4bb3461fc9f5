//! What a server says, for people.

/// So many characters of what a server says are shown. If larger, it fills the error.
const SHOWN: usize = 300;

/// On one line, and not all of it: a server may say anything.
pub(crate) fn shown(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_shown_in_part_and_on_one_line() {
        let text = shown(&"a\u{1b}[31m\n".repeat(1000));
        assert_eq!(text.chars().count(), SHOWN);
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
}
