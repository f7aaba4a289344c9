//! The kernel interfaces that no safe crate offers. Every `unsafe` block of this crate is below this module.

#![expect(
    unsafe_code,
    reason = "raw system calls that neither nix nor rustix wraps"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "C types of the same value in other widths; descriptors and pids are small and positive"
)]

pub(crate) mod bpf;
pub(crate) mod fdpass;
pub mod memory;
pub(crate) mod mount;
pub(crate) mod process;
pub(crate) mod shared;

use std::io;

/// Turns the result of a system call into a `Result`.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
