//! `service ps` and `node ps`: tasks, the newest of a slot first and those before it indented.

use std::collections::BTreeMap;

use clap::Args;
use jiff::Timestamp;
use serde_json::Value;

use crate::{
    api::{Api, Request},
    error::{CliError, Result},
    json::{number, text},
    opts::{Filter, Filters, reference},
    output::{Columns, Row, human, table},
    session::Session,
};

/// Flags of every list of tasks.
#[derive(Debug, Args)]
pub(crate) struct TaskListArgs {
    /// Filter output based on conditions provided
    #[arg(short, long, value_name = "filter")]
    pub(crate) filter: Vec<Filter>,
    /// Pretty-print tasks using a Go template
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    format: String,
    /// Do not map IDs to Names
    #[arg(long)]
    no_resolve: bool,
    /// Do not truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only display task IDs
    #[arg(short, long)]
    quiet: bool,
}

const COLUMNS: Columns = Columns {
    kind: "*task.taskContext",
    titles: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Image", "IMAGE"),
        ("Node", "NODE"),
        ("DesiredState", "DESIRED STATE"),
        ("CurrentState", "CURRENT STATE"),
        ("Error", "ERROR"),
        ("Ports", "PORTS"),
    ],
    table: "{{.ID}}\t{{.Name}}\t{{.Image}}\t{{.Node}}\t{{.DesiredState}}\t{{.CurrentState}}\t{{.Error}}\t{{.Ports}}",
};

/// Longest error in a table.
const MAX_ERROR: usize = 30;

pub(super) async fn run(session: &Session, names: &[String], args: &TaskListArgs) -> Result {
    let api = &session.api;
    let mut filters = Filters::new(&args.filter);
    let filter = |key: &str| {
        let all = names.iter();
        all.fold(Filters::default(), |filters, name| filters.with(key, name))
    };
    let services = |key| Request::get(&["services"]).filters(&filter(key));
    let by_id = api.list(services("id")).await?;
    let by_name = api.list(services("name")).await?;
    let mut missing = Vec::new();
    for name in names {
        match find(name, &by_id, &by_name)? {
            Some(id) => filters.add("service", id),
            None => missing.push(CliError::message(format!("no such service: {name}"))),
        }
    }
    if missing.len() == names.len() {
        return CliError::all(missing);
    }
    for node in filters.take("node") {
        let node = crate::node::reference(api, &node).await?;
        filters.add("node", &node);
    }
    let tasks = api.list(Request::get(&["tasks"]).filters(&filters)).await?;
    print_tasks(session, tasks, args).await?;
    CliError::all(missing)
}

/// The id of the service: by its full id, its name, or the one id that begins so.
fn find<'a>(name: &str, by_id: &'a [Value], by_name: &'a [Value]) -> Result<Option<&'a str>> {
    let id = |service: &'a Value| text(service, "/ID");
    if let Some(service) = by_id.iter().find(|service| id(service) == name) {
        return Ok(Some(id(service)));
    }
    if let Some(service) = by_name
        .iter()
        .find(|service| text(service, "/Spec/Name") == name)
    {
        return Ok(Some(id(service)));
    }
    let mut begin = by_id.iter().map(id).filter(|id| id.starts_with(name));
    match (begin.next(), begin.next()) {
        (Some(_), Some(_)) => Err(CliError::message(format!(
            "multiple services found with provided prefix: {name}"
        ))),
        (found, _) => Ok(found),
    }
}

/// Names of services and nodes by id, as far as they still exist.
struct Names {
    services: BTreeMap<String, String>,
    nodes: BTreeMap<String, String>,
}

impl Names {
    async fn load(api: &Api, resolve: bool) -> Result<Self> {
        let mut names = Self {
            services: BTreeMap::new(),
            nodes: BTreeMap::new(),
        };
        if !resolve {
            return Ok(names);
        }
        for service in api.list(Request::get(&["services"])).await? {
            let name = text(&service, "/Spec/Name").to_owned();
            names
                .services
                .insert(text(&service, "/ID").to_owned(), name);
        }
        for node in api.list(Request::get(&["nodes"])).await? {
            let name = match text(&node, "/Spec/Name") {
                "" => text(&node, "/Description/Hostname"),
                name => name,
            };
            names
                .nodes
                .insert(text(&node, "/ID").to_owned(), name.to_owned());
        }
        Ok(names)
    }
}

/// An object's name, or its id when it has none any more.
fn name_of<'a>(names: &'a BTreeMap<String, String>, id: &'a str) -> &'a str {
    names.get(id).map_or(id, String::as_str)
}

/// Prints tasks of any services.
pub(crate) async fn print_tasks(
    session: &Session,
    tasks: Vec<Value>,
    args: &TaskListArgs,
) -> Result {
    let names = Names::load(&session.api, !args.no_resolve).await?;
    let format = session
        .config
        .format(&args.format, args.quiet, "tasksFormat");
    let truncate = !(args.no_trunc || args.quiet);
    let rows = rows(tasks, &names, truncate, is_table(&format), Timestamp::now());
    table::print(&format, args.quiet, &COLUMNS, &rows)
}

fn is_table(format: &str) -> bool {
    format.is_empty() || format.starts_with("table")
}

fn rows(
    tasks: Vec<Value>,
    names: &Names,
    truncate: bool,
    indents: bool,
    now: Timestamp,
) -> Vec<Row> {
    let mut named: Vec<(String, Value)> = tasks
        .into_iter()
        .map(|task| {
            let service = name_of(&names.services, text(&task, "/ServiceID"));
            let name = match number(&task, "/Slot") {
                0 => format!("{service}.{}", text(&task, "/NodeID")),
                slot => format!("{service}.{slot}"),
            };
            (name, task)
        })
        .collect();
    named.sort_by(|(a, x), (b, y)| {
        human::natural(a, b).then_with(|| text(y, "/CreatedAt").cmp(text(x, "/CreatedAt")))
    });
    let mut last = String::new();
    named
        .iter()
        .map(|(name, task)| {
            let indented = indents && *name == last;
            last.clone_from(name);
            let name = if indented {
                format!(" \\_ {name}")
            } else {
                name.clone()
            };
            row(task, name, names, truncate, now)
        })
        .collect()
}

fn row(task: &Value, name: String, names: &Names, truncate: bool, now: Timestamp) -> Row {
    let id = text(task, "/ID");
    let image = text(task, "/Spec/ContainerSpec/Image");
    let error = text(task, "/Status/Err");
    let error = if truncate {
        human::ellipsis(error, MAX_ERROR)
    } else {
        error.to_owned()
    };
    let ports: Vec<String> = task["Status"]["PortStatus"]["Ports"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|port| {
            format!(
                "*:{}->{}/{}",
                number(port, "/PublishedPort"),
                number(port, "/TargetPort"),
                text(port, "/Protocol")
            )
        })
        .collect();
    let state = human::capitalized(text(task, "/Status/State"));
    let since = human::ago(&task["Status"]["Timestamp"], now).to_lowercase();
    let id = if truncate {
        human::short_id(id)
    } else {
        id.to_owned()
    };
    let image = if truncate {
        reference::shown(image)
    } else {
        image.to_owned()
    };
    let quoted = if error.is_empty() {
        error
    } else {
        format!("\"{error}\"")
    };
    Row::new([
        ("ID", id.into()),
        ("Name", name.into()),
        ("Image", image.into()),
        ("Node", name_of(&names.nodes, text(task, "/NodeID")).into()),
        (
            "DesiredState",
            human::capitalized(text(task, "/DesiredState")).into(),
        ),
        ("CurrentState", format!("{state} {since}").into()),
        ("Error", quoted.into()),
        ("Ports", ports.join(",").into()),
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn earlier_tasks_of_a_slot_are_indented_below_it() {
        let names = Names {
            services: BTreeMap::from([("s".to_owned(), "web".to_owned())]),
            nodes: BTreeMap::from([("n".to_owned(), "host1".to_owned())]),
        };
        let task = |id: &str, slot: u64, created: &str, state: &str, error: &str| {
            json!({"ID": id, "ServiceID": "s", "NodeID": "n", "Slot": slot, "CreatedAt": created,
                   "DesiredState": if error.is_empty() { "running" } else { "shutdown" },
                   "Spec": {"ContainerSpec": {"Image": "nginx:1"}},
                   "Status": {"State": state, "Timestamp": "2026-01-01T00:00:00Z", "Err": error}})
        };
        let tasks = vec![
            task(
                "old1",
                1,
                "2026-01-01T00:00:00Z",
                "failed",
                "task: non-zero exit (137): out of memory",
            ),
            task("t10", 10, "2026-01-01T00:00:00Z", "running", ""),
            task("new1", 1, "2026-01-01T00:00:09Z", "running", ""),
        ];
        let now: Timestamp = "2026-01-01T00:01:10Z".parse().unwrap();
        let rows = rows(tasks, &names, true, true, now);
        assert_eq!(
            table::render("", false, &COLUMNS, &rows).unwrap(),
            "ID        NAME        IMAGE     NODE      DESIRED STATE   CURRENT STATE                ERROR                              PORTS\n\
             new1      web.1       nginx:1   host1     Running         Running about a minute ago                                      \n\
             old1       \\_ web.1   nginx:1   host1     Shutdown        Failed about a minute ago    \"task: non-zero exit (137): ou…\"   \n\
             t10       web.10      nginx:1   host1     Running         Running about a minute ago                                      \n"
        );
    }

    #[test]
    fn services_are_found_by_id_name_and_prefix() {
        let by_id = [json!({"ID": "abc1"}), json!({"ID": "abc2"})];
        let by_name = [json!({"ID": "xyz", "Spec": {"Name": "web"}})];
        assert_eq!(find("abc1", &by_id, &by_name).unwrap(), Some("abc1"));
        assert_eq!(find("web", &by_id, &by_name).unwrap(), Some("xyz"));
        assert_eq!(find("abc2", &by_id, &by_name).unwrap(), Some("abc2"));
        assert_eq!(find("no", &by_id, &by_name).unwrap(), None);
        assert!(find("abc", &by_id, &by_name).is_err());
    }
}
