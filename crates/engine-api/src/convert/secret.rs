//! Secrets and configs, in both directions.

use shoal_types::object::{Config, Secret};

use super::{Result, SpecError, created, file_name, only_empty, updated, version};
use crate::{engine::NewFile, wire};

/// Swarm's limits: a secret is smaller than the first, a config no larger than the second, in bytes.
const SECRET_LIMIT: usize = 500 << 10;
const CONFIG_LIMIT: usize = 1000 << 10;

pub(crate) fn secret_spec(spec: wire::SecretSpec) -> Result<NewFile> {
    file_name(&spec.name, "Name")?;
    only_empty(&spec.driver, "Driver", "there are no secret drivers")?;
    only_empty(&spec.templating, "Templating", "secrets are not templates")?;
    if spec.data.is_empty() || spec.data.len() >= SECRET_LIMIT {
        return Err(SpecError::invalid(
            "Data",
            format!("secret data must be larger than 0 and less than {SECRET_LIMIT} bytes"),
        ));
    }
    Ok(NewFile {
        name: spec.name,
        labels: spec.labels,
        data: spec.data,
    })
}

pub(crate) fn config_spec(spec: wire::ConfigSpec) -> Result<NewFile> {
    file_name(&spec.name, "Name")?;
    only_empty(&spec.templating, "Templating", "configs are not templates")?;
    if spec.data.len() > CONFIG_LIMIT {
        return Err(SpecError::invalid(
            "Data",
            format!("config data must be at most {CONFIG_LIMIT} bytes"),
        ));
    }
    Ok(NewFile {
        name: spec.name,
        labels: spec.labels,
        data: spec.data,
    })
}

/// Without its data.
pub(crate) fn secret(secret: &Secret) -> wire::Secret {
    wire::Secret {
        id: secret.id.to_string(),
        version: version(&secret.meta),
        created_at: created(&secret.meta),
        updated_at: updated(&secret.meta),
        spec: wire::SecretSpec {
            name: secret.name.clone(),
            labels: secret.labels.clone(),
            ..wire::SecretSpec::default()
        },
    }
}

pub(crate) fn config(config: &Config) -> wire::Config {
    wire::Config {
        id: config.id.to_string(),
        version: version(&config.meta),
        created_at: created(&config.meta),
        updated_at: updated(&config.meta),
        spec: wire::ConfigSpec {
            name: config.name.clone(),
            labels: config.labels.clone(),
            data: config.data.clone(),
            templating: None,
        },
    }
}
