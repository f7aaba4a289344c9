//! `inspect` of any kind of object: the daemon's JSON, or a template over it.

use serde_json::Value;

use crate::{
    api::{Api, Request},
    error::{CliError, Result},
    json::text,
    output::{self, indent},
    template::{Scope, Template},
};

/// Prints the objects that exist, then fails for those that do not.
pub(crate) async fn print(
    api: &Api,
    names: &[String],
    format: &str,
    request: impl Fn(&str) -> Request,
) -> Result {
    let mut documents = Vec::new();
    let mut errors = Vec::new();
    for name in names {
        match api.bytes(request(name)).await {
            Ok(bytes) => documents.push(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error @ CliError::Refused { .. }) => errors.push(error),
            Err(error) => return Err(error),
        }
    }
    show(&documents, format)?;
    CliError::all(errors)
}

/// Prints JSON documents: indented in an array, one a line for `json`, or each through a template.
pub(crate) fn show(documents: &[String], format: &str) -> Result {
    match format {
        "" => output::write(indent::array(documents)),
        "json" => {
            let items: Vec<&str> = documents.iter().map(|document| document.trim()).collect();
            output::line(format!("[{}]", items.join(",")))
        }
        format => {
            let template = parse(format)?;
            for document in documents {
                let value: Value = serde_json::from_str(document).map_err(|error| {
                    CliError::message(format!("the daemon's answer is not JSON: {error}"))
                })?;
                output::line(template.execute(&value, Scope::default())?)?;
            }
            Ok(())
        }
    }
}

/// A template as the user wrote it, with `\t` and `\n` in their short forms.
pub(crate) fn parse(format: &str) -> Result<Template> {
    Ok(Template::parse(
        &format.replace("\\t", "\t").replace("\\n", "\n"),
    )?)
}

/// Kinds of objects in the order in which `inspect` looks for a name.
const KINDS: [(&str, &str, &str, bool); 9] = [
    ("container", "containers", "json", false),
    ("image", "images", "json", false),
    ("network", "networks", "", false),
    ("volume", "volumes", "", false),
    ("service", "services", "", true),
    ("task", "tasks", "", true),
    ("node", "nodes", "", true),
    ("secret", "secrets", "", true),
    ("config", "configs", "", true),
];

/// `shoal inspect`: any object by its name.
pub(crate) async fn any(
    api: &Api,
    names: &[String],
    format: &str,
    kind: &str,
    size: bool,
) -> Result {
    if !kind.is_empty() && !KINDS.iter().any(|(known, ..)| *known == kind) {
        return Err(CliError::message(format!(
            "{kind:?} is not a valid value for --type"
        )));
    }
    let mut cluster = None;
    let mut documents = Vec::new();
    let mut errors = Vec::new();
    for name in names {
        match find(api, name, kind, size, &mut cluster).await? {
            Some(document) => documents.push(document),
            None => errors.push(CliError::message(if kind.is_empty() {
                format!("error: no such object: {name}")
            } else {
                format!("error: no such {kind}: {name}")
            })),
        }
    }
    show(&documents, format)?;
    CliError::all(errors)
}

/// `cluster`: whether the daemon answers for the cluster, asked once and only when it matters.
async fn find(
    api: &Api,
    name: &str,
    kind: &str,
    size: bool,
    cluster: &mut Option<bool>,
) -> Result<Option<String>> {
    for (known, path, tail, of_cluster) in KINDS {
        if !kind.is_empty() && kind != known {
            continue;
        }
        if of_cluster {
            let available = if let Some(available) = *cluster {
                available
            } else {
                let info = api.json(Request::get(&["info"])).await?;
                *cluster.insert(info["Swarm"]["ControlAvailable"] == true)
            };
            if !available {
                continue;
            }
        }
        let segments = [path, name, tail];
        let segments = if tail.is_empty() {
            &segments[..2]
        } else {
            &segments[..]
        };
        let request = Request::get(segments).flag("size", size && known == "container");
        match api.bytes(request).await {
            Ok(bytes) => return Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            // A daemon without volumes has no such route, or says that it has none.
            Err(CliError::Refused { status, .. })
                if status == 404 || (kind.is_empty() && matches!(status, 400 | 501)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The JSON of an object whose name is only known by another call, such as `self`.
pub(crate) async fn own_node(api: &Api) -> Result<String> {
    let info = api.json(Request::get(&["info"])).await?;
    let id = text(&info, "/Swarm/NodeID");
    if id.is_empty() {
        // The daemon's own refusal says what to do.
        api.done(Request::get(&["nodes"])).await?;
    }
    Ok(id.to_owned())
}
