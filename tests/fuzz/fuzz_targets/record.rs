//! Any bytes at all as the content of a lock file, read and written again.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lockkeeper::fuzzing::record(bytes));
