//! Durations as people write them: `300ms`, `30s`, `5m`, `1h30m`; a bare
//! number is seconds.

use std::time::Duration;

/// # Errors
/// What is wrong, to be printed after the name of a flag.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let is_bare = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    match (is_bare, text.parse::<f64>()) {
        (true, Ok(seconds)) => {
            Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
        }
        _ => humantime::parse_duration(text)
            .map_err(|error| format!("{error} (write 300ms, 30s, 5m, 1h30m or seconds)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_bare_seconds_are_read() {
        let read = [
            ("300ms", 300),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("2", 2_000),
            ("0.5", 500),
            (".25", 250),
            ("1.5s", 1_500),
            ("0", 0),
        ];
        for (text, millis) in read {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in
            ["", ".", "-1", "1e3", "inf", "nan", "1.2.3", "5 parsecs", "99999999999999999999"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
