//! `service ls`.

use clap::Args;
use serde_json::Value;

use crate::{
    api::Request,
    error::Result,
    json::{number, text},
    opts::{Filter, Filters, reference},
    output::{Columns, Row, human, table},
    session::Session,
};

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

const COLUMNS: Columns = Columns {
    kind: "*service.serviceContext",
    titles: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Mode", "MODE"),
        ("Replicas", "REPLICAS"),
        ("Image", "IMAGE"),
        ("Ports", "PORTS"),
    ],
    table: "{{.ID}}\t{{.Name}}\t{{.Mode}}\t{{.Replicas}}\t{{.Image}}\t{{.Ports}}",
};

pub(crate) async fn run(session: &Session, args: &ListArgs) -> Result {
    let services = list(session, args, &[]).await?;
    print(session, args, &services)
}

/// The services that `args` and `filters` select, in the order of their names.
pub(crate) async fn list(
    session: &Session,
    args: &ListArgs,
    filters: &[Filter],
) -> Result<Vec<Value>> {
    let filters = [args.filter.as_slice(), filters].concat();
    let request = Request::get(&["services"])
        .filters(&Filters::new(&filters))
        .query("status", if args.quiet { "" } else { "true" });
    let mut services = session.api.list(request).await?;
    services.sort_by(|a, b| human::natural(text(a, "/Spec/Name"), text(b, "/Spec/Name")));
    Ok(services)
}

pub(crate) fn print(session: &Session, args: &ListArgs, services: &[Value]) -> Result {
    let rows: Vec<Row> = services.iter().map(row).collect();
    let format = session
        .config
        .format(&args.format, args.quiet, "servicesFormat");
    table::print(&format, args.quiet, &COLUMNS, &rows)
}

fn row(service: &Value) -> Row {
    Row::new([
        ("ID", human::short_id(text(service, "/ID")).into()),
        ("Name", text(service, "/Spec/Name").into()),
        ("Mode", mode(service).into()),
        ("Replicas", replicas(service).into()),
        (
            "Image",
            reference::shown(text(service, "/Spec/TaskTemplate/ContainerSpec/Image")).into(),
        ),
        ("Ports", ports(&service["Endpoint"]["Ports"]).into()),
    ])
}

pub(super) fn mode(service: &Value) -> &'static str {
    let modes = [
        ("Global", "global"),
        ("Replicated", "replicated"),
        ("ReplicatedJob", "replicated job"),
        ("GlobalJob", "global job"),
    ];
    let mode = &service["Spec"]["Mode"];
    let known = modes.iter().find(|(key, _)| mode[*key].is_object());
    known.map_or("", |(_, name)| name)
}

fn replicas(service: &Value) -> String {
    let status = |key: &str| number(service, &format!("/ServiceStatus/{key}"));
    let (running, desired) = (status("RunningTasks"), status("DesiredTasks"));
    let completed = status("CompletedTasks");
    let most = number(service, "/Spec/TaskTemplate/Placement/MaxReplicas");
    match mode(service) {
        "replicated job" => {
            let total = number(service, "/Spec/Mode/ReplicatedJob/TotalCompletions");
            format!("{running}/{desired} ({completed}/{total} completed)")
        }
        "global job" => {
            let total = desired + completed;
            format!("{running}/{desired} ({completed}/{total} completed)")
        }
        "replicated" if most > 0 => format!("{running}/{desired} (max {most} per node)"),
        _ => format!("{running}/{desired}"),
    }
}

/// Ports on every node, neighbours joined: `*:80-81->80-81/tcp`.
fn ports(ports: &Value) -> String {
    struct Run {
        published: (u64, u64),
        target: (u64, u64),
        protocol: String,
    }
    let mut sorted: Vec<(&str, u64, u64)> = ports
        .as_array()
        .into_iter()
        .flatten()
        .filter(|port| text(port, "/PublishMode") == "ingress")
        .map(|port| {
            (
                text(port, "/Protocol"),
                number(port, "/PublishedPort"),
                number(port, "/TargetPort"),
            )
        })
        .collect();
    sorted.sort_unstable();
    let mut runs: Vec<Run> = Vec::new();
    for (protocol, published, target) in sorted {
        if let Some(run) = runs.last_mut() {
            let is_range = run.target.1 != run.target.0;
            // Docker subtracts unsigned numbers: a target below the last one does not follow it.
            let follows = run.protocol == protocol
                && published.wrapping_sub(run.published.1) <= 1
                && target.wrapping_sub(run.target.1) <= 1
                && !(is_range && target <= run.target.1);
            if follows {
                run.published.1 = published;
                run.target.1 = target;
                continue;
            }
        }
        runs.push(Run {
            published: (published, published),
            target: (target, target),
            protocol: protocol.to_owned(),
        });
    }
    let span = |(first, last): (u64, u64)| {
        if last > first {
            format!("{first}-{last}")
        } else {
            first.to_string()
        }
    };
    let shown: Vec<String> = runs
        .iter()
        .filter(|run| run.published.0 > 0)
        .map(|run| {
            format!(
                "*:{}->{}/{}",
                span(run.published),
                span(run.target),
                run.protocol
            )
        })
        .collect();
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_is_docker_s() {
        let service = json!({
            "ID": "abcdefghijklmnop", "ServiceStatus": {"RunningTasks": 2, "DesiredTasks": 3},
            "Spec": {"Name": "web", "Mode": {"Replicated": {"Replicas": 3}}, "TaskTemplate": {
                "ContainerSpec": {"Image": format!("nginx:1.27@sha256:{}", "a".repeat(64))},
                "Placement": {"MaxReplicas": 2}}},
            "Endpoint": {"Ports": [
                {"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"}]},
        });
        assert_eq!(
            table::render("", false, &COLUMNS, &[row(&service)]).unwrap(),
            "ID             NAME      MODE         REPLICAS               IMAGE        PORTS\n\
             abcdefghijkl   web       replicated   2/3 (max 2 per node)   nginx:1.27   *:8080->80/tcp\n"
        );
    }

    #[test]
    fn neighbouring_ports_are_joined() {
        let port = |protocol: &str, published: u64, target: u64| json!({"Protocol": protocol, "PublishedPort": published, "TargetPort": target, "PublishMode": "ingress"});
        let cases = [
            (
                vec![port("tcp", 80, 80), port("tcp", 81, 80)],
                "*:80-81->80/tcp",
            ),
            (
                vec![port("tcp", 81, 81), port("tcp", 80, 80)],
                "*:80-81->80-81/tcp",
            ),
            (
                vec![
                    port("tcp", 80, 80),
                    port("tcp", 81, 81),
                    port("tcp", 82, 80),
                ],
                "*:80-81->80-81/tcp, *:82->80/tcp",
            ),
            (
                vec![port("udp", 53, 53), port("tcp", 53, 53)],
                "*:53->53/tcp, *:53->53/udp",
            ),
        ];
        for (given, shown) in cases {
            assert_eq!(ports(&Value::Array(given)), shown);
        }
        let host = json!([{"Protocol": "tcp", "PublishedPort": 1, "TargetPort": 1, "PublishMode": "host"}]);
        assert_eq!(ports(&host), "");
    }
}
