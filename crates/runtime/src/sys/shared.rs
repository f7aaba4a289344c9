//! Memory that outlives the process: a file mapped shared.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// The first `length` bytes of a file, mapped read-write and shared. A store is in the file the moment it is made, so
/// what was stored survives even SIGKILL of this process (not a crash of the machine).
pub(crate) struct SharedMemory {
    start: NonNull<u8>,
    length: usize,
}

impl SharedMemory {
    /// Maps `file`, which is made at least `length` bytes long.
    pub(crate) fn map(file: &File, length: usize) -> io::Result<Self> {
        if file.metadata()?.len() < length as u64 {
            file.set_len(length as u64)?;
        }
        // SAFETY: a new mapping of an open file at an address the kernel chooses; the file covers it.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("a successful mapping is never at address 0");
        Ok(Self { start, length })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is `length` bytes long, lives as long as `self`, and only this process writes the file.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `map` mapped; no reference outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
