//! The directory of one layer while it is filled. Nothing is ever created outside it.
//!
//! The kernel resolves every directory (`openat2(2)` with `RESOLVE_IN_ROOT`): an absolute link
//! starts at the layer's root, `..` stops there, a loop is `ELOOP`. The last component of a path
//! is never followed: it is a checked name in an open directory.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags},
    io::Errno,
    process::{Gid, Uid},
};

use super::{EntryProblem, tar_reader::Member, tree::remove_tree_at};

/// Overlay's mark of a directory that hides all below it in lower layers
/// (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").
const OPAQUE: &str = "trusted.overlay.opaque";
/// Longest path, as in `PATH_MAX` less its final zero.
const PATH_LENGTH_MAX: usize = 4095;
const NAME_LENGTH_MAX: usize = 255;
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// Directories that an archive leaves out are made as Docker makes them.
const IMPLIED_MODE: Mode = Mode::from_raw_mode(0o755);

/// A path from an archive, split into names that are safe to use one by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EntryPath(Vec<Vec<u8>>);

impl EntryPath {
    /// Takes leading slashes and `.` as nothing, and refuses `..`: no builder writes it, and a
    /// file that lands elsewhere than its name says helps nobody.
    pub(crate) fn parse(path: &[u8]) -> Result<Self, EntryProblem> {
        if path.len() > PATH_LENGTH_MAX {
            return Err(EntryProblem::PathTooLong);
        }
        if path.contains(&0) {
            return Err(EntryProblem::ZeroByte);
        }
        let mut names = Vec::new();
        for name in path.split(|&b| b == b'/') {
            match name {
                b"" | b"." => {}
                b".." => return Err(EntryProblem::Outside),
                name if name.len() > NAME_LENGTH_MAX => return Err(EntryProblem::PathTooLong),
                name => names.push(name.to_vec()),
            }
        }
        Ok(Self(names))
    }

    /// The directory and the last name; `None` for the root itself.
    pub(crate) fn split(&self) -> Option<(&[Vec<u8>], &[u8])> {
        self.0
            .split_last()
            .map(|(name, parents)| (parents, name.as_slice()))
    }
}

/// The open root of a layer.
pub(crate) struct LayerRoot {
    root: OwnedFd,
    /// The directory used last: members of one directory follow each other in an archive.
    last: Option<(Vec<Vec<u8>>, OwnedFd)>,
}

impl LayerRoot {
    pub(crate) fn open(path: &std::path::Path) -> Result<Self, Errno> {
        Ok(Self {
            root: fs::open(path, DIRECTORY, Mode::empty())?,
            last: None,
        })
    }

    /// Opens a directory below the root, making what is missing.
    pub(crate) fn directory(&mut self, names: &[Vec<u8>]) -> Result<OwnedFd, EntryProblem> {
        if let Some((cached, directory)) = &self.last
            && cached == names
        {
            return directory
                .try_clone()
                .map_err(|error| EntryProblem::Io("open directory", error));
        }
        let directory = match self.resolve(names) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => self.make_directories(names)?,
            Err(errno) => return Err(EntryProblem::Parent(errno)),
        };
        let copy = directory
            .try_clone()
            .map_err(|error| EntryProblem::Io("open directory", error))?;
        self.last = Some((names.to_vec(), copy));
        Ok(directory)
    }

    /// Opens a directory that must be there already.
    pub(crate) fn existing_directory(&self, names: &[Vec<u8>]) -> Result<OwnedFd, Errno> {
        self.resolve(names)
    }

    fn make_directories(&self, names: &[Vec<u8>]) -> Result<OwnedFd, EntryProblem> {
        let mut at = self.resolve(&[]).map_err(EntryProblem::Parent)?;
        for depth in 0..names.len() {
            at = match self.resolve(&names[..=depth]) {
                Ok(next) => next,
                Err(Errno::NOENT) => {
                    let name = names[depth].as_slice();
                    match fs::mkdirat(&at, name, IMPLIED_MODE) {
                        Ok(()) => {}
                        // A whiteout of this layer stands there, or a link that leads nowhere.
                        Err(Errno::EXIST) => return Err(EntryProblem::Parent(Errno::NOTDIR)),
                        Err(errno) => return Err(EntryProblem::Parent(errno)),
                    }
                    let made = fs::openat(&at, name, DIRECTORY, Mode::empty())
                        .map_err(EntryProblem::Parent)?;
                    // The umask must not decide what an image contains.
                    fs::fchmod(&made, IMPLIED_MODE).map_err(EntryProblem::Parent)?;
                    made
                }
                Err(errno) => return Err(EntryProblem::Parent(errno)),
            };
        }
        Ok(at)
    }

    fn resolve(&self, names: &[Vec<u8>]) -> Result<OwnedFd, Errno> {
        let path = if names.is_empty() {
            b".".to_vec()
        } else {
            names.join(&b'/')
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        loop {
            match fs::openat2(&self.root, path.as_slice(), flags, Mode::empty(), within) {
                // The kernel could not rule out a race with a rename somewhere; ask again.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Clears the way for something new called `name`. True if a whiteout was there.
    pub(crate) fn displace(&mut self, parent: &OwnedFd, name: &[u8]) -> Result<bool, EntryProblem> {
        let stat = match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(EntryProblem::Kernel("inspect", errno)),
        };
        // The open directory may be the one that goes, or be reached through what goes.
        self.last = None;
        remove_tree_at(parent, name).map_err(|errno| EntryProblem::Kernel("replace", errno))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        Ok(kind == FileType::CharacterDevice && stat.st_rdev == 0)
    }

    /// Makes or keeps the directory `name`; its metadata is the member's.
    pub(crate) fn make_directory(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        member: &Member,
    ) -> Result<(), EntryProblem> {
        let is_directory = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        let mut hides_lower = false;
        if !is_directory {
            hides_lower = self.displace(parent, name)?;
            fs::mkdirat(parent, name, Mode::RWXU)
                .map_err(|errno| EntryProblem::Kernel("make directory", errno))?;
        }
        let directory = fs::openat(parent, name, DIRECTORY, Mode::empty())
            .map_err(|errno| EntryProblem::Kernel("open directory", errno))?;
        if hides_lower {
            set_opaque(&directory)?;
        }
        finish(&directory, member)
    }

    /// Metadata of the root itself.
    pub(crate) fn finish_root(&self, member: &Member) -> Result<(), EntryProblem> {
        finish(&self.root, member)
    }

    /// Hides `name` of lower layers.
    pub(crate) fn whiteout(parent: &OwnedFd, name: &[u8]) -> Result<(), EntryProblem> {
        match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            // A whiteout speaks of lower layers only; what this layer itself has there stays
            // (OCI image-spec, layer.md), and a directory hides what lower ones have in theirs.
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                let directory = fs::openat(parent, name, DIRECTORY, Mode::empty())
                    .map_err(|errno| EntryProblem::Kernel("open directory", errno))?;
                set_opaque(&directory)
            }
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => {
                let kind = FileType::CharacterDevice;
                fs::mknodat(parent, name, kind, Mode::empty(), fs::makedev(0, 0))
                    .map_err(|errno| EntryProblem::Kernel("make whiteout", errno))
            }
            Err(errno) => Err(EntryProblem::Kernel("inspect", errno)),
        }
    }
}

/// Marks a directory as hiding all that lower layers have in it.
pub(crate) fn set_opaque(directory: &OwnedFd) -> Result<(), EntryProblem> {
    fs::fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty())
        .map_err(|errno| EntryProblem::Kernel("mark directory opaque", errno))
}

/// Sets owner, mode, attributes and time of an open file or directory.
pub(crate) fn finish(file: &OwnedFd, member: &Member) -> Result<(), EntryProblem> {
    fs::fchown(
        file,
        Some(Uid::from_raw(member.uid)),
        Some(Gid::from_raw(member.gid)),
    )
    .map_err(|errno| EntryProblem::Kernel("set owner", errno))?;
    // After the owner: chown(2) clears set-id bits and file capabilities.
    fs::fchmod(file, Mode::from_raw_mode(member.mode))
        .map_err(|errno| EntryProblem::Kernel("set mode", errno))?;
    for (name, value) in &member.xattrs {
        if !is_safe_xattr(name) {
            tracing::debug!(name = %String::from_utf8_lossy(name), "extended attribute left out");
            continue;
        }
        match fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
            Ok(()) => {}
            // As Docker: a filesystem without attributes still runs most images.
            Err(Errno::NOTSUP) => {
                tracing::warn!(name = %String::from_utf8_lossy(name), "extended attribute not supported here");
            }
            Err(errno) => return Err(EntryProblem::Kernel("set extended attribute", errno)),
        }
    }
    fs::futimens(file, &timestamps(member)).map_err(|errno| EntryProblem::Kernel("set time", errno))
}

/// Sets owner, mode and time of something that cannot be opened: a link, device or pipe.
pub(crate) fn finish_special(
    parent: &OwnedFd,
    name: &[u8],
    member: &Member,
    is_symlink: bool,
) -> Result<(), EntryProblem> {
    let (uid, gid) = (Uid::from_raw(member.uid), Gid::from_raw(member.gid));
    fs::chownat(
        parent,
        name,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .map_err(|errno| EntryProblem::Kernel("set owner", errno))?;
    if !is_symlink {
        // Follows links, but this name was made just now and nobody else knows the directory.
        fs::chmodat(
            parent,
            name,
            Mode::from_raw_mode(member.mode),
            AtFlags::empty(),
        )
        .map_err(|errno| EntryProblem::Kernel("set mode", errno))?;
    }
    fs::utimensat(
        parent.as_fd(),
        name,
        &timestamps(member),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .map_err(|errno| EntryProblem::Kernel("set time", errno))
}

pub(crate) fn timestamps(member: &Member) -> Timestamps {
    let time = Timespec {
        tv_sec: member.mtime.0,
        tv_nsec: member.mtime.1.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// `trusted.overlay.*` and `user.overlay.*` steer overlay itself (a redirect could reach into
/// other layers); what else is not listed belongs to the host's security modules.
fn is_safe_xattr(name: &[u8]) -> bool {
    name == b"security.capability"
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_are_cut_to_names_below_the_root() {
        let names = |path: &[u8]| EntryPath::parse(path).unwrap().0;
        assert_eq!(names(b"/a//./b/"), vec![b"a".to_vec(), b"b".to_vec()]);
        assert!(EntryPath::parse(b"./").unwrap().split().is_none());
        assert!(matches!(
            EntryPath::parse(b"a/../b"),
            Err(EntryProblem::Outside)
        ));
        assert!(matches!(
            EntryPath::parse(&[b'a'; 256]),
            Err(EntryProblem::PathTooLong)
        ));
        assert!(matches!(
            EntryPath::parse(b"a\0b"),
            Err(EntryProblem::ZeroByte)
        ));
    }

    proptest! {
        /// Whatever links and names an archive brings, a marker lands below the root or nowhere.
        #[test]
        fn nothing_is_made_outside(
            links in proptest::collection::vec(("[ab]", "(/|\\.\\./|[ab]/){0,4}(outside|[ab])?"), 0..5),
            path in "(/|\\.\\./|\\./|[ab]/|outside/){0,6}[ab]",
        ) {
            let dir = tempfile::tempdir().unwrap();
            let root_path = dir.path().join("root");
            let outside = dir.path().join("outside");
            std::fs::create_dir(&root_path).unwrap();
            std::fs::create_dir(&outside).unwrap();
            for (name, target) in links {
                let _ = std::os::unix::fs::symlink(target, root_path.join(name));
            }
            let mut root = LayerRoot::open(&root_path).unwrap();
            if let Ok(path) = EntryPath::parse(path.as_bytes())
                && let Some((parents, name)) = path.split()
                && let Ok(parent) = root.directory(parents)
            {
                let _ = root.displace(&parent, name);
                fs::mkdirat(&parent, name, Mode::RWXU).unwrap();
            }
            prop_assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
            prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        }
    }
}
