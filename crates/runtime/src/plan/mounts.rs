//! Mounts of the spec: option words into what mount(2) and `mount_setattr(2)` take.

use std::path::Path;

use oci_spec::runtime::Mount;

use super::prepare::InvalidSpec;
use super::{MountKind, MountPlan};
use crate::sys::mount as attribute;

/// File systems a container may ask for; everything else would be a way to read the host's disks or kernel state.
const FILESYSTEMS: [&str; 5] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue"];

pub(super) fn mount_plan(mount: &Mount) -> Result<MountPlan, InvalidSpec> {
    let target = mount.destination().to_string_lossy().into_owned();
    let invalid = |why: String| InvalidSpec::invalid("mounts", format!("{target}: {why}"));
    if !mount.destination().is_absolute() {
        return Err(invalid(
            "the destination must be an absolute path".to_owned(),
        ));
    }
    if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
        return Err(InvalidSpec::unsupported("mounts.uidMappings/gidMappings"));
    }
    let words = Words::parse(mount.options().iter().flatten());
    let kind = mount.typ().as_deref().unwrap_or("");
    let source = mount.source().as_deref();
    let kind = match kind {
        "cgroup" | "cgroup2" => MountKind::Cgroup,
        _ if words.bind || kind == "bind" => {
            let source = source
                .filter(|source| source.is_absolute())
                .ok_or_else(|| invalid("a bind mount needs an absolute source path".to_owned()))?;
            if let Some(unknown) = words.data.first() {
                return Err(invalid(format!("unknown bind option {unknown:?}")));
            }
            MountKind::Bind {
                source: source.to_path_buf(),
                recursive: words.recursive_bind,
            }
        }
        _ if FILESYSTEMS.contains(&kind) => MountKind::Filesystem {
            kind: kind.to_owned(),
            source: source
                .unwrap_or_else(|| Path::new(kind))
                .to_string_lossy()
                .into_owned(),
            data: words.data.join(","),
        },
        other => {
            return Err(InvalidSpec::unsupported_text(format!(
                "mounts.type {other:?} ({target})"
            )));
        }
    };
    let is_tmpfs = matches!(&kind, MountKind::Filesystem { kind, .. } if kind == "tmpfs");
    if words.tmpfs_copy_up && !is_tmpfs {
        return Err(invalid("tmpcopyup is for tmpfs only".to_owned()));
    }
    if words.bind_copy_up && !matches!(kind, MountKind::Bind { .. }) {
        return Err(invalid("copyup is for bind mounts only".to_owned()));
    }
    Ok(MountPlan {
        target,
        kind,
        attributes: words.attributes,
        recursive_attributes: words.recursive_attributes,
        copy_up: words.tmpfs_copy_up || words.bind_copy_up,
    })
}

/// The option words of one mount, sorted by what they are for.
#[derive(Default)]
struct Words {
    bind: bool,
    recursive_bind: bool,
    tmpfs_copy_up: bool,
    /// A word of our own: the OCI spec has none for it.
    bind_copy_up: bool,
    recursive_attributes: bool,
    attributes: attribute::MountAttributes,
    data: Vec<String>,
}

impl Words {
    fn parse<'a>(options: impl Iterator<Item = &'a String>) -> Self {
        let mut words = Self::default();
        for option in options {
            words.word(option);
        }
        words
    }

    fn word(&mut self, option: &str) {
        match option {
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive_bind) = (true, true),
            "tmpcopyup" => self.tmpfs_copy_up = true,
            "copyup" => self.bind_copy_up = true,
            "defaults" | "rw" | "async" | "relatime" | "z" | "Z" | "nocopy" => {}
            "ro" => self.set(attribute::RDONLY),
            "suid" => self.clear(attribute::NOSUID),
            "nosuid" => self.set(attribute::NOSUID),
            "dev" => self.clear(attribute::NODEV),
            "nodev" => self.set(attribute::NODEV),
            "exec" => self.clear(attribute::NOEXEC),
            "noexec" => self.set(attribute::NOEXEC),
            "nodiratime" => self.set(attribute::NODIRATIME),
            "noatime" => self.access_time(attribute::NOATIME),
            "strictatime" => self.access_time(attribute::STRICTATIME),
            "rro" => self.recursively(attribute::RDONLY),
            "rnosuid" => self.recursively(attribute::NOSUID),
            "rnodev" => self.recursively(attribute::NODEV),
            "rnoexec" => self.recursively(attribute::NOEXEC),
            "private" | "rprivate" => self.attributes.propagation = libc::MS_PRIVATE,
            "slave" | "rslave" => self.attributes.propagation = libc::MS_SLAVE,
            "shared" | "rshared" => self.attributes.propagation = libc::MS_SHARED,
            "unbindable" | "runbindable" => self.attributes.propagation = libc::MS_UNBINDABLE,
            other => self.data.push(other.to_owned()),
        }
    }

    fn set(&mut self, bit: u64) {
        self.attributes.set |= bit;
        self.attributes.clear &= !bit;
    }

    fn clear(&mut self, bit: u64) {
        self.attributes.clear |= bit;
        self.attributes.set &= !bit;
    }

    /// The access time modes are a field, not bits: it must be cleared whole to be set.
    fn access_time(&mut self, mode: u64) {
        self.attributes.clear |= attribute::ATIME_MASK;
        self.attributes.set = self.attributes.set & !attribute::ATIME_MASK | mode;
    }

    fn recursively(&mut self, bit: u64) {
        self.recursive_attributes = true;
        self.set(bit);
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::MountBuilder;

    use super::*;

    fn mount(typ: &str, source: &str, options: &[&str]) -> Mount {
        MountBuilder::default()
            .destination("/data")
            .typ(typ)
            .source(source)
            .options(
                options
                    .iter()
                    .map(|word| (*word).to_owned())
                    .collect::<Vec<_>>(),
            )
            .build()
            .expect("a valid mount")
    }

    #[test]
    fn bind_words_become_attributes() {
        let plan = mount_plan(&mount("bind", "/srv", &["rbind", "ro", "nosuid", "rslave"]))
            .expect("valid");
        assert_eq!(
            plan.kind,
            MountKind::Bind {
                source: "/srv".into(),
                recursive: true
            }
        );
        assert_eq!(plan.attributes.set, attribute::RDONLY | attribute::NOSUID);
        assert_eq!(plan.attributes.propagation, libc::MS_SLAVE);
    }

    #[test]
    fn tmpfs_keeps_its_own_options_as_data() {
        let plan = mount_plan(&mount(
            "tmpfs",
            "tmpfs",
            &["size=64m", "noexec", "mode=1777"],
        ))
        .expect("valid");
        let expected = MountKind::Filesystem {
            kind: "tmpfs".to_owned(),
            source: "tmpfs".to_owned(),
            data: "size=64m,mode=1777".to_owned(),
        };
        assert_eq!(plan.kind, expected);
    }

    #[test]
    fn other_filesystems_and_bad_binds_are_refused_by_name() {
        let text = |typ, source, options| {
            mount_plan(&mount(typ, source, options))
                .expect_err("refused")
                .to_string()
        };
        assert!(text("ext4", "/dev/vda", &[]).contains("mounts.type \"ext4\""));
        assert!(text("bind", "relative", &["bind"]).contains("absolute source"));
        assert!(text("bind", "/srv", &["bind", "bogus"]).contains("bogus"));
        assert!(text("bind", "/srv", &["bind", "tmpcopyup"]).contains("tmpfs only"));
        assert!(text("tmpfs", "tmpfs", &["copyup"]).contains("bind mounts only"));
    }
}
