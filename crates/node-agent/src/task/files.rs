//! Secrets and configs of a task as the files its container gets.

use shoal_runtime::ContainerFile;
use shoal_types::{object::Task, spec::FileReference, wire::Assignments};

/// Where secrets with a relative target appear, as in Docker.
const SECRETS: &str = "/run/secrets";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FilesError {
    #[error("{kind} {name} ({id}) not found: it is not, or no longer, in the cluster")]
    Missing {
        kind: &'static str,
        name: String,
        id: String,
    },
    #[error("invalid {what} {value:?} of {kind} {name}: it must be a number from 0 to 4294967294")]
    Owner {
        what: &'static str,
        value: String,
        kind: &'static str,
        name: String,
    },
}

/// The files of `task`, with their content from `set`.
pub(crate) fn files(task: &Task, set: &Assignments) -> Result<Vec<ContainerFile>, FilesError> {
    let spec = &task.spec.container;
    let mut files = Vec::with_capacity(spec.secrets.len() + spec.configs.len());
    for reference in &spec.secrets {
        let found = set.secrets.iter().find(|secret| secret.id == reference.id);
        let data = found.map(|secret| &secret.data);
        files.push(file("secret", reference, data, SECRETS)?);
    }
    for reference in &spec.configs {
        let found = set.configs.iter().find(|config| config.id == reference.id);
        let data = found.map(|config| &config.data);
        files.push(file("config", reference, data, "")?);
    }
    Ok(files)
}

/// Where the file of a reference appears; `base` is that of relative targets.
fn target(target: &str, base: &str) -> String {
    if target.starts_with('/') {
        target.to_owned()
    } else {
        format!("{base}/{target}")
    }
}

/// The paths of the task's files.
pub(crate) fn targets(task: &Task) -> impl Iterator<Item = String> {
    let spec = &task.spec.container;
    let secrets = spec
        .secrets
        .iter()
        .map(|file| target(&file.target, SECRETS));
    let configs = spec.configs.iter().map(|file| target(&file.target, ""));
    secrets.chain(configs)
}

fn file<Id: ToString>(
    kind: &'static str,
    reference: &FileReference<Id>,
    data: Option<&Vec<u8>>,
    base: &str,
) -> Result<ContainerFile, FilesError> {
    let owner = |what, value: &str| match value {
        "" => Ok(0),
        // The largest number is no id (chown(2)).
        number => number
            .parse()
            .ok()
            .filter(|id| *id != u32::MAX)
            .ok_or_else(|| FilesError::Owner {
                what,
                value: value.to_owned(),
                kind,
                name: reference.name.clone(),
            }),
    };
    Ok(ContainerFile {
        target: target(&reference.target, base),
        uid: owner("uid", &reference.uid)?,
        gid: owner("gid", &reference.gid)?,
        mode: reference.mode & 0o7777,
        data: data.cloned().ok_or_else(|| FilesError::Missing {
            kind,
            name: reference.name.clone(),
            id: reference.id.to_string(),
        })?,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shoal_types::{
        ConfigId, SecretId,
        object::{Config, Meta, Secret},
    };

    use super::*;
    use crate::task::tests::task;

    fn reference<Id>(id: Id, name: &str, target: &str) -> FileReference<Id> {
        FileReference {
            id,
            name: name.to_owned(),
            target: target.to_owned(),
            uid: "1000".to_owned(),
            gid: String::new(),
            mode: 0o440,
        }
    }

    fn set() -> Assignments {
        let secret = Secret {
            id: SecretId::from_random([1; 17]),
            meta: Meta::default(),
            name: "key".to_owned(),
            labels: Default::default(),
            data: b"s".to_vec(),
        };
        let config = Config {
            id: ConfigId::from_random([2; 17]),
            meta: Meta::default(),
            name: "app".to_owned(),
            labels: Default::default(),
            data: b"c".to_vec(),
        };
        Assignments {
            secrets: vec![Arc::new(secret)],
            configs: vec![Arc::new(config)],
            ..Assignments::default()
        }
    }

    fn with_files() -> Task {
        let mut task = task();
        let (secret, config) = (
            SecretId::from_random([1; 17]),
            ConfigId::from_random([2; 17]),
        );
        task.spec.container.secrets = vec![
            reference(secret, "key", "key"),
            reference(secret, "key", "/etc/key"),
        ];
        task.spec.container.configs = vec![reference(config, "app", "app.conf")];
        task
    }

    #[test]
    fn relative_targets_are_dockers() {
        let files = files(&with_files(), &set()).unwrap();
        let seen: Vec<_> = files
            .iter()
            .map(|f| (f.target.as_str(), f.uid, f.gid))
            .collect();
        assert_eq!(
            seen,
            [
                ("/run/secrets/key", 1000, 0),
                ("/etc/key", 1000, 0),
                ("/app.conf", 1000, 0)
            ]
        );
        assert_eq!(
            (files[0].mode, files[2].data.as_slice()),
            (0o440, b"c".as_slice())
        );
        let paths: Vec<_> = targets(&with_files()).collect();
        assert_eq!(paths, ["/run/secrets/key", "/etc/key", "/app.conf"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = files(&with_files(), &Assignments::default()).unwrap_err();
        assert!(
            matches!(&error, FilesError::Missing { kind: "secret", name, .. } if name == "key")
        );
    }

    #[test]
    fn owners_are_numbers() {
        for (value, good) in [
            ("", true),
            ("0", true),
            ("www", false),
            ("-1", false),
            ("4294967295", false),
        ] {
            let mut task = with_files();
            value.clone_into(&mut task.spec.container.secrets[0].gid);
            assert_eq!(files(&task, &set()).is_ok(), good, "{value:?}");
        }
    }
}
