//! From the environment.

use std::time::Duration;

/// How often each row has its turn.
pub(crate) fn turns() -> usize {
    number("ENGINE_TURNS", 5.0) as usize
}

/// How long each turn is.
pub(crate) fn seconds() -> Duration {
    Duration::from_secs_f64(number("ENGINE_SECONDS", 1.0))
}

fn number(name: &str, default: f64) -> f64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}
