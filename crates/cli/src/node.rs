//! `shoal node …`.

use clap::{Args, Subcommand};
use serde_json::Value;

use crate::{
    api::{Api, Request},
    error::{CliError, Result},
    inspect,
    json::{number, object, put, text},
    opts::{Filter, Filters, list},
    output::{self, Columns, Row, human, table},
    service::{TaskListArgs, print_tasks},
    session::Session,
};

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Demote one or more nodes from manager in the swarm
    #[command(override_usage = "shoal node demote NODE [NODE...]")]
    Demote(Nodes),
    /// Display detailed information on one or more nodes
    #[command(override_usage = "shoal node inspect [OPTIONS] self|NODE [NODE...]")]
    Inspect(InspectArgs),
    /// List nodes in the swarm
    #[command(visible_alias = "list", override_usage = "shoal node ls [OPTIONS]")]
    Ls(ListArgs),
    /// Promote one or more nodes to manager in the swarm
    #[command(override_usage = "shoal node promote NODE [NODE...]")]
    Promote(Nodes),
    /// List tasks running on one or more nodes, defaults to current node
    #[command(override_usage = "shoal node ps [OPTIONS] [NODE...]")]
    Ps(PsArgs),
    /// Remove one or more nodes from the swarm
    #[command(
        visible_alias = "remove",
        override_usage = "shoal node rm [OPTIONS] NODE [NODE...]"
    )]
    Rm(RemoveArgs),
    /// Update a node
    #[command(override_usage = "shoal node update [OPTIONS] NODE")]
    Update(UpdateArgs),
}

#[derive(Debug, Args)]
pub(crate) struct Nodes {
    #[arg(hide = true, required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Format output using a custom template: 'json' or a Go template
    #[arg(
        short,
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    format: String,
    /// Print the information in a human friendly format
    #[arg(long)]
    pretty: bool,
    #[arg(hide = true, required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Filter output based on conditions provided
    #[arg(short, long, value_name = "filter")]
    filter: Vec<Filter>,
    /// Format output: 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    format: String,
    /// Only display IDs
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    #[command(flatten)]
    tasks: TaskListArgs,
    #[arg(hide = true, value_name = "NODE")]
    nodes: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// Force remove a node from the swarm
    #[arg(short, long)]
    force: bool,
    #[arg(hide = true, required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// Availability of the node ("active", "pause", "drain")
    #[arg(long, value_name = "string")]
    availability: Option<String>,
    /// Add or update a node label ("key=value")
    #[arg(long, value_name = "list")]
    label_add: Vec<String>,
    /// Remove a node label if exists
    #[arg(long, value_name = "list")]
    label_rm: Vec<String>,
    /// Role of the node ("worker", "manager")
    #[arg(long, value_name = "string")]
    role: Option<String>,
    #[arg(hide = true, value_name = "NODE")]
    node: String,
}

pub(crate) async fn run(session: &Session, command: NodeCommand) -> Result {
    match command {
        NodeCommand::Demote(args) => set_role(session, &args.nodes, "worker").await,
        NodeCommand::Promote(args) => set_role(session, &args.nodes, "manager").await,
        NodeCommand::Inspect(args) => inspect_nodes(session, &args).await,
        NodeCommand::Ls(args) => ls(session, &args).await,
        NodeCommand::Ps(args) => ps(session, &args).await,
        NodeCommand::Rm(args) => {
            session
                .each(&args.nodes, |node| {
                    Request::delete(&["nodes", node]).flag("force", args.force)
                })
                .await
        }
        NodeCommand::Update(args) => update(session, &args).await,
    }
}

/// A node as the API knows it: `self` is the one that answers.
pub(crate) async fn reference(api: &Api, node: &str) -> Result<String> {
    if node == "self" {
        inspect::own_node(api).await
    } else {
        Ok(node.to_owned())
    }
}

async fn set_role(session: &Session, nodes: &[String], role: &str) -> Result {
    for name in nodes {
        let node = session.api.json(Request::get(&["nodes", name])).await?;
        if text(&node, "/Spec/Role") == role {
            output::line(format!("Node {name} is already a {role}."))?;
            continue;
        }
        let mut spec = node["Spec"].clone();
        spec["Role"] = role.into();
        session.api.done(update_request(&node, &spec)).await?;
        let (verb, preposition) = match role {
            "manager" => ("promoted", "to a manager"),
            _ => ("demoted", "in the swarm"),
        };
        output::line(if role == "manager" {
            format!("Node {name} {verb} {preposition} in the swarm.")
        } else {
            format!("Manager {name} {verb} {preposition}.")
        })?;
    }
    Ok(())
}

fn update_request(node: &Value, spec: &Value) -> Request {
    Request::post(&["nodes", text(node, "/ID"), "update"])
        .query("version", number(node, "/Version/Index").to_string())
        .json(spec)
}

async fn update(session: &Session, args: &UpdateArgs) -> Result {
    let node = session
        .api
        .json(Request::get(&["nodes", &args.node]))
        .await?;
    let mut spec = node["Spec"].clone();
    edit(&mut spec, args)?;
    session.api.done(update_request(&node, &spec)).await?;
    output::line(&args.node)
}

fn edit(spec: &mut Value, args: &UpdateArgs) -> Result {
    let Some(spec) = spec.as_object_mut() else {
        return Err(CliError::message("the daemon's answer has no node spec"));
    };
    for (key, value) in [("Role", &args.role), ("Availability", &args.availability)] {
        if let Some(value) = value {
            put(spec, key, value.as_str());
        }
    }
    let labels = object(spec, "Labels");
    for (key, value) in list::pairs(&args.label_add) {
        labels.insert(key, value.into());
    }
    for key in &args.label_rm {
        if labels.remove(key).is_none() {
            return Err(CliError::message(format!(
                "key {key} doesn't exist in node's labels"
            )));
        }
    }
    Ok(())
}

const COLUMNS: Columns = Columns {
    kind: "*node.nodeContext",
    titles: &[
        ("ID", "ID"),
        ("Self", ""),
        ("Hostname", "HOSTNAME"),
        ("Status", "STATUS"),
        ("Availability", "AVAILABILITY"),
        ("ManagerStatus", "MANAGER STATUS"),
        ("EngineVersion", "ENGINE VERSION"),
        ("TLSStatus", "TLS STATUS"),
    ],
    table: "{{.ID}} {{if .Self}}*{{else}} {{ end }}\t{{.Hostname}}\t{{.Status}}\t{{.Availability}}\t{{.ManagerStatus}}\t{{.EngineVersion}}",
};

async fn ls(session: &Session, args: &ListArgs) -> Result {
    let filters = Filters::new(&args.filter);
    let mut nodes = session
        .api
        .list(Request::get(&["nodes"]).filters(&filters))
        .await?;
    let info = if nodes.is_empty() || args.quiet {
        Value::Null
    } else {
        session.api.json(Request::get(&["info"])).await?
    };
    let hostname = |node: &Value| text(node, "/Description/Hostname").to_owned();
    nodes.sort_by(|a, b| human::natural(&hostname(a), &hostname(b)));
    let rows: Vec<Row> = nodes.iter().map(|node| row(node, &info)).collect();
    let format = session
        .config
        .format(&args.format, args.quiet, "nodesFormat");
    table::print(&format, args.quiet, &COLUMNS, &rows)
}

fn row(node: &Value, info: &Value) -> Row {
    let manager = &node["ManagerStatus"];
    let reachability = if manager["Leader"] == true {
        "Leader"
    } else {
        text(manager, "/Reachability")
    };
    let (own, cluster) = (
        &node["Description"]["TLSInfo"],
        &info["Swarm"]["Cluster"]["TLSInfo"],
    );
    let tls = if crate::json::is_empty(own) || crate::json::is_empty(cluster) {
        "Unknown"
    } else if own == cluster {
        "Ready"
    } else {
        "Needs Rotation"
    };
    let id = text(node, "/ID");
    Row::new([
        ("ID", id.into()),
        (
            "Self",
            (!id.is_empty() && id == text(info, "/Swarm/NodeID")).into(),
        ),
        ("Hostname", text(node, "/Description/Hostname").into()),
        (
            "Status",
            human::capitalized(text(node, "/Status/State")).into(),
        ),
        (
            "Availability",
            human::capitalized(text(node, "/Spec/Availability")).into(),
        ),
        ("ManagerStatus", human::capitalized(reachability).into()),
        (
            "EngineVersion",
            text(node, "/Description/Engine/EngineVersion").into(),
        ),
        ("TLSStatus", tls.into()),
    ])
}

async fn ps(session: &Session, args: &PsArgs) -> Result {
    let own = ["self".to_owned()];
    let nodes = if args.nodes.is_empty() {
        &own[..]
    } else {
        &args.nodes[..]
    };
    let mut tasks = Vec::new();
    let mut errors = Vec::new();
    for name in nodes {
        let id = reference(&session.api, name).await?;
        match session.api.json(Request::get(&["nodes", &id])).await {
            Ok(node) => {
                let filters = Filters::new(&args.tasks.filter).with("node", text(&node, "/ID"));
                tasks.extend(
                    session
                        .api
                        .list(Request::get(&["tasks"]).filters(&filters))
                        .await?,
                );
            }
            Err(error @ CliError::Refused { .. }) => errors.push(error),
            Err(error) => return Err(error),
        }
    }
    if errors.len() < nodes.len() {
        print_tasks(session, tasks, &args.tasks).await?;
    }
    CliError::all(errors)
}

async fn inspect_nodes(session: &Session, args: &InspectArgs) -> Result {
    let mut ids = Vec::new();
    for node in &args.nodes {
        ids.push(reference(&session.api, node).await?);
    }
    if args.pretty && !args.format.is_empty() {
        return Err(CliError::message(
            "--format is incompatible with human friendly format",
        ));
    }
    if !args.pretty && args.format != "pretty" {
        return inspect::print(&session.api, &ids, &args.format, |node| {
            Request::get(&["nodes", node])
        })
        .await;
    }
    for id in ids {
        let node = session.api.json(Request::get(&["nodes", &id])).await?;
        output::line(pretty(&node))?;
    }
    Ok(())
}

fn pretty(node: &Value) -> String {
    use std::fmt::Write;
    let mut page = String::new();
    let mut line = |title: &str, value: &str| {
        // Writing to a text cannot fail.
        let _ = writeln!(page, "{title:<24}{value}");
    };
    line("ID:", text(node, "/ID"));
    if !text(node, "/Spec/Name").is_empty() {
        line("Name:", text(node, "/Spec/Name"));
    }
    let pairs = |value: &Value| -> Vec<String> {
        let all = value.as_object().into_iter().flatten();
        all.map(|(k, v)| format!(" - {k}={}", v.as_str().unwrap_or("")))
            .collect()
    };
    {
        let (title, labels) = ("Labels:", &node["Spec"]["Labels"]);
        let labels = pairs(labels);
        if !labels.is_empty() {
            line(title, "");
        }
        for label in &labels {
            line(label, "");
        }
    }
    line("Hostname:", text(node, "/Description/Hostname"));
    let joined = human::go_time(&node["CreatedAt"], jiff::tz::TimeZone::UTC);
    line("Joined at:", &joined.to_lowercase());
    line("Status:", "");
    line(" State:", &human::capitalized(text(node, "/Status/State")));
    if !text(node, "/Status/Message").is_empty() {
        line(
            " Message:",
            &human::capitalized(text(node, "/Status/Message")),
        );
    }
    line(
        " Availability:",
        &human::capitalized(text(node, "/Spec/Availability")),
    );
    if !text(node, "/Status/Addr").is_empty() {
        line(" Address:", text(node, "/Status/Addr"));
    }
    let manager = &node["ManagerStatus"];
    if manager.is_object() {
        line("Manager Status:", "");
        line(" Address:", text(manager, "/Addr"));
        line(
            " Raft Status:",
            &human::capitalized(text(manager, "/Reachability")),
        );
        line(
            " Leader:",
            if manager["Leader"] == true {
                "Yes"
            } else {
                "No"
            },
        );
    }
    let description = &node["Description"];
    line("Platform:", "");
    line(" Operating System:", text(description, "/Platform/OS"));
    line(
        " Architecture:",
        text(description, "/Platform/Architecture"),
    );
    line("Resources:", "");
    let cpus = number(description, "/Resources/NanoCPUs") / 1_000_000_000;
    line(" CPUs:", &cpus.to_string());
    #[expect(clippy::cast_precision_loss, reason = "four digits are shown")]
    let memory = human::binary_size(number(description, "/Resources/MemoryBytes") as f64);
    line(" Memory:", &memory);
    line(
        "Engine Version:",
        text(description, "/Engine/EngineVersion"),
    );
    let labels = pairs(&description["Engine"]["Labels"]);
    if !labels.is_empty() {
        line("Engine Labels:", "");
    }
    for label in &labels {
        line(label, "");
    }
    let tls = &description["TLSInfo"];
    if !text(tls, "/TrustRoot").is_empty() {
        line("TLS Info:", "");
        line(" TrustRoot:", "");
        line(text(tls, "/TrustRoot").trim_end(), "");
        line(" Issuer Subject:", text(tls, "/CertIssuerSubject"));
        line(" Issuer Public Key:", text(tls, "/CertIssuerPublicKey"));
    }
    page.lines()
        .map(str::trim_end)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Labels, role and availability of a new spec, for tests of what a command sends.
#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_marks_the_node_that_answers() {
        let info = json!({"Swarm": {"NodeID": "n1"}});
        let node = |id: &str, host: &str, manager: Value| {
            json!({"ID": id, "Spec": {"Availability": "active"}, "Status": {"State": "ready"},
                   "Description": {"Hostname": host, "Engine": {"EngineVersion": "1.0"}}, "ManagerStatus": manager})
        };
        let rows = [
            row(&node("n1", "a", json!({"Leader": true})), &info),
            row(&node("n2", "b", Value::Null), &info),
        ];
        assert_eq!(
            table::render("", false, &COLUMNS, &rows).unwrap(),
            "ID        HOSTNAME   STATUS    AVAILABILITY   MANAGER STATUS   ENGINE VERSION\n\
             n1 *      a          Ready     Active         Leader           1.0\n\
             n2        b          Ready     Active                          1.0\n"
        );
    }

    #[test]
    fn labels_that_are_not_there_cannot_be_removed() {
        let mut args = UpdateArgs {
            availability: Some("drain".into()),
            label_add: vec!["a=1".into()],
            label_rm: Vec::new(),
            role: None,
            node: "n".into(),
        };
        let mut spec = json!({"Role": "worker", "Availability": "active", "Labels": null});
        edit(&mut spec, &args).unwrap();
        assert_eq!(
            spec,
            json!({"Role": "worker", "Availability": "drain", "Labels": {"a": "1"}})
        );
        args.label_rm = vec!["zone".into()];
        assert_eq!(
            edit(&mut spec, &args).unwrap_err().to_string(),
            "key zone doesn't exist in node's labels"
        );
    }
}
