//! Processors that do not go to sleep when they have nothing to do, as
//! cyclictest(8) has them: then a time between two processes tells what the
//! processes do and not how long a processor takes to wake, which on a virtual
//! machine is most of it.

use std::fs::File;
use std::io::Write;

/// Whoever has it open says how many microseconds a processor may take to wake.
/// Linux: Documentation/power/pm_qos_interface.rst.
const LATENCY: &str = "/dev/cpu_dma_latency";

/// As long as this is there, no processor sleeps.
pub(crate) struct Awake(#[allow(dead_code, reason = "it acts by being open")] File);

impl Awake {
    pub(crate) fn begin() -> Self {
        let mut latency = File::options().write(true).open(LATENCY).unwrap_or_else(|error| {
            panic!("{LATENCY}: {error}: --awake needs root, and a kernel with CPU_IDLE")
        });
        latency.write_all(&0i32.to_ne_bytes()).expect("a number of microseconds");
        println!("the processors do not sleep ({LATENCY})");
        Self(latency)
    }
}
