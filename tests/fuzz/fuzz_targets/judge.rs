//! Any bytes at all as a lock file that nobody keeps locked: is it taken over?

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lockkeeper::fuzzing::judge(bytes));
