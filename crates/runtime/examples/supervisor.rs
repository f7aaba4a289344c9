//! The smallest program a daemon can re-execute as its supervisor: nothing may come before `supervisor_main`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_ref().and_then(|word| word.to_str()) {
        Some("supervisor") => shoal_runtime::supervisor_main(args),
        _ => ExitCode::FAILURE,
    }
}
