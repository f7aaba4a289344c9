//! Compose files: read, checked, laid over each other.
//!
//! The rules are those of Docker's stacks (docker/cli `cli/compose`, schema 3.13), which are stricter and older than the
//! Compose Specification. Every fault names the file, the line and the path of the field.

mod field;
mod interpolate;
mod model;
mod node;
#[cfg(test)]
mod tests;
mod values;
mod yaml;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::{Component, Path, PathBuf},
};

use field::Field;
use node::{Fault, Node};

pub(crate) use field::Count;
pub(crate) use model::{
    CredentialSpec, Deploy, FileObject, HealthCheck, LogDriver, Network, Project, Resources,
    RestartPolicy, Service, UpdateConfig, Volume,
};
pub(crate) use values::{External, FileUse, Mount, Port};

use crate::{
    error::{CliError, Result},
    opts::list,
    output,
};

/// Keys of a service that a stack has no use for.
const IGNORED: [&str; 16] = [
    "build",
    "cgroup_parent",
    "cgroupns_mode",
    "devices",
    "domainname",
    "external_links",
    "ipc",
    "links",
    "mac_address",
    "network_mode",
    "pid",
    "privileged",
    "restart",
    "security_opt",
    "shm_size",
    "userns_mode",
];

const DEPRECATED: [(&str, &str); 2] = [
    (
        "container_name",
        "Setting the container name is not supported.",
    ),
    (
        "expose",
        "Exposing ports is unnecessary - services on the same network can access each other's containers on any port.",
    ),
];

const RESOURCES: &str = "Set resource limits using deploy.resources";

const FORBIDDEN: [(&str, &str); 8] = [
    ("cpu_quota", RESOURCES),
    ("cpu_shares", RESOURCES),
    ("cpuset", RESOURCES),
    ("extends", "Support for `extends` is not implemented yet."),
    ("mem_limit", RESOURCES),
    ("memswap_limit", RESOURCES),
    (
        "volume_driver",
        "Instead of setting the volume driver on the service, define a volume using the top-level `volumes` option and specify the driver there.",
    ),
    (
        "volumes_from",
        "To share a volume between services, define it using the top-level `volumes` option and reference it from each service that shares it using the service-level `volumes` option.",
    ),
];

/// The newest version of the format, and what files that name none have.
const VERSION: &str = "3.13";

/// A project with what its files say that has no effect.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) project: Project,
    ignored: BTreeSet<&'static str>,
    deprecated: BTreeMap<&'static str, &'static str>,
}

impl Loaded {
    /// Tells the user what has no effect.
    pub(crate) fn warn(&self) {
        if !self.ignored.is_empty() {
            let keys: Vec<&str> = self.ignored.iter().copied().collect();
            output::note(format!(
                "Ignoring unsupported options: {}\n",
                keys.join(", ")
            ));
        }
        if !self.deprecated.is_empty() {
            let lines: Vec<String> = self
                .deprecated
                .iter()
                .map(|(key, why)| format!("{key}: {why}"))
                .collect();
            output::note(format!(
                "Ignoring deprecated options:\n\n{}\n",
                lines.join("\n\n")
            ));
        }
    }

    /// The project as one file.
    pub(crate) fn to_yaml(&self) -> String {
        let node = self.project.write();
        let services = ("services".to_owned(), self.project.services.write());
        let entries = node.entries().iter();
        let mut entries: Vec<(String, Node)> = entries
            .map(|entry| (entry.key.clone(), entry.value.clone()))
            .collect();
        if self.project.services.0.is_empty() {
            entries.insert(1, services);
        }
        yaml::document(&Node::map(entries))
    }
}

/// Reads files, `-` for standard input, and lays each over those before it.
pub(crate) fn load(files: &[String], interpolates: bool) -> Result<Loaded> {
    let lookup = |name: &str| std::env::var(name).ok();
    let first = files
        .first()
        .ok_or_else(|| CliError::message("Specify a Compose file (with --compose-file)"))?;
    let here = std::env::current_dir().map_err(CliError::file("working directory"))?;
    let directory = match first.as_str() {
        "-" => here,
        path => absolute(&here, path)
            .parent()
            .map(Path::to_owned)
            .unwrap_or(here),
    };
    let mut loaded: Option<Loaded> = None;
    for name in files {
        let file = File {
            name,
            directory: &directory,
            lookup: &lookup,
        };
        let next = file.load(&read(name)?, interpolates)?;
        let Some(base) = &mut loaded else {
            loaded = Some(next);
            continue;
        };
        let (old, new) = (&base.project.version, &next.project.version);
        if old != new {
            return Err(file.error(format!(
                "version mismatched between two composefiles : {old} and {new}"
            )));
        }
        // Extensions of the whole are those of the first file.
        let extensions = base.project.extensions.clone();
        base.project.merge(next.project);
        base.project.extensions = extensions;
        base.ignored.extend(next.ignored);
        base.deprecated.extend(next.deprecated);
    }
    loaded.ok_or_else(|| CliError::message("no files specified"))
}

fn read(name: &str) -> Result<String> {
    if name == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(CliError::file("standard input"))?;
        return Ok(text);
    }
    std::fs::read_to_string(name).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            CliError::message(format!("open {name}: no such file or directory"))
        }
        _ => CliError::file(name)(error),
    })
}

/// Where a file is, and what it may refer to.
struct File<'a> {
    name: &'a str,
    /// Paths in files are relative to the directory of the first one.
    directory: &'a Path,
    lookup: interpolate::Lookup<'a>,
}

impl File<'_> {
    fn error(&self, message: impl std::fmt::Display) -> CliError {
        CliError::message(format!("{}: {message}", self.name))
    }

    fn syntax(&self, error: &serde_saphyr::Error) -> CliError {
        let line = error.location().map_or(0, |location| location.line());
        let error = error.without_snippet();
        let said = match error {
            serde_saphyr::Error::DuplicateMappingKey { key, .. } => format!(
                "mapping key {:?} already defined",
                key.as_deref().unwrap_or_default()
            ),
            error => error.render_with_formatter(&serde_saphyr::UserMessageFormatter),
        };
        CliError::message(format!("{}:{line}: {said}", self.name))
    }

    fn fault(&self, fault: Fault) -> CliError {
        CliError::message(format!("{}:{}: {fault}", self.name, fault.line))
    }

    fn load(&self, text: &str, interpolates: bool) -> Result<Loaded> {
        let mut root = Node::parse(text).map_err(|error| self.syntax(&error))?;
        if root.as_map("").is_err() {
            return Err(self.error("top-level object must be a mapping"));
        }
        let version = version(&root).map_err(|message| self.error(message))?;
        self.refuse_forbidden(&root)?;
        let mut ignored = BTreeSet::new();
        let mut deprecated = BTreeMap::new();
        for (key, _) in service_keys(&root) {
            ignored.extend(IGNORED.iter().copied().find(|known| *known == key));
            deprecated.extend(DEPRECATED.iter().copied().find(|(known, _)| *known == key));
        }
        if interpolates {
            interpolate::interpolate(&mut root, self.lookup).map_err(|fault| self.fault(fault))?;
        }
        let mut project = Project::read(&root).map_err(|fault| self.fault(fault))?;
        project.version = version;
        self.resolve(&mut project)?;
        Ok(Loaded {
            project,
            ignored,
            deprecated,
        })
    }

    fn refuse_forbidden(&self, root: &Node) -> Result {
        let mut found: BTreeMap<&str, String> = BTreeMap::new();
        for (key, line) in service_keys(root) {
            if let Some((known, why)) = FORBIDDEN.iter().find(|(known, _)| *known == key) {
                let said = format!("{known}: {why} ({}:{line})", self.name);
                found.entry(known).or_insert(said);
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        let found: Vec<String> = found.into_values().collect();
        Err(CliError::message(format!(
            "compose file contains unsupported options:\n\n{}\n",
            found.join("\n\n")
        )))
    }

    /// Completes what files leave to their surroundings: variables, paths, names of what is external.
    fn resolve(&self, project: &mut Project) -> Result {
        for (name, service) in &mut project.services.0 {
            let failed = |why: String| self.error(format!("services.{name}: {why}"));
            let variables = self.environment(service).map_err(failed)?;
            service.environment.0 = variables;
            for mount in &mut service.volumes.0 {
                self.resolve_mount(mount).map_err(failed)?;
            }
        }
        for (name, network) in &mut project.networks.0 {
            let external = (&mut network.name, &mut network.external);
            self.external("network", name, external)?;
        }
        for (name, volume) in &mut project.volumes.0 {
            self.check_volume(name, volume)?;
            let external = (&mut volume.name, &mut volume.external);
            self.external("volume", name, external)?;
        }
        for (kind, objects) in [
            ("secret", &mut project.secrets),
            ("config", &mut project.configs),
        ] {
            for (name, object) in &mut objects.0 {
                let external = (&mut object.name, &mut object.external);
                self.external(kind, name, external)?;
                if object.external.external {
                    continue;
                }
                if object.driver.is_empty() {
                    let path = absolute(self.directory, &object.file);
                    object.file = path.to_string_lossy().into_owned();
                } else if !object.file.is_empty() {
                    return Err(self.error(format!(
                        "{kind} {name}: {kind}.driver and {kind}.file conflict; only use {kind}.driver"
                    )));
                }
            }
        }
        Ok(())
    }

    /// The service's variables, after those of its files. The client's count where none is given.
    fn environment(&self, service: &Service) -> Result<BTreeMap<String, Option<String>>, String> {
        let mut variables = BTreeMap::new();
        for file in &service.env_file.0 {
            let lines = list::env_file(&absolute(self.directory, file))
                .map_err(|error| error.to_string())?;
            for line in lines {
                let (key, value) = line.split_once('=').unwrap_or((&line, ""));
                variables.insert(key.to_owned(), Some(value.to_owned()));
            }
        }
        variables.extend(service.environment.0.clone());
        for (key, value) in &mut variables {
            if value.as_ref().is_none_or(String::is_empty)
                && let Some(own) = (self.lookup)(key)
            {
                *value = Some(own);
            }
        }
        Ok(variables)
    }

    fn resolve_mount(&self, mount: &mut Mount) -> Result<(), String> {
        if mount.kind != "bind" {
            return Ok(());
        }
        if mount.source.is_empty() {
            return Err(
                "invalid mount config for type \"bind\": field Source must not be empty".to_owned(),
            );
        }
        if let Some(rest) = mount.source.strip_prefix('~') {
            match (self.lookup)("HOME") {
                Some(home) => mount.source = format!("{home}{rest}"),
                None => {
                    output::note("WARNING: cannot expand '~', because the environment lacks HOME");
                }
            }
        }
        // A drive of Windows is as good as a root.
        let is_drive = mount.source.chars().nth(1) == Some(':');
        if !mount.source.starts_with(['/', '\\']) && !is_drive {
            let path = absolute(self.directory, &mount.source);
            mount.source = path.to_string_lossy().into_owned();
        }
        Ok(())
    }

    fn check_volume(&self, name: &str, volume: &Volume) -> Result {
        let given = [
            ("driver", !volume.driver.is_empty()),
            ("driver_opts", !volume.driver_opts.0.is_empty()),
            ("labels", !volume.labels.0.is_empty()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((key, _)) if volume.external.external => Err(self.error(format!(
                "conflicting parameters \"external\" and {key:?} specified for volume {name:?}"
            ))),
            _ => Ok(()),
        }
    }

    /// Gives what is external the name that it has outside.
    fn external(
        &self,
        kind: &str,
        name: &str,
        (own, external): (&mut String, &mut External),
    ) -> Result {
        if !external.external {
            return Ok(());
        }
        let older = std::mem::take(&mut external.name);
        if older.is_empty() {
            if own.is_empty() {
                name.clone_into(own);
            }
            return Ok(());
        }
        if !own.is_empty() {
            return Err(self.error(format!(
                "{kind} {name}: {kind}.external.name and {kind}.name conflict; only use {kind}.name"
            )));
        }
        output::note(format!(
            "WARNING: {kind} {name}: {kind}.external.name is deprecated in favor of {kind}.name"
        ));
        *own = older;
        Ok(())
    }
}

/// Every key of every service, and its line.
fn service_keys(root: &Node) -> impl Iterator<Item = (&str, usize)> {
    let services = root.get("services").map(Node::entries).unwrap_or_default();
    services.iter().flat_map(|service| {
        let keys = service.value.entries().iter();
        keys.map(|entry| (entry.key.as_str(), entry.line))
    })
}

/// The version that a file says to have; `3` is the newest.
fn version(root: &Node) -> Result<String, String> {
    let Some(node) = root.get("version") else {
        return Ok(VERSION.to_owned());
    };
    let version = node.printed().unwrap_or_default();
    if matches!(version.as_str(), "" | "3") {
        return Ok(VERSION.to_owned());
    }
    let minor = version.strip_prefix("3.").map(str::parse::<u8>);
    match minor {
        Some(Ok(0..=13)) => Ok(version),
        _ => Err(format!("unsupported Compose file version: {version}")),
    }
}

/// `path` below `directory`, without `.` and `..`.
fn absolute(directory: &Path, path: &str) -> PathBuf {
    let mut whole = PathBuf::new();
    for part in directory.join(path).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(whole.pop()),
            part => whole.push(part),
        }
    }
    whole
}
