//! A container's own init: process 1 that reaps orphans, forwards signals and ends with the program's status.
//!
//! It is the process that built the container, gone on after forking the program: no second executable is needed, and its
//! memory stays shared with the supervisor's. It has the program's user, capabilities and filter, and is not dumpable (since
//! before the fork), so that `/proc/1/exe` can only be opened from within by who may trace; and nobody can write through it.

use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};

use crate::sys::process;

/// Waits for `program` to end. Called with all signals blocked.
pub(super) fn run(program: i32) -> ! {
    // Neither the FIFOs nor anything else may be held by init: the report FIFO must close when the program executes.
    let _ = process::close_from(0);
    let program = Pid::from_raw(program).expect("fork returned a positive pid");
    loop {
        if let Some(code) = reap(program) {
            process::exit_now(code);
        }
        let Ok(signal) = process::wait_signal() else {
            continue;
        };
        if signal == libc::SIGCHLD {
            continue;
        }
        if let Some(signal) = Signal::from_named_raw(signal) {
            // The program may just have ended; the next reap sees it.
            let _ = kill_process(program, signal);
        }
    }
}

/// Reaps whatever has ended. The program's code, when it was among them.
fn reap(program: Pid) -> Option<i32> {
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid == program {
            let signalled = status.terminating_signal().map(|signal| 128 + signal);
            return status.exit_status().or(signalled);
        }
    }
    None
}
