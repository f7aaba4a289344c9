//! Docker's container spec into the stored one.

use std::{collections::BTreeSet, time::Duration};

use shoal_types::spec::{
    ContainerSpec, DnsConfig, FileReference, HealthCheck, Isolation, Privileges, SeccompMode,
    Ulimit,
};

use super::{Result, SpecError, duration, mount::mount, only_empty};
use crate::wire;

const FIELD: &str = "TaskTemplate.ContainerSpec";

/// Docker's own minimum for the times of a health check.
const MIN_HEALTH: Duration = Duration::from_millis(1);

pub(super) fn container_spec(
    spec: wire::ContainerSpec,
    registry_auth: Option<String>,
) -> Result<ContainerSpec> {
    image_reference(&spec.image)?;
    let mounts = spec.mounts.into_iter().enumerate();
    let mounts: Vec<_> = mounts.map(|(n, m)| mount(n, m)).collect::<Result<_>>()?;
    let mut targets = BTreeSet::new();
    for (n, mount) in mounts.iter().enumerate() {
        if !targets.insert(&mount.target) {
            let message = format!(
                "ContainerSpec: duplicate mount point: {}",
                mount.target.display()
            );
            return Err(SpecError::invalid(
                format!("{FIELD}.Mounts[{n}].Target"),
                message,
            ));
        }
    }
    let dns = spec.dns_config.unwrap_or_default();
    let grace = spec.stop_grace_period.map(|grace| {
        let message = "ContainerSpec: stop grace period cannot be negative";
        duration(grace, &format!("{FIELD}.StopGracePeriod"), message)
    });
    Ok(ContainerSpec {
        image: spec.image,
        labels: spec.labels,
        command: spec.command,
        args: spec.args,
        hostname: spec.hostname,
        env: environment(spec.env)?,
        dir: spec.dir,
        user: spec.user,
        groups: spec.groups,
        privileges: privileges(spec.privileges.unwrap_or_default())?,
        init: spec.init,
        stop_signal: spec.stop_signal,
        stop_grace: grace.unwrap_or(Ok(Duration::from_secs(10)))?,
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        read_only: spec.read_only,
        mounts,
        health: spec.healthcheck.map(health_check).transpose()?,
        hosts: spec.hosts,
        dns: DnsConfig {
            nameservers: dns.nameservers,
            search: dns.search,
            options: dns.options,
        },
        secrets: file_references(spec.secrets, "Secrets", |r| (&r.secret_id, &r.secret_name))?,
        configs: file_references(spec.configs, "Configs", |r| (&r.config_id, &r.config_name))?,
        isolation: isolation(&spec.isolation)?,
        sysctls: spec.sysctls,
        cap_add: spec.capability_add,
        cap_drop: spec.capability_drop,
        ulimits: spec.ulimits.into_iter().map(ulimit).collect(),
        oom_score_adj: oom_score(spec.oom_score_adj)?,
        registry_auth: registry_auth.filter(|auth| !auth.is_empty()),
    })
}

/// The grammar of `distribution/reference`, as far as the text alone can break it.
pub(crate) fn image_reference(image: &str) -> Result<()> {
    let field = format!("{FIELD}.Image");
    if image.is_empty() {
        return Err(SpecError::invalid(
            field,
            "ContainerSpec: image reference must be provided",
        ));
    }
    let invalid = || {
        let message = format!("ContainerSpec: \"{image}\" is not a valid repository/tag");
        SpecError::invalid(&field, message)
    };
    let (name, digest) = match image.split_once('@') {
        None => (image, None),
        Some((name, digest)) => (name, Some(digest)),
    };
    let hex = |digits: &str| {
        digits
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    if let Some(digest) = digest {
        let (algorithm, digits) = digest.split_once(':').ok_or_else(invalid)?;
        let length = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return Err(invalid()),
        };
        if digits.len() != length || !hex(digits) {
            return Err(invalid());
        }
    }
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let (path, tag) = match name[last..].split_once(':') {
        None => (name, None),
        Some((end, tag)) => (&name[..last + end.len()], Some(tag)),
    };
    let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    if let Some(tag) = tag {
        let valid = tag.as_bytes().first().is_some_and(word)
            && tag.len() <= 128
            && tag.bytes().all(|b| word(&b) || b".-".contains(&b));
        if !valid {
            return Err(invalid());
        }
    }
    let mut components = path.split('/').peekable();
    let first = path.split('/').next().unwrap_or_default();
    let is_host = path.contains('/')
        && (first.contains(['.', ':']) || first == "localhost" || first != first.to_lowercase());
    if is_host {
        let host = components.next().unwrap_or_default();
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b".-:[]".contains(&b);
        if host.is_empty() || !host.bytes().all(allowed) {
            return Err(invalid());
        }
    }
    // A component is lower-case words joined by one of `.`, `_`, `__` or dashes.
    let component = |text: &str| {
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
        let bytes = text.as_bytes();
        edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| edge(Some(b)) || b"._-".contains(b))
            && !["..", "___", "._", "_.", "-.", ".-", "-_", "_-"]
                .iter()
                .any(|s| text.contains(s))
    };
    // 64 hexadecimal digits would be taken for an id.
    let ambiguous = path.len() == 64 && hex(path);
    if components.peek().is_some() && components.all(component) && !ambiguous && path.len() <= 255 {
        Ok(())
    } else {
        Err(invalid())
    }
}

fn environment(env: Vec<String>) -> Result<Vec<String>> {
    match env
        .iter()
        .position(|entry| entry.is_empty() || entry.starts_with('='))
    {
        None => Ok(env),
        Some(n) => Err(SpecError::invalid(
            format!("{FIELD}.Env[{n}]"),
            format!("invalid environment variable: {:?}", env[n]),
        )),
    }
}

fn privileges(privileges: wire::Privileges) -> Result<Privileges> {
    let field = |name: &str| format!("{FIELD}.Privileges.{name}");
    let windows = "credential specs are for Windows containers";
    let credentials = privileges.credential_spec.unwrap_or_default();
    only_empty(&credentials, &field("CredentialSpec"), windows)?;
    let selinux = privileges.selinux_context.unwrap_or_default();
    only_empty(
        &selinux,
        &field("SELinuxContext"),
        "SELinux labels are not applied",
    )?;
    let seccomp = privileges.seccomp.unwrap_or_default();
    if !seccomp.profile.is_empty() && seccomp.mode != "custom" {
        return Err(SpecError::invalid(
            field("Seccomp.Profile"),
            "a seccomp profile must be used with the mode \"custom\"",
        ));
    }
    Ok(Privileges {
        no_new_privileges: privileges.no_new_privileges,
        seccomp: match seccomp.mode.as_str() {
            "" | "default" => SeccompMode::Default,
            "unconfined" => SeccompMode::Unconfined,
            "custom" if !seccomp.profile.is_empty() => SeccompMode::Custom(seccomp.profile),
            "custom" => {
                let message = "a custom seccomp profile must be provided";
                return Err(SpecError::invalid(field("Seccomp.Profile"), message));
            }
            other => {
                let message = format!("invalid seccomp mode {other:?}");
                return Err(SpecError::invalid(field("Seccomp.Mode"), message));
            }
        },
        apparmor_disabled: match privileges.app_armor.unwrap_or_default().mode.as_str() {
            "" => false,
            "disabled" => true,
            "default" => {
                let message = "containers have no AppArmor profile; leave it out";
                return Err(SpecError::unsupported(field("AppArmor.Mode"), message));
            }
            other => {
                let message = format!("invalid AppArmor mode {other:?}");
                return Err(SpecError::invalid(field("AppArmor.Mode"), message));
            }
        },
    })
}

fn health_check(health: wire::HealthConfig) -> Result<HealthCheck> {
    let time = |nanos: i64, name: &str| {
        let field = format!("{FIELD}.Healthcheck.{name}");
        let message = format!("ContainerSpec: {name} in HealthConfig cannot be less than 1ms");
        let time = duration(nanos, &field, &message)?;
        if time.is_zero() || time >= MIN_HEALTH {
            Ok(time)
        } else {
            Err(SpecError::invalid(field, message))
        }
    };
    Ok(HealthCheck {
        interval: time(health.interval, "Interval")?,
        timeout: time(health.timeout, "Timeout")?,
        start_period: time(health.start_period, "StartPeriod")?,
        start_interval: time(health.start_interval, "StartInterval")?,
        retries: u32::try_from(health.retries).map_err(|_| {
            SpecError::invalid(
                format!("{FIELD}.Healthcheck.Retries"),
                "ContainerSpec: Retries in HealthConfig cannot be negative",
            )
        })?,
        test: health.test,
    })
}

fn file_references<Id: std::str::FromStr>(
    references: Vec<wire::FileReference>,
    kind: &'static str,
    of: impl Fn(&wire::FileReference) -> (&String, &String),
) -> Result<Vec<FileReference<Id>>> {
    let singular = if kind == "Secrets" {
        "secret"
    } else {
        "config"
    };
    let mut targets = BTreeSet::new();
    let convert = |(n, reference): (usize, wire::FileReference)| {
        let field = format!("{FIELD}.{kind}[{n}]");
        let runtime = "only files can be made of secrets and configs";
        only_empty(&reference.runtime, &format!("{field}.Runtime"), runtime)?;
        let (id, name) = of(&reference);
        if id.is_empty() || name.is_empty() {
            let message = format!("malformed {singular} reference: it needs an id and a name");
            return Err(SpecError::invalid(field, message));
        }
        let id = id.parse().map_err(|_| SpecError::NotFound {
            field: field.clone(),
            kind: singular,
            reference: id.clone(),
        })?;
        let name = name.clone();
        let file = reference.file.ok_or_else(|| {
            let message = format!("malformed file {singular} reference, no target file provided");
            SpecError::invalid(format!("{field}.File"), message)
        })?;
        if file.name.is_empty() {
            let message = format!("malformed file {singular} reference, no target file provided");
            return Err(SpecError::invalid(format!("{field}.File.Name"), message));
        }
        if !targets.insert(file.name.clone()) {
            let message = format!(
                "{singular} references must have different targets: {}",
                file.name
            );
            return Err(SpecError::invalid(format!("{field}.File.Name"), message));
        }
        Ok(FileReference {
            id,
            name,
            target: file.name,
            uid: file.uid,
            gid: file.gid,
            mode: file.mode,
        })
    };
    references.into_iter().enumerate().map(convert).collect()
}

fn isolation(text: &str) -> Result<Isolation> {
    match text {
        "" | "default" => Ok(Isolation::Default),
        other => Err(SpecError::unsupported(
            format!("{FIELD}.Isolation"),
            format!("{other} is for Windows containers"),
        )),
    }
}

fn ulimit(limit: wire::Ulimit) -> Ulimit {
    Ulimit {
        name: limit.name,
        soft: limit.soft,
        hard: limit.hard,
    }
}

fn oom_score(value: i64) -> Result<i32> {
    let score = i32::try_from(value)
        .ok()
        .filter(|score| (-1000..=1000).contains(score));
    score.ok_or_else(|| {
        let message = format!("invalid value {value}, range for oom score adj is [-1000, 1000]");
        SpecError::invalid(format!("{FIELD}.OomScoreAdj"), message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_references_follow_dockers_grammar() {
        let digest = "a".repeat(64);
        for good in [
            "nginx",
            "nginx:1.27",
            "a/b/c:T_g-1.0",
            "localhost:5000/x",
            "registry.example.com:443/a-b/c__d:x",
            "Host/x",
            &format!("nginx:1.27@sha256:{digest}"),
            &format!("n@sha256:{digest}"),
        ] {
            assert_eq!(image_reference(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "Nginx",
            ":x",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a: b",
            "-a",
            "a..b",
            "a@sha256:1",
            "a@x",
            "a b",
            &digest,
            "a:b:c",
        ] {
            assert!(image_reference(bad).is_err(), "{bad}");
        }
    }
}
