//! Names into ids: what a service spec carries are the ids of networks, secrets and configs, and digests of images.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    api::{Api, Request},
    error::{CliError, Result},
    json::{put, text},
    opts::{FileReference, Filters, reference::Reference},
};

/// The id of a cluster network.
pub(super) async fn network(api: &Api, name: &str) -> Result<String> {
    let request = Request::get(&["networks", name]).query("scope", "swarm");
    let network = api.json(request).await?;
    Ok(text(&network, "/Id").to_owned())
}

/// Secrets and configs are referred to in the same way, under other names.
#[derive(Debug, Clone, Copy)]
pub(crate) enum References {
    Secrets,
    Configs,
}

impl References {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Secrets => "secrets",
            Self::Configs => "configs",
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Secrets => "secret",
            Self::Configs => "config",
        }
    }

    fn keys(self) -> (&'static str, &'static str) {
        match self {
            Self::Secrets => ("SecretID", "SecretName"),
            Self::Configs => ("ConfigID", "ConfigName"),
        }
    }
}

/// The API's references to secrets or configs as files.
pub(crate) async fn references(
    api: &Api,
    kind: References,
    files: &[FileReference],
) -> Result<Vec<Value>> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let mut targets = BTreeSet::new();
    for file in files {
        if !targets.insert(&file.target) {
            return Err(CliError::message(format!(
                "duplicate {} target for {} not allowed",
                kind.word(),
                file.source
            )));
        }
    }
    let found = named(api, kind, files.iter().map(|file| file.source.as_str())).await?;
    files
        .iter()
        .map(|file| {
            let (id_key, name_key) = kind.keys();
            let mut reference = json!({
                "File": {"Name": file.target, "UID": file.uid, "GID": file.gid, "Mode": file.mode},
            });
            reference[id_key] = id_of(&found, kind, &file.source)?.into();
            reference[name_key] = file.source.as_str().into();
            Ok(reference)
        })
        .collect()
}

/// A config that is no file: the one that a credential spec names.
pub(crate) async fn runtime_config(api: &Api, name: &str) -> Result<Value> {
    let found = named(api, References::Configs, [name]).await?;
    let id = id_of(&found, References::Configs, name)?;
    Ok(json!({"Runtime": {}, "ConfigID": id, "ConfigName": name}))
}

async fn named<'a>(
    api: &Api,
    kind: References,
    names: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<Value>> {
    let filters = names.into_iter().fold(Filters::default(), |filters, name| {
        filters.with("name", name)
    });
    api.list(Request::get(&[kind.path()]).filters(&filters))
        .await
}

fn id_of(found: &[Value], kind: References, name: &str) -> Result<String> {
    found
        .iter()
        .find(|item| text(item, "/Spec/Name") == name)
        .map(|item| text(item, "/ID").to_owned())
        .ok_or_else(|| CliError::message(format!("{} not found: {name}", kind.word())))
}

/// Gives the spec's image its tag and, with `ask_registry`, its digest and platforms. Answers with a warning when
/// the registry could not be asked.
pub(crate) async fn pin_image(
    api: &Api,
    spec: &mut Value,
    ask_registry: bool,
    auth: Option<&str>,
) -> Option<String> {
    let image = text(spec, "/TaskTemplate/ContainerSpec/Image").to_owned();
    let tagged = Reference::parse(&image).map(Reference::with_default_tag);
    let image = tagged.as_ref().map_or(image, Reference::to_string);
    spec["TaskTemplate"]["ContainerSpec"]["Image"] = image.as_str().into();
    if !ask_registry {
        return None;
    }
    let request = Request::get(&["distribution", &image, "json"]).registry_auth(auth);
    let Ok(distribution) = api.json(request).await else {
        return Some(format!(
            "image {image} could not be accessed on a registry to record\nits digest. Each node will access {image} independently,\npossibly leading to different nodes running different\nversions of the image.\n"
        ));
    };
    let digest = text(&distribution, "/Descriptor/digest");
    if let Some(reference) = tagged
        && !digest.is_empty()
    {
        let pinned = reference.with_digest(digest).to_string();
        spec["TaskTemplate"]["ContainerSpec"]["Image"] = pinned.into();
    }
    let platforms: Vec<Value> = distribution["Platforms"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|platform| {
            let architecture = text(platform, "/architecture");
            // Manifests say "arm" where nodes say "armv7l", so that part is left open (moby/swarmkit#2294).
            let architecture = if architecture.eq_ignore_ascii_case("arm") {
                ""
            } else {
                architecture
            };
            let mut wanted = serde_json::Map::new();
            put(&mut wanted, "Architecture", architecture);
            put(&mut wanted, "OS", text(platform, "/os"));
            Value::Object(wanted)
        })
        .collect();
    if !platforms.is_empty()
        && let Some(task) = spec["TaskTemplate"].as_object_mut()
    {
        crate::json::object(task, "Placement").insert("Platforms".into(), platforms.into());
    }
    None
}
