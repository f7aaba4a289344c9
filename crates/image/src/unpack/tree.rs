//! Deletes directory trees that others made, however deep.

use std::{
    ffi::CStr,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::Path,
};

use rustix::{
    fs::{self, AtFlags, Dir, FileType, Mode, OFlags},
    io::Errno,
};

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Deletes the directory or file `path`; a missing one is no error.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Errno> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL);
    };
    let parent = match fs::open(parent, DIRECTORY, Mode::empty()) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    remove_tree_at(&parent, name.as_bytes())
}

/// Deletes `name` and all below it; a missing one is no error. Symbolic links are not followed.
///
/// Directories within directories are first moved up beside their ancestor, so that two
/// descriptors and no recursion suffice for a tree of any depth: an archive can build one deeper
/// than the descriptor limit and the stack.
pub(crate) fn remove_tree_at(parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let top = fs::openat(parent, name, DIRECTORY, Mode::empty())?;
    let mut moved = 0_u64;
    loop {
        // Each round empties the directories now directly below `top`, moving theirs up.
        let before = moved;
        empty(&top, None, &mut moved)?;
        for child in subdirectories(&top)? {
            let directory = fs::openat(&top, child.as_c_str(), DIRECTORY, Mode::empty())?;
            empty(&directory, Some(&top), &mut moved)?;
            fs::unlinkat(&top, child.as_c_str(), AtFlags::REMOVEDIR)?;
        }
        if moved == before {
            return fs::unlinkat(parent, name, AtFlags::REMOVEDIR);
        }
    }
}

/// Unlinks what is no directory; moves directories that are not empty to `up`.
fn empty(directory: &OwnedFd, up: Option<&OwnedFd>, moved: &mut u64) -> Result<(), Errno> {
    for (name, kind) in entries(directory)? {
        let name = name.as_c_str();
        if kind != FileType::Directory {
            fs::unlinkat(directory, name, AtFlags::empty())?;
            continue;
        }
        let Some(up) = up else { continue };
        match fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Ok(()) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => loop {
                *moved += 1;
                let target = format!(".removed-{moved}");
                let flags = fs::RenameFlags::NOREPLACE;
                match fs::renameat_with(directory, name, up, target.as_str(), flags) {
                    Ok(()) => break,
                    Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
            },
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn subdirectories(directory: &OwnedFd) -> Result<Vec<std::ffi::CString>, Errno> {
    let all = entries(directory)?;
    Ok(all
        .into_iter()
        .filter(|(_, kind)| *kind == FileType::Directory)
        .map(|(n, _)| n)
        .collect())
}

fn entries(directory: &OwnedFd) -> Result<Vec<(std::ffi::CString, FileType)>, Errno> {
    let mut found = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            kind => kind,
        };
        found.push((name.to_owned(), kind));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_deeper_than_a_path_may_be_long_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("deep");
        std::fs::create_dir(&root).unwrap();
        let mut at = fs::open(&root, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..3000 {
            fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            let file = fs::openat(&at, "f", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
            drop(file);
            at = fs::openat(&at, "d", DIRECTORY, Mode::empty()).unwrap();
        }
        drop(at);
        std::fs::create_dir_all(root.join("side/.removed-1/x")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("link")).unwrap();
        remove_tree(&root).unwrap();
        assert!(!root.exists());
        assert!(Path::new("/etc/passwd").exists());
        remove_tree(&root).unwrap();
    }
}
