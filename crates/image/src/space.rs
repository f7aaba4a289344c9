//! Room on the disk that is left to others.

use std::{fs::File, io};

use rustix::fs as rfs;

/// How often free space is looked at.
const CHECK_BYTES: u64 = 64 << 20;

/// Stops a long write before the filesystem is full.
pub(crate) struct SpaceGuard {
    keep_free: u64,
    /// Bytes that may be written before the next look.
    unchecked: u64,
}

impl SpaceGuard {
    /// Leaves `keep_free` bytes of the filesystem free.
    pub(crate) fn new(keep_free: u64) -> Self {
        Self {
            keep_free,
            unchecked: 0,
        }
    }

    /// To be called before `bytes` are written to `file`.
    pub(crate) fn before(&mut self, file: &File, bytes: u64) -> io::Result<()> {
        if bytes <= self.unchecked {
            self.unchecked -= bytes;
            return Ok(());
        }
        let stat = rfs::fstatvfs(file)?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let spare = free.saturating_sub(self.keep_free);
        if spare < bytes {
            let text = format!(
                "no space left: less than {} bytes would stay free; make room, for example by removing images",
                self.keep_free
            );
            return Err(io::Error::new(io::ErrorKind::StorageFull, text));
        }
        self.unchecked = CHECK_BYTES.min(spare - bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_stay_free_is_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let file = File::create(directory.path().join("file")).unwrap();
        SpaceGuard::new(0).before(&file, 1).unwrap();
        let refused = SpaceGuard::new(u64::MAX).before(&file, 1).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    }
}
