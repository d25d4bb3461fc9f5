//! Random numbers from a seed (SplitMix64).

use std::time::Duration;

pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// From 0 to `end`, without `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.roll() % end.max(1)
    }

    /// Once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub fn micros_up_to(&mut self, most: u64) -> Duration {
        Duration::from_micros(self.below(most + 1))
    }

    /// Many short ones, few long ones, evenly over the orders of magnitude.
    pub fn micros_between(&mut self, least: u64, most: u64) -> Duration {
        let share = self.below(1 << 20) as f64 / f64::from(1 << 20);
        let ratio = most as f64 / least as f64;
        Duration::from_micros((least as f64 * ratio.powf(share)) as u64)
    }
}
