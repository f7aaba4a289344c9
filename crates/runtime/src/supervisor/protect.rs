//! The supervisor's executable cannot be written through its processes (the attack of CVE-2019-5736).
//!
//! A container's process is the supervisor until it executes its program, and an own init is it for good: `/proc/1/exe`, or
//! a program that is `/proc/self/exe`, leads to the host's executable. So that executable is run from a clone that nobody
//! can write through: a read-only mount of the same file that is attached nowhere, or a sealed copy in memory.

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags, StatVfsMountFlags, Timespec, Timestamps};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::sys::mount::{MountAttributes, RDONLY, set_attributes};
use crate::sys::process;

/// What the kernel calls the executable of this process.
const OWN: &str = "/proc/self/exe";

/// Executes our own executable again from a protected clone, unless that is what already runs. Returns only when it is, or
/// with the error that prevented it. To be called before anything is opened that shall not be inherited.
pub(super) fn ensure() -> io::Result<()> {
    let own = fs::File::open(OWN)?;
    if is_protected(&own) {
        return Ok(());
    }
    drop(own);
    let args: Vec<CString> = std::env::args_os()
        .map(c_string)
        .collect::<Result<_, _>>()?;
    Err(execute(Path::new(OWN), &args, || {}))
}

/// Executes a file from a protected clone, in our environment, after `last`. Returns only when that failed.
pub(super) fn execute(exe: &Path, args: &[CString], last: impl FnOnce()) -> io::Error {
    let env = std::env::vars_os().map(|(key, value)| {
        let mut entry = key;
        entry.push("=");
        entry.push(value);
        c_string(entry)
    });
    let prepared = env.collect::<Result<Vec<_>, _>>();
    match prepared.and_then(|env| Ok((env, clone(exe)?))) {
        Ok((env, file)) => {
            last();
            process::execute(file.as_fd(), args, &env)
        }
        Err(error) => error,
    }
}

/// A process that was executed through a descriptor may be named after its number: it gets the name of its first argument.
pub(super) fn restore_name() {
    let first = std::env::args_os().next().unwrap_or_default();
    if let Some(name) = Path::new(&first).file_name()
        && let Ok(name) = c_string(name.to_owned())
    {
        // For people who look; nothing depends on it.
        let _ = rustix::thread::set_name(&name);
    }
}

fn c_string(text: OsString) -> io::Result<CString> {
    Ok(CString::new(text.into_vec())?)
}

/// Nobody can write to what the file was opened through.
fn is_protected(file: &fs::File) -> bool {
    let read_only = rustix::fs::fstatvfs(file)
        .is_ok_and(|status| status.f_flag.contains(StatVfsMountFlags::RDONLY));
    let sealed = rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SEALS));
    read_only || sealed
}

const SEALS: SealFlags = SealFlags::SEAL
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

fn clone(exe: &Path) -> io::Result<OwnedFd> {
    let file = fs::File::open(exe)?;
    read_only_mount(&file).or_else(|_| sealed_copy(&file))
}

/// Shares the file's pages, so it costs no memory. Fails where the file's mount is not one of our namespace's.
fn read_only_mount(file: &fs::File) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(file.as_fd(), "", flags)?;
    let attributes = MountAttributes {
        set: RDONLY,
        propagation: libc::MS_PRIVATE,
        ..MountAttributes::default()
    };
    set_attributes(tree.as_fd(), attributes, false)?;
    Ok(tree)
}

/// A copy that keeps the file's times, by which a build is told from another.
fn sealed_copy(file: &fs::File) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    let copy = rustix::fs::memfd_create("supervisor", flags | MemfdFlags::EXEC)
        // Before Linux 6.3 there is no such flag, and every one can be executed.
        .or_else(|_| rustix::fs::memfd_create("supervisor", flags))?;
    let mut copy = fs::File::from(copy);
    io::copy(&mut &*file, &mut copy)?;
    let modified = rustix::fs::fstat(file)?;
    let time = Timespec {
        tv_sec: modified.st_mtime,
        tv_nsec: modified.st_mtime_nsec.try_into().unwrap_or(0),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::futimens(&copy, &times)?;
    rustix::fs::fcntl_add_seals(&copy, SEALS)?;
    Ok(copy.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn clones_have_the_content_and_cannot_be_written() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(b"#!/bin/sh\n").expect("writes");
        let original = fs::File::open(file.path()).expect("opens");
        assert!(!is_protected(&original));
        for clone in [read_only_mount(&original), sealed_copy(&original)] {
            let clone = clone.expect("a clone");
            let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&clone));
            let readable = fs::File::open(&name).expect("can be read");
            assert!(is_protected(&readable));
            assert_eq!(fs::read(&name).expect("can be read"), b"#!/bin/sh\n");
            let modified = |file: &fs::File| file.metadata().and_then(|data| data.modified());
            let times =
                [modified(&readable), modified(&original)].map(|time| time.expect("a time"));
            assert_eq!(times[0], times[1]);
            let written = fs::OpenOptions::new()
                .write(true)
                .open(&name)
                .and_then(|mut file| file.write_all(b"x"));
            assert!(written.is_err());
        }
    }
}
