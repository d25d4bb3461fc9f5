//! `lockkeeper`: run, status, break.

use std::process::ExitCode;

fn main() -> ExitCode {
    lockkeeper::cli::main()
}
