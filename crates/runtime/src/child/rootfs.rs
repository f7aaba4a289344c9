//! The container's file system: overlay, mounts, devices, `pivot_root`, then what is hidden or made read-only.
//!
//! Everything is mounted in the container's own mount namespace and goes with it. Targets are resolved with
//! `openat2(RESOLVE_IN_ROOT)`, so no symbolic link of an image reaches out of its root; sources are cloned as detached
//! mounts (`open_tree`) before the host's tree is left.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::mount as rmount;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use super::stage::Stage;
use super::{ChildFailure, Doing};
use crate::cgroup::Cgroup;
use crate::paths::ContainerPaths;
use crate::plan::{DeviceNode, MountKind, MountPlan, Plan, STAGED};
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
    /// The directory itself, when the image's files are to be copied into it.
    fill: Option<OwnedFd>,
}

/// Where the container's process finds what its root is made of.
pub(super) struct View {
    /// What the names of layers are relative to.
    pub(super) layers: PathBuf,
    pub(super) upper: PathBuf,
    pub(super) work: PathBuf,
    /// Files of [`crate::EtcFiles`].
    pub(super) etc: PathBuf,
    /// The root is mounted here,
    pub(super) root: PathBuf,
    /// the files the container is given here, and this is the lowest layer of an image without one: none but the first
    /// exist yet.
    pub(super) files: PathBuf,
    pub(super) empty: PathBuf,
}

impl View {
    /// The host's.
    pub(super) fn of_host(plan: &Plan, paths: &ContainerPaths) -> Self {
        Self {
            layers: plan.rootfs.layers_dir.clone(),
            upper: paths.upper(),
            work: paths.work(),
            etc: paths.etc(),
            root: paths.rootfs(),
            files: paths.files(),
            empty: paths.bundle.join("empty"),
        }
    }
}

/// Builds the root and makes it ours. Mounts of a sandbox are taken from its `stage`; then `groups` are not needed.
pub(super) fn enter(
    plan: &Plan,
    view: &View,
    cgroup: &Cgroup,
    stage: Option<&Stage>,
) -> Result<(), ChildFailure> {
    let staged = stage.map_or(0, |stage| stage.mounts);
    let mounts = &plan.mounts[staged..];
    let sources = match stage {
        Some(stage) => stage.on_host(|| sources(mounts))?,
        None => sources(mounts)?,
    };
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
        etc.push((clone_source(&view.etc.join(name), false, &own)?, own.target));
    }
    let groups = clone_cgroups(mounts, cgroup)?;
    if stage.is_none() {
        make_private()?;
    }
    let files = super::files::make(&plan.files, &view.files)?;
    mount_overlay(&plan.rootfs.lower, view)?;
    let root = open_directory(&view.root).doing(|| "open the root".to_owned())?;

    // Before anything is mounted over what the image has.
    for (mount, source) in mounts.iter().zip(&sources) {
        if let Some(fill) = source.as_ref().and_then(|source| source.fill.as_ref()) {
            copy_up(root.as_fd(), mount, fill.as_fd())?;
        }
    }
    if stage.is_some() {
        for top in STAGED {
            let what = || format!("mount {top}");
            let target = ensure(root.as_fd(), top, true).doing(what)?;
            let flags = MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
            rmount::move_mount(CWD, top, target.as_fd(), "", flags).doing(what)?;
        }
    }
    let own_dev = mount_all(root.as_fd(), mounts, &sources, &groups)?;
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
    pivot(&view.root)
}

/// Makes what is mounted everywhere in this mount namespace its own affair.
pub(super) fn make_private() -> Result<(), ChildFailure> {
    let flags = rmount::MountPropagationFlags::PRIVATE | rmount::MountPropagationFlags::REC;
    rmount::mount_change("/", flags).doing(|| "make mounts private".to_owned())
}

/// Makes a mounted directory the root, and takes the old one out of sight.
pub(super) fn pivot(root: &Path) -> Result<(), ChildFailure> {
    rustix::process::chdir(root).doing(|| "enter the root".to_owned())?;
    // With both arguments "." the old root is stacked on the new one, from where it can be detached (pivot_root(2)).
    rustix::process::pivot_root(".", ".").doing(|| "pivot_root".to_owned())?;
    rmount::unmount(".", rmount::UnmountFlags::DETACH)
        .doing(|| "detach the old root".to_owned())?;
    rustix::process::chdir("/").doing(|| "enter the new root".to_owned())
}

/// The host's paths that are mounted, each beside its mount.
fn sources(mounts: &[MountPlan]) -> Result<Vec<Option<Source>>, ChildFailure> {
    let source = |mount: &MountPlan| match &mount.kind {
        MountKind::Bind { source, recursive } => clone_source(source, *recursive, mount).map(Some),
        _ => Ok(None),
    };
    mounts.iter().map(source).collect()
}

/// Mounts in their order. Whether a `/dev` of our own was among them, which wants devices.
fn mount_all(
    root: BorrowedFd<'_>,
    mounts: &[MountPlan],
    sources: &[Option<Source>],
    groups: &[(String, OwnedFd)],
) -> Result<bool, ChildFailure> {
    let mut own_dev = false;
    for (mount, source) in mounts.iter().zip(sources) {
        match (&mount.kind, source) {
            (MountKind::Filesystem { kind, source, data }, _) => {
                own_dev |= mount.target == "/dev" && kind == "tmpfs";
                mount_filesystem(root, mount, kind, source, data)?;
            }
            (MountKind::Cgroup, _) => mount_cgroups(root, mount, groups)?,
            (MountKind::Bind { .. }, Some(source)) => place(root, source, &mount.target)?,
            (MountKind::Bind { .. }, None) => {}
        }
    }
    Ok(own_dev)
}

/// Mounts what a sandbox has of its shape into a root that waits for a container's.
pub(super) fn mount_staged(
    root: BorrowedFd<'_>,
    mounts: &[MountPlan],
    groups: &[(String, OwnedFd)],
) -> Result<(), ChildFailure> {
    let none: Vec<Option<Source>> = mounts.iter().map(|_| None).collect();
    if mount_all(root, mounts, &none, groups)? {
        default_devices(root)?;
    }
    Ok(())
}

/// Makes a directory of the host's visible below a root.
pub(super) fn show(root: BorrowedFd<'_>, source: &Path, target: &str) -> Result<(), ChildFailure> {
    let own = MountPlan {
        target: target.to_owned(),
        kind: MountKind::Cgroup,
        attributes: MountAttributes::default(),
        recursive_attributes: false,
        copy_up: false,
    };
    place(root, &clone_source(source, false, &own)?, target)
}

/// Hides and write-protects paths of the container's.
pub(super) fn hide(readonly: &[String], masked: &[String]) -> Result<(), ChildFailure> {
    for path in readonly {
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
    for path in masked {
        mask(path).doing(|| format!("mask {path}"))?;
    }
    Ok(())
}

/// Makes the root itself read-only.
pub(super) fn protect_root() -> Result<(), ChildFailure> {
    let what = || "make the root read-only".to_owned();
    let root = open_directory(Path::new("/")).doing(what)?;
    let attributes = MountAttributes {
        set: attribute::RDONLY,
        ..MountAttributes::default()
    };
    set_attributes(root.as_fd(), attributes, false).doing(what)
}

pub(super) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
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
    let bound = matches!(mount.kind, MountKind::Bind { .. });
    let fill = if bound && mount.copy_up {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Some(rustix::fs::open(source, flags, Mode::empty()).doing(what)?)
    } else {
        None
    };
    Ok(Source { tree, is_dir, fill })
}

/// Mounts the overlay: by mount(2), the faster call, until its option page (4096 bytes) overflows, then layer by layer.
fn mount_overlay(lower: &[String], view: &View) -> Result<(), ChildFailure> {
    const OPTION_PAGE: usize = 4096;
    let what = || format!("mount overlay of {} layers", lower.len());
    rustix::process::chdir(&view.layers)
        .doing(|| format!("enter layers directory {}", view.layers.display()))?;
    let lower: Vec<String> = if lower.is_empty() {
        // An image from scratch: overlay wants a lower directory all the same.
        fs::create_dir_all(&view.empty).doing(what)?;
        vec![view.empty.to_string_lossy().into_owned()]
    } else {
        lower.to_vec()
    };
    let (upper, work) = (view.upper.to_string_lossy(), view.work.to_string_lossy());
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
            &view.root,
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
            &view.root,
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
pub(super) fn clone_cgroups(
    mounts: &[MountPlan],
    cgroup: &Cgroup,
) -> Result<Vec<(String, OwnedFd)>, ChildFailure> {
    if !mounts.iter().any(|mount| mount.kind == MountKind::Cgroup) {
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

/// Fills the empty directory `volume`, which is mounted, with what the image has there, if that is a directory. Whoever else
/// does so at the same time is waited for.
fn copy_up(
    root: BorrowedFd<'_>,
    mount: &MountPlan,
    volume: BorrowedFd<'_>,
) -> Result<(), ChildFailure> {
    let what = || format!("copy the image's files from {} to its mount", mount.target);
    let of_image = match open_in_root(root, &mount.target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.doing(what)?,
    };
    let mode = rustix::fs::fstat(&of_image).doing(what)?.st_mode;
    if !rustix::fs::FileType::from_raw_mode(mode).is_dir() {
        return Ok(());
    }
    rustix::fs::flock(volume, rustix::fs::FlockOperation::LockExclusive).doing(what)?;
    if has_entries(volume).doing(what)? {
        return Ok(());
    }
    copy_tree(of_image.as_fd(), volume).doing(what)
}

fn has_entries(directory: BorrowedFd<'_>) -> io::Result<bool> {
    for entry in rustix::fs::Dir::read_from(directory)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(true);
        }
    }
    Ok(false)
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
