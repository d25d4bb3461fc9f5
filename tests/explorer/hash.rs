//! Hashing, quick rather than safe from attackers.

use std::hash::{BuildHasher, Hasher};

/// A [`BuildHasher`] of [`Mix`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quick;

impl BuildHasher for Quick {
    type Hasher = Mix;

    fn build_hasher(&self) -> Mix {
        Mix(0x9e37_79b9_7f4a_7c15)
    }
}

/// Multiply and fold, a word at a time.
pub(super) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word) ^ (chunk.len() as u64) << 56);
        }
    }

    fn write_u64(&mut self, word: u64) {
        let wide = u128::from(self.0 ^ word) * 0xe703_7ed1_a0b4_28db;
        self.0 = (wide as u64) ^ (wide >> 64) as u64;
    }

    fn write_u128(&mut self, fingerprint: u128) {
        self.0 = fingerprint as u64;
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(byte.into());
    }

    fn write_u16(&mut self, word: u16) {
        self.write_u64(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write_isize(&mut self, word: isize) {
        self.write_u64(word as u64);
    }
}

/// 128 bits of `bytes`. That two of ten million different states share them has
/// a chance of one in 10^24.
pub(super) fn fingerprint(bytes: &[u8]) -> u128 {
    let (mut low, mut high) = (Mix(0x2545_f491_4f6c_dd1d), Mix(0xd6e8_feb8_6659_fd93));
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        let word = u64::from_le_bytes(word);
        low.write_u64(word);
        high.write_u64(word.rotate_left(29) ^ 0x94d0_49bb_1331_11eb);
    }
    low.write_u64(bytes.len() as u64);
    high.write_u64(bytes.len() as u64);
    u128::from(high.finish()) << 64 | u128::from(low.finish())
}
