//! The root file system that everything here runs: one static busybox.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

const APPLETS: [&str; 4] = ["sh", "sleep", "true", "cat"];

/// A tar archive with busybox and a few of its names.
pub(crate) fn busybox_tar(busybox: &Path) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for directory in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        let mut header = header(tar::EntryType::Directory, 0);
        archive.append_data(&mut header, format!("{directory}/"), std::io::empty())?;
    }
    let mut program = File::open(busybox).with_context(|| format!("open {}", busybox.display()))?;
    let size = program.metadata()?.len();
    let mut entry = header(tar::EntryType::Regular, size);
    archive.append_data(&mut entry, "bin/busybox", &mut program)?;
    for applet in APPLETS {
        let mut entry = header(tar::EntryType::Symlink, 0);
        archive.append_link(&mut entry, PathBuf::from("bin").join(applet), "busybox")?;
    }
    let passwd = b"root:x:0:0:root:/:/bin/sh\n";
    let mut entry = header(tar::EntryType::Regular, passwd.len() as u64);
    archive.append_data(&mut entry, "etc/passwd", passwd.as_slice())?;
    archive.into_inner().context("finish the archive")
}

fn header(kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}
