//! The container's file system: overlay, mounts, devices, `pivot_root`, then what is hidden or made read-only.
//!
//! Everything is mounted in the container's own mount namespace and goes with it. Targets are resolved with
//! `openat2(RESOLVE_IN_ROOT)`, so no symbolic link of an image reaches out of its root; sources are cloned as detached
//! mounts (`open_tree`) before the host's tree is left.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::mount as rmount;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use super::{ChildFailure, Doing};
use crate::cgroup::Cgroup;
use crate::paths::ContainerPaths;
use crate::plan::{DeviceNode, MountKind, MountPlan, Plan};
use crate::sys::mount::{self as attribute, MountAttributes, set_attributes};

/// Devices every container has (OCI runtime spec, "default devices"), as (name, major, minor).
const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Links every `/dev` has.
const DEV_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Files of [`crate::EtcFiles`], as they are named in the state directory and in `/etc`.
const ETC: [&str; 3] = ["hostname", "hosts", "resolv.conf"];

/// A host path as a detached mount, with its attributes set.
struct Source {
    tree: OwnedFd,
    is_dir: bool,
}

/// Builds the root and makes it ours.
pub(super) fn enter(
    plan: &Plan,
    paths: &ContainerPaths,
    cgroup: &Cgroup,
) -> Result<(), ChildFailure> {
    let mut sources = Vec::new();
    for mount in &plan.mounts {
        sources.push(match &mount.kind {
            MountKind::Bind { source, recursive } => Some(clone_source(source, *recursive, mount)?),
            _ => None,
        });
    }
    let mut etc = Vec::new();
    for name in ETC {
        let target = format!("/etc/{name}");
        // A mount or file of the user's own wins.
        if plan.mounts.iter().any(|mount| mount.target == target)
            || plan.files.iter().any(|file| file.target == target)
        {
            continue;
        }
        let own = MountPlan {
            target,
            kind: MountKind::Cgroup,
            attributes: MountAttributes::default(),
            recursive_attributes: false,
            copy_up: false,
        };
        etc.push((
            clone_source(&paths.etc().join(name), false, &own)?,
            own.target,
        ));
    }
    let groups = clone_cgroups(plan, cgroup)?;

    rmount::mount_change(
        "/",
        rmount::MountPropagationFlags::PRIVATE | rmount::MountPropagationFlags::REC,
    )
    .doing(|| "make mounts private".to_owned())?;
    let files = super::files::make(&plan.files, paths)?;
    mount_overlay(plan, paths)?;
    let root = rustix::fs::open(
        paths.rootfs(),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .doing(|| "open the root".to_owned())?;

    // Before anything is mounted over what the image has.
    for mount in &plan.mounts {
        if let MountKind::Bind { source, .. } = &mount.kind
            && mount.copy_up
        {
            copy_up(root.as_fd(), &mount.target, source)?;
        }
    }
    let mut own_dev = false;
    for (mount, source) in plan.mounts.iter().zip(sources) {
        match (&mount.kind, source) {
            (MountKind::Filesystem { kind, source, data }, _) => {
                own_dev |= mount.target == "/dev" && kind == "tmpfs";
                mount_filesystem(root.as_fd(), mount, kind, source, data)?;
            }
            (MountKind::Cgroup, _) => mount_cgroups(root.as_fd(), mount, &groups)?,
            (MountKind::Bind { .. }, Some(source)) => place(root.as_fd(), &source, &mount.target)?,
            (MountKind::Bind { .. }, None) => {}
        }
    }
    for (tree, file) in files.iter().zip(&plan.files) {
        let what = || format!("mount the file {}", file.target);
        let target = ensure(root.as_fd(), &file.target, false).doing(what)?;
        attach_to(tree.as_fd(), target.as_fd()).doing(what)?;
    }
    for (source, target) in &etc {
        place(root.as_fd(), source, target)?;
    }
    if own_dev {
        default_devices(root.as_fd())?;
    }
    for device in &plan.devices {
        make_device(root.as_fd(), device)?;
    }

    rustix::process::chdir(paths.rootfs()).doing(|| "enter the root".to_owned())?;
    // With both arguments "." the old root is stacked on the new one, from where it can be detached (pivot_root(2)).
    rustix::process::pivot_root(".", ".").doing(|| "pivot_root".to_owned())?;
    rmount::unmount(".", rmount::UnmountFlags::DETACH)
        .doing(|| "detach the old root".to_owned())?;
    rustix::process::chdir("/").doing(|| "enter the new root".to_owned())
}

/// Hides and write-protects what the plan says, last of all the root itself.
pub(super) fn protect(plan: &Plan) -> Result<(), ChildFailure> {
    for path in &plan.readonly_paths {
        let what = || format!("make {path} read-only");
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        let tree = match rmount::open_tree(CWD, path.as_str(), flags) {
            Err(rustix::io::Errno::NOENT) => continue,
            other => other.doing(what)?,
        };
        let attributes = MountAttributes {
            set: attribute::RDONLY,
            ..MountAttributes::default()
        };
        set_attributes(tree.as_fd(), attributes, true).doing(what)?;
        attach(tree.as_fd(), CWD, path).doing(what)?;
    }
    for path in &plan.masked_paths {
        mask(path).doing(|| format!("mask {path}"))?;
    }
    if plan.readonly_root {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let what = || "make the root read-only".to_owned();
        let root = rustix::fs::open("/", flags, Mode::empty()).doing(what)?;
        let attributes = MountAttributes {
            set: attribute::RDONLY,
            ..MountAttributes::default()
        };
        set_attributes(root.as_fd(), attributes, false).doing(what)?;
    }
    Ok(())
}

/// Covers a file with `/dev/null` and a directory with an empty read-only tmpfs.
fn mask(path: &str) -> io::Result<()> {
    let is_dir = match fs::metadata(path) {
        Ok(metadata) => metadata.is_dir(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let tree = if is_dir {
        let context = rmount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rmount::fsconfig_set_string(context.as_fd(), "size", "0")?;
        rmount::fsconfig_create(context.as_fd())?;
        rmount::fsmount(
            context.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_RDONLY,
        )?
    } else {
        let null = rustix::fs::open(
            "/dev/null",
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        // An image may bring its own /dev: a link or file there must not be what covers a secret.
        if rustix::fs::fstat(&null)?.st_rdev != rustix::fs::makedev(1, 3) {
            return Err(io::Error::other("/dev/null is not the null device"));
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        rmount::open_tree(null.as_fd(), "", flags)?
    };
    attach(tree.as_fd(), CWD, path)
}

fn clone_source(source: &Path, recursive: bool, mount: &MountPlan) -> Result<Source, ChildFailure> {
    let what = || format!("bind source {} for {}", source.display(), mount.target);
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = rmount::open_tree(CWD, source, flags).doing(what)?;
    let metadata = rustix::fs::fstat(&tree).doing(what)?;
    let is_dir = rustix::fs::FileType::from_raw_mode(metadata.st_mode).is_dir();
    let mut attributes = mount.attributes;
    let propagation = MountAttributes {
        propagation: if attributes.propagation == 0 {
            libc::MS_PRIVATE
        } else {
            attributes.propagation
        },
        ..MountAttributes::default()
    };
    attributes.propagation = 0;
    set_attributes(tree.as_fd(), propagation, true).doing(what)?;
    if !attributes.is_empty() {
        set_attributes(tree.as_fd(), attributes, mount.recursive_attributes).doing(what)?;
    }
    Ok(Source { tree, is_dir })
}

/// Mounts the overlay: by mount(2), the faster call, until its option page (4096 bytes) overflows, then layer by layer.
fn mount_overlay(plan: &Plan, paths: &ContainerPaths) -> Result<(), ChildFailure> {
    const OPTION_PAGE: usize = 4096;
    let what = || format!("mount overlay of {} layers", plan.rootfs.lower.len());
    rustix::process::chdir(&plan.rootfs.layers_dir).doing(|| {
        format!(
            "enter layers directory {}",
            plan.rootfs.layers_dir.display()
        )
    })?;
    let empty = paths.bundle.join("empty");
    let lower: Vec<String> = if plan.rootfs.lower.is_empty() {
        // An image from scratch: overlay wants a lower directory all the same.
        fs::create_dir_all(&empty).doing(what)?;
        vec![empty.to_string_lossy().into_owned()]
    } else {
        plan.rootfs.lower.clone()
    };
    let (upper, work) = (paths.upper(), paths.work());
    let (upper, work) = (upper.to_string_lossy(), work.to_string_lossy());
    let escaped: Vec<String> = lower.iter().map(|name| escape(name, "\\:,")).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        escaped.join(":"),
        escape(&upper, "\\,"),
        escape(&work, "\\,")
    );
    if options.len() < OPTION_PAGE {
        let options = std::ffi::CString::new(options)
            .map_err(io::Error::from)
            .doing(what)?;
        return rmount::mount(
            "overlay",
            paths.rootfs(),
            "overlay",
            rmount::MountFlags::empty(),
            options.as_c_str(),
        )
        .doing(what);
    }
    let by_parts = || -> rustix::io::Result<()> {
        let context = rmount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for name in &lower {
            rmount::fsconfig_set_string(context.as_fd(), "lowerdir+", name.as_str())?;
        }
        rmount::fsconfig_set_string(context.as_fd(), "upperdir", upper.as_ref())?;
        rmount::fsconfig_set_string(context.as_fd(), "workdir", work.as_ref())?;
        rmount::fsconfig_create(context.as_fd())?;
        let mount = rmount::fsmount(
            context.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )?;
        rmount::move_mount(
            mount.as_fd(),
            "",
            CWD,
            paths.rootfs(),
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    by_parts().doing(what)
}

fn escape(text: &str, special: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        if special.contains(letter) {
            escaped.push('\\');
        }
        escaped.push(letter);
    }
    escaped
}

fn mount_filesystem(
    root: BorrowedFd<'_>,
    mount: &MountPlan,
    kind: &str,
    source: &str,
    data: &str,
) -> Result<(), ChildFailure> {
    let what = || format!("mount {kind} on {}", mount.target);
    let make = || -> io::Result<OwnedFd> {
        let context = rmount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        rmount::fsconfig_set_string(context.as_fd(), "source", source)?;
        for option in data.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some((key, value)) => rmount::fsconfig_set_string(context.as_fd(), key, value)?,
                None => rmount::fsconfig_set_flag(context.as_fd(), option)?,
            }
        }
        rmount::fsconfig_create(context.as_fd())?;
        let tree = rmount::fsmount(
            context.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )?;
        Ok(tree)
    };
    let tree = make().doing(what)?;
    let target = ensure(root, &mount.target, true).doing(what)?;
    if mount.copy_up {
        copy_tree(target.as_fd(), tree.as_fd())
            .doing(|| format!("copy the image's files to {}", mount.target))?;
    }
    if !mount.attributes.is_empty() {
        set_attributes(tree.as_fd(), mount.attributes, false).doing(what)?;
    }
    attach_to(tree.as_fd(), target.as_fd()).doing(what)
}

/// The container's own groups as detached mounts, each with the name of its hierarchy ("" for v2 alone).
fn clone_cgroups(plan: &Plan, cgroup: &Cgroup) -> Result<Vec<(String, OwnedFd)>, ChildFailure> {
    if !plan
        .mounts
        .iter()
        .any(|mount| mount.kind == MountKind::Cgroup)
    {
        return Ok(Vec::new());
    }
    let clone = |path: &Path| {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        rmount::open_tree(CWD, path, flags).doing(|| format!("bind cgroup {}", path.display()))
    };
    if cgroup.v1.is_empty() {
        let v2 = cgroup
            .v2
            .iter()
            .map(|path| Ok((String::new(), clone(path)?)));
        return v2.collect();
    }
    cgroup
        .v1
        .iter()
        .map(|(name, path)| Ok((name.clone(), clone(path)?)))
        .collect()
}

fn mount_cgroups(
    root: BorrowedFd<'_>,
    mount: &MountPlan,
    groups: &[(String, OwnedFd)],
) -> Result<(), ChildFailure> {
    if let [(name, tree)] = groups
        && name.is_empty()
    {
        let what = || format!("mount cgroup on {}", mount.target);
        set_attributes(tree.as_fd(), mount.attributes, false).doing(what)?;
        let target = ensure(root, &mount.target, true).doing(what)?;
        return attach_to(tree.as_fd(), target.as_fd()).doing(what);
    }
    let writable = MountPlan {
        attributes: MountAttributes::default(),
        kind: MountKind::Cgroup,
        target: mount.target.clone(),
        ..*mount
    };
    mount_filesystem(root, &writable, "tmpfs", "tmpfs", "mode=755")?;
    for (name, tree) in groups {
        let target = format!("{}/{name}", mount.target);
        let what = || format!("mount cgroup on {target}");
        set_attributes(tree.as_fd(), mount.attributes, false).doing(what)?;
        let directory = ensure(root, &target, true).doing(what)?;
        attach_to(tree.as_fd(), directory.as_fd()).doing(what)?;
        // Programs look for `cpu` where the hierarchy is `cpu,cpuacct`.
        for alias in name.split(',').filter(|alias| alias != name) {
            let parent = open_in_root(root, &mount.target).doing(what)?;
            let _ = rustix::fs::symlinkat(name.as_str(), &parent, alias);
        }
    }
    let what = || format!("protect {}", mount.target);
    let top = open_in_root(root, &mount.target).doing(what)?;
    set_attributes(top.as_fd(), mount.attributes, false).doing(what)
}

fn default_devices(root: BorrowedFd<'_>) -> Result<(), ChildFailure> {
    let dev = open_in_root(root, "/dev").doing(|| "open /dev".to_owned())?;
    let umask = rustix::process::umask(Mode::empty());
    for (name, major, minor) in DEFAULT_DEVICES {
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(
            &dev,
            name,
            rustix::fs::FileType::CharacterDevice,
            mode,
            rustix::fs::makedev(major, minor),
        )
        .doing(|| format!("make /dev/{name}"))?;
    }
    rustix::process::umask(umask);
    for (name, to) in DEV_LINKS {
        rustix::fs::symlinkat(to, &dev, name).doing(|| format!("link /dev/{name}"))?;
    }
    Ok(())
}

fn make_device(root: BorrowedFd<'_>, device: &DeviceNode) -> Result<(), ChildFailure> {
    let what = || format!("make device {}", device.path);
    let (parent, name) = split(&device.path);
    let parent = ensure(root, parent, true).doing(what)?;
    let kind = rustix::fs::FileType::from_raw_mode(device.mode);
    let mode = Mode::from_raw_mode(device.mode & 0o7777);
    let number = rustix::fs::makedev(device.major, device.minor);
    match rustix::fs::mknodat(&parent, name, kind, mode, number) {
        // One of the defaults, asked for again: replace it, its mode and owner may differ.
        Err(rustix::io::Errno::EXIST) => {
            rustix::fs::unlinkat(&parent, name, AtFlags::empty()).doing(what)?;
            rustix::fs::mknodat(&parent, name, kind, mode, number).doing(what)?;
        }
        other => other.doing(what)?,
    }
    rustix::fs::chmodat(&parent, name, mode, AtFlags::empty()).doing(what)?;
    let owner = (
        Some(Uid::from_raw(device.uid)),
        Some(Gid::from_raw(device.gid)),
    );
    rustix::fs::chownat(&parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).doing(what)
}

fn place(root: BorrowedFd<'_>, source: &Source, target: &str) -> Result<(), ChildFailure> {
    let what = || format!("bind mount on {target}");
    let directory = ensure(root, target, source.is_dir).doing(what)?;
    attach_to(source.tree.as_fd(), directory.as_fd()).doing(what)
}

fn attach_to(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rmount::move_mount(tree, "", target, "", flags)?)
}

fn attach(tree: BorrowedFd<'_>, at: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    Ok(rmount::move_mount(
        tree,
        "",
        at,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

fn open_in_root(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )?)
}

/// Opens a mount point below `root`, making it and its parents where they are missing.
fn ensure(root: BorrowedFd<'_>, path: &str, directory: bool) -> io::Result<OwnedFd> {
    const LINKS: u32 = 40; // as many as the kernel follows
    ensure_following(root, path, directory, LINKS)
}

fn ensure_following(
    root: BorrowedFd<'_>,
    path: &str,
    directory: bool,
    links: u32,
) -> io::Result<OwnedFd> {
    match open_in_root(root, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    if links == 0 {
        return Err(io::Error::from_raw_os_error(libc::ELOOP));
    }
    let (parent_path, name) = split(path);
    if name.is_empty() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let parent = ensure_following(root, parent_path, true, links - 1)?;
    // A link whose target is missing, as /etc/resolv.conf is in many images: make what it points to.
    if let Ok(target) = rustix::fs::readlinkat(&parent, name, Vec::new()) {
        let target = target.to_string_lossy().into_owned();
        let target = if target.starts_with('/') {
            target
        } else {
            format!("{parent_path}/{target}")
        };
        return ensure_following(root, &target, directory, links - 1);
    }
    if directory {
        rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        drop(rustix::fs::openat(
            &parent,
            name,
            flags,
            Mode::from_raw_mode(0o644),
        )?);
    }
    open_in_root(root, path)
}

/// The parent and the last component of an absolute path.
fn split(path: &str) -> (&str, &str) {
    let path = path.trim_end_matches('/');
    match path.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some((parent, name)) => (parent, name),
        None => ("/", path),
    }
}

/// Fills the empty directory `source` with what the image has at `target`, if that is a directory. Whoever else does so at
/// the same time is waited for.
fn copy_up(root: BorrowedFd<'_>, target: &str, source: &Path) -> Result<(), ChildFailure> {
    let what = || {
        let source = source.display();
        format!("copy the image's files from {target} to {source}")
    };
    let of_image = match open_in_root(root, target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.doing(what)?,
    };
    let is_dir = |fd: &OwnedFd| -> io::Result<bool> {
        let mode = rustix::fs::fstat(fd)?.st_mode;
        Ok(rustix::fs::FileType::from_raw_mode(mode).is_dir())
    };
    if !is_dir(&of_image).doing(what)? {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let volume = rustix::fs::open(source, flags, Mode::empty()).doing(what)?;
    rustix::fs::flock(&volume, rustix::fs::FlockOperation::LockExclusive).doing(what)?;
    if fs::read_dir(source).doing(what)?.next().is_some() {
        return Ok(());
    }
    copy_tree(of_image.as_fd(), volume.as_fd()).doing(what)
}

/// Copies a directory's contents with modes, owners and links, into the root of a detached mount.
fn copy_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let read = |fd: BorrowedFd<'_>| {
        rustix::fs::openat(
            fd,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
    };
    let (from, to) = (read(from)?, read(to)?);
    copy_owner(from.as_fd(), to.as_fd())?;
    for entry in rustix::fs::Dir::read_from(&from)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = rustix::fs::statat(&from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        if kind.is_dir() {
            rustix::fs::mkdirat(&to, name, Mode::from_raw_mode(0o700))?;
            let open = |at: &OwnedFd| {
                rustix::fs::openat(
                    at,
                    name,
                    OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )
            };
            copy_tree(open(&from)?.as_fd(), open(&to)?.as_fd())?;
        } else if kind.is_symlink() {
            let link = rustix::fs::readlinkat(&from, name, Vec::new())?;
            rustix::fs::symlinkat(link.as_c_str(), &to, name)?;
        } else if kind.is_file() {
            let source = rustix::fs::openat(
                &from,
                name,
                OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let target = rustix::fs::openat(&to, name, flags, Mode::from_raw_mode(0o600))?;
            io::copy(
                &mut fs::File::from(source.try_clone()?),
                &mut fs::File::from(target.try_clone()?),
            )?;
            copy_owner(source.as_fd(), target.as_fd())?;
        }
    }
    Ok(())
}

fn copy_owner(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let stat = rustix::fs::fstat(from)?;
    rustix::fs::fchown(
        to,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    Ok(())
}
