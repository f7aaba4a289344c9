//! A task's mounts as its node makes them: templates filled in, volumes of the image added, outer before
//! inner.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use shoal_types::{
    TaskId,
    object::{NodeDescription, Task},
    spec::{Bind, MountKind, Tmpfs},
};

use super::{files, template};

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskMount {
    pub source: MountSource,
    pub target: PathBuf,
    pub read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    Bind(Bind),
    Tmpfs(Tmpfs),
    Volume(VolumeUse),
}

/// A volume as one task uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeUse {
    pub name: String,
    /// Made for this task alone, and gone with it.
    pub anonymous: bool,
    pub no_copy: bool,
    /// Of the volume, if it is made for this task.
    pub labels: BTreeMap<String, String>,
}

/// The mounts of `task`, whose image declares the volumes `of_image`.
pub(crate) fn mounts(
    task: &Task,
    of_image: &[String],
    node: &NodeDescription,
) -> Result<Vec<TaskMount>, template::TemplateError> {
    let expand = |text: &str| template::expand(text, task, node);
    let expand_path = |path: &Path| expand(&path.to_string_lossy()).map(PathBuf::from);
    let mut mounts = Vec::new();
    for mount in &task.spec.container.mounts {
        let target = expand_path(&mount.target)?;
        let source = match &mount.kind {
            MountKind::Bind(bind) => MountSource::Bind(Bind {
                source: expand_path(&bind.source)?,
                ..bind.clone()
            }),
            MountKind::Tmpfs(tmpfs) => MountSource::Tmpfs(tmpfs.clone()),
            MountKind::Volume {
                name,
                no_copy,
                labels,
                ..
            } => {
                let name = expand(name)?;
                let labels = labels.iter();
                let labels = labels.map(|(key, value)| Ok((key.clone(), expand(value)?)));
                let labels = labels.collect::<Result<_, template::TemplateError>>()?;
                MountSource::Volume(volume(task, &target, name, *no_copy, labels))
            }
        };
        mounts.push(TaskMount {
            source,
            target,
            read_only: mount.read_only,
        });
    }
    let taken: BTreeSet<PathBuf> = mounts.iter().map(|mount| normal(&mount.target)).collect();
    let taken_by_files: BTreeSet<PathBuf> = files::targets(task).map(PathBuf::from).collect();
    for target in of_image {
        let target = normal(Path::new(target));
        if !taken.contains(&target) && !taken_by_files.contains(&target) && target.is_absolute() {
            let source = volume(task, &target, String::new(), false, BTreeMap::new());
            mounts.push(TaskMount {
                source: MountSource::Volume(source),
                target,
                read_only: false,
            });
        }
    }
    mounts.sort_by_key(|mount| mount.target.components().count());
    Ok(mounts)
}

/// Without a slash at the end, so that paths can be compared.
fn normal(path: &Path) -> PathBuf {
    path.components().collect()
}

fn volume(
    task: &Task,
    target: &Path,
    name: String,
    no_copy: bool,
    labels: BTreeMap<String, String>,
) -> VolumeUse {
    let anonymous = name.is_empty();
    VolumeUse {
        name: if anonymous {
            anonymous_name(&task.id, target)
        } else {
            name
        },
        anonymous,
        no_copy,
        labels,
    }
}

/// 64 hex digits, as Docker's; derived, so that a task always finds its own again.
fn anonymous_name(task: &TaskId, target: &Path) -> String {
    let mut digest = Sha256::new();
    digest.update(b"shoal volume ");
    digest.update(task.as_str());
    digest.update(normal(target).as_os_str().as_encoded_bytes());
    shoal_types::ContainerId::from_random(digest.finalize().into()).to_string()
}

#[cfg(test)]
mod tests {
    use shoal_types::spec::Mount;

    use super::*;
    use crate::task::tests::{node, task};

    fn volume_mount(name: &str, target: &str) -> Mount {
        Mount {
            kind: MountKind::Volume {
                name: name.to_owned(),
                no_copy: false,
                labels: [("slot".to_owned(), "{{.Task.Slot}}".to_owned())].into(),
                driver_options: BTreeMap::new(),
            },
            target: target.into(),
            read_only: false,
        }
    }

    fn names(mounts: &[TaskMount]) -> Vec<(&str, &str, bool)> {
        let name = |mount: &TaskMount| match &mount.source {
            MountSource::Volume(volume) => (volume.name.clone(), volume.anonymous),
            _ => (String::new(), false),
        };
        mounts
            .iter()
            .map(|m| (m, name(m)))
            .map(|(m, (name, anonymous))| (&*name.leak(), m.target.to_str().unwrap(), anonymous))
            .collect()
    }

    #[test]
    fn names_and_labels_are_templates_and_outer_mounts_come_first() {
        let mut task = task();
        task.spec.container.mounts = vec![
            volume_mount("in", "/data/in"),
            volume_mount("data-{{.Task.Slot}}", "/data"),
        ];
        let mounts = mounts(&task, &[], &node()).unwrap();
        assert_eq!(
            names(&mounts),
            [("data-3", "/data", false), ("in", "/data/in", false)]
        );
        let MountSource::Volume(first) = &mounts[0].source else {
            panic!("a volume")
        };
        assert_eq!(first.labels["slot"], "3");
    }

    #[test]
    fn volumes_of_the_image_are_anonymous_unless_something_is_mounted_there() {
        let mut task = task();
        task.spec.container.mounts = vec![volume_mount("own", "/data/"), volume_mount("", "/x")];
        let image = ["/data".to_owned(), "/log/".to_owned()];
        let first = mounts(&task, &image, &node()).unwrap();
        let seen = names(&first);
        assert_eq!(seen.len(), 3);
        assert!(seen.iter().any(|(name, target, anonymous)| {
            name.len() == 64 && *target == "/log" && *anonymous
        }));
        assert_eq!(
            first,
            mounts(&task, &image, &node()).unwrap(),
            "always the same"
        );
        let other = Task {
            id: TaskId::from_random([1; 17]),
            ..task.clone()
        };
        assert_ne!(
            first,
            mounts(&other, &image, &node()).unwrap(),
            "of one task only"
        );
    }
}
