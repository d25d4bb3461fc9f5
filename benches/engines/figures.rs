//! Figures from times.

use std::time::Duration;

pub(crate) fn p50(times: &mut [Duration]) -> Duration {
    quantile(times, 0.5)
}

pub(crate) fn quantile(times: &mut [Duration], part: f64) -> Duration {
    times.sort();
    let at = ((times.len() as f64 * part) as usize).min(times.len().saturating_sub(1));
    times.get(at).copied().unwrap_or_default()
}

pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

pub(crate) fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
