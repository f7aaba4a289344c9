//! Mounts, in both directions.

use std::path::PathBuf;

use shoal_types::spec::{Bind, Mount, MountKind, Tmpfs};

use super::{Result, SpecError, only_empty};
use crate::wire;

pub(super) fn mount(n: usize, mut mount: wire::Mount) -> Result<Mount> {
    if mount.kind.is_empty() {
        // The zero value of SwarmKit's enum.
        "bind".clone_into(&mut mount.kind);
    }
    let base = format!("TaskTemplate.ContainerSpec.Mounts[{n}]");
    let field = |name: &str| format!("{base}.{name}");
    if !mount.target.starts_with('/') {
        let message = if mount.target.is_empty() {
            "invalid mount target, must not be empty".to_owned()
        } else {
            format!(
                "invalid mount target, must be an absolute path: {}",
                mount.target
            )
        };
        return Err(SpecError::invalid(field("Target"), message));
    }
    // "default", "consistent", "cached" and "delegated" all mean the same on Linux, as in Docker.
    let foreign = |given: bool, name: &str| {
        if given {
            let message = format!("must not be given for a mount of type {:?}", mount.kind);
            return Err(SpecError::invalid(field(name), message));
        }
        Ok(())
    };
    foreign(
        mount.kind != "bind" && mount.bind_options.is_some(),
        "BindOptions",
    )?;
    foreign(
        mount.kind != "volume" && mount.volume_options.is_some(),
        "VolumeOptions",
    )?;
    foreign(
        mount.kind != "tmpfs" && mount.tmpfs_options.is_some(),
        "TmpfsOptions",
    )?;
    let kind = match mount.kind.as_str() {
        "bind" => bind(mount.source, mount.bind_options.unwrap_or_default(), &base)?,
        "volume" => volume(
            mount.source,
            mount.volume_options.unwrap_or_default(),
            &base,
        )?,
        "tmpfs" => {
            foreign(!mount.source.is_empty(), "Source")?;
            tmpfs(mount.tmpfs_options.unwrap_or_default(), &base)?
        }
        "npipe" | "cluster" | "image" => {
            let message = format!("mounts of type {} cannot be made", mount.kind);
            return Err(SpecError::unsupported(field("Type"), message));
        }
        other => {
            let message = format!("invalid MountType: {other:?}");
            return Err(SpecError::invalid(field("Type"), message));
        }
    };
    Ok(Mount {
        kind,
        target: PathBuf::from(mount.target),
        read_only: mount.read_only,
    })
}

fn bind(source: String, options: wire::BindOptions, base: &str) -> Result<MountKind> {
    let field = |name: &str| format!("{base}.{name}");
    if !source.starts_with('/') {
        let message = format!("invalid mount source, must be an absolute path: {source}");
        return Err(SpecError::invalid(field("Source"), message));
    }
    let known = [
        "", "private", "rprivate", "shared", "rshared", "slave", "rslave",
    ];
    if !known.contains(&options.propagation.as_str()) {
        let message = format!("invalid MountPropagation: {:?}", options.propagation);
        return Err(SpecError::invalid(
            field("BindOptions.Propagation"),
            message,
        ));
    }
    let recursive = "read-only mounts are made read-only as a whole where the kernel can";
    only_empty(
        &options.read_only_non_recursive,
        &field("BindOptions.ReadOnlyNonRecursive"),
        recursive,
    )?;
    only_empty(
        &options.read_only_force_recursive,
        &field("BindOptions.ReadOnlyForceRecursive"),
        recursive,
    )?;
    Ok(MountKind::Bind(Bind {
        source: PathBuf::from(source),
        propagation: options.propagation,
        non_recursive: options.non_recursive,
        create_mountpoint: options.create_mountpoint,
    }))
}

fn volume(name: String, options: wire::VolumeOptions, base: &str) -> Result<MountKind> {
    let field = |name: &str| format!("{base}.VolumeOptions.{name}");
    if name.starts_with('/') {
        let message = format!("invalid volume mount source, must not be an absolute path: {name}");
        return Err(SpecError::invalid(format!("{base}.Source"), message));
    }
    only_empty(
        &options.subpath,
        &field("Subpath"),
        "a volume is mounted as a whole",
    )?;
    let driver = options.driver_config.unwrap_or_default();
    if !matches!(driver.name.as_str(), "" | "local") {
        let message = format!("there is no volume driver {:?}; use local", driver.name);
        return Err(SpecError::unsupported(field("DriverConfig.Name"), message));
    }
    Ok(MountKind::Volume {
        name,
        no_copy: options.no_copy,
        labels: options.labels,
        driver_options: driver.options,
    })
}

fn tmpfs(options: wire::TmpfsOptions, base: &str) -> Result<MountKind> {
    let field = |name: &str| format!("{base}.TmpfsOptions.{name}");
    only_empty(
        &options.options,
        &field("Options"),
        "only size and mode can be set",
    )?;
    let size_bytes = u64::try_from(options.size_bytes)
        .map_err(|_| SpecError::invalid(field("SizeBytes"), "size must not be negative"))?;
    Ok(MountKind::Tmpfs(Tmpfs {
        size_bytes,
        mode: options.mode,
    }))
}

pub(super) fn mount_out(mount: &Mount) -> wire::Mount {
    let base = wire::Mount {
        target: mount.target.to_string_lossy().into_owned(),
        read_only: mount.read_only,
        ..wire::Mount::default()
    };
    match &mount.kind {
        MountKind::Bind(bind) => {
            let options = wire::BindOptions {
                propagation: bind.propagation.clone(),
                non_recursive: bind.non_recursive,
                create_mountpoint: bind.create_mountpoint,
                ..wire::BindOptions::default()
            };
            wire::Mount {
                kind: "bind".into(),
                source: bind.source.to_string_lossy().into_owned(),
                bind_options: Some(options).filter(|o| *o != wire::BindOptions::default()),
                ..base
            }
        }
        MountKind::Volume {
            name,
            no_copy,
            labels,
            driver_options,
        } => {
            let driver = wire::DriverConfig {
                name: "local".into(),
                options: driver_options.clone(),
            };
            let options = wire::VolumeOptions {
                no_copy: *no_copy,
                labels: labels.clone(),
                driver_config: (!driver_options.is_empty()).then_some(driver),
                ..wire::VolumeOptions::default()
            };
            wire::Mount {
                kind: "volume".into(),
                source: name.clone(),
                volume_options: Some(options).filter(|o| *o != wire::VolumeOptions::default()),
                ..base
            }
        }
        MountKind::Tmpfs(tmpfs) => {
            let options = wire::TmpfsOptions {
                size_bytes: i64::try_from(tmpfs.size_bytes).unwrap_or(i64::MAX),
                mode: tmpfs.mode,
                options: Vec::new(),
            };
            wire::Mount {
                kind: "tmpfs".into(),
                tmpfs_options: Some(options).filter(|o| *o != wire::TmpfsOptions::default()),
                ..base
            }
        }
    }
}
