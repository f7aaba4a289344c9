//! The files a container is given: on a tmpfs of its mount namespace, each mounted read-only where it is wanted.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::mount as rmount;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use super::{ChildFailure, Doing};
use crate::plan::ContainerFile;
use crate::sys::mount::{self as attribute, MountAttributes, set_attributes};

/// Writes the files; the detached mounts of them, in their order.
///
/// The tmpfs is mounted at `place`, seen by this mount namespace alone, until the host's tree is left: before Linux 6.15
/// only what is mounted can be cloned.
pub(super) fn make(files: &[ContainerFile], place: &Path) -> Result<Vec<OwnedFd>, ChildFailure> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let what = || "make a tmpfs for files".to_owned();
    let tmpfs = make_tmpfs().doing(what)?;
    for (number, file) in files.iter().enumerate() {
        write(tmpfs.as_fd(), &number.to_string(), file)
            .doing(|| format!("write the file {}", file.target))?;
    }
    std::fs::create_dir(place).doing(what)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rmount::move_mount(tmpfs.as_fd(), "", CWD, place, flags).doing(what)?;
    let clone = |(number, file): (usize, &ContainerFile)| {
        let what = || format!("mount the file {}", file.target);
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rmount::open_tree(&tmpfs, number.to_string(), flags).doing(what)?;
        let attributes = MountAttributes {
            set: attribute::RDONLY,
            propagation: libc::MS_PRIVATE,
            ..MountAttributes::default()
        };
        set_attributes(tree.as_fd(), attributes, false).doing(what)?;
        Ok(tree)
    };
    files.iter().enumerate().map(clone).collect()
}

fn make_tmpfs() -> io::Result<OwnedFd> {
    let context = rmount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rmount::fsconfig_set_string(context.as_fd(), "source", "tmpfs")?;
    rmount::fsconfig_set_string(context.as_fd(), "mode", "0700")?;
    // Unknown before Linux 6.4, and then the other options stand.
    let _ = rmount::fsconfig_set_flag(context.as_fd(), "noswap");
    rmount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    Ok(rmount::fsmount(context.as_fd(), flags, attributes)?)
}

fn write(directory: BorrowedFd<'_>, name: &str, file: &ContainerFile) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o600))?;
    let mut opened = File::from(fd);
    opened.write_all(&file.data)?;
    let (uid, gid) = (Uid::from_raw(file.uid), Gid::from_raw(file.gid));
    rustix::fs::fchown(&opened, Some(uid), Some(gid))?;
    // After the owner, whose change takes the set-id bits away.
    Ok(rustix::fs::fchmod(&opened, Mode::from_raw_mode(file.mode))?)
}
