//! Any bytes at all as the body of an XML-RPC call.

#![no_main]

libfuzzer_sys::fuzz_target!(|body: &[u8]| lockkeeper::lockd::read_anything(body));
