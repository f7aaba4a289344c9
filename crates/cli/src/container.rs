//! `shoal container …`, `ps`, `logs`: the containers of the node that answers.

use clap::{Args, Subcommand};
use jiff::{Timestamp, tz::TimeZone};
use serde_json::Value;

use crate::{
    api::Request,
    error::Result,
    inspect,
    json::text,
    logs::{Frames, Query},
    opts::{Filter, Filters, reference::Reference},
    output::{Columns, Row, human, table},
    session::Session,
};

#[derive(Debug, Subcommand)]
pub(crate) enum ContainerCommand {
    /// Display detailed information on one or more containers
    #[command(override_usage = "shoal container inspect [OPTIONS] CONTAINER [CONTAINER...]")]
    Inspect {
        /// Format output using a custom template: 'json' or a Go template
        #[arg(
            short,
            long,
            value_name = "string",
            default_value = "",
            hide_default_value = true
        )]
        format: String,
        /// Display total file sizes
        #[arg(short, long)]
        size: bool,
        #[arg(hide = true, required = true, value_name = "CONTAINER")]
        containers: Vec<String>,
    },
    /// Fetch the logs of a container
    #[command(override_usage = "shoal container logs [OPTIONS] CONTAINER")]
    Logs(LogsArgs),
    /// List containers
    #[command(visible_aliases = ["list", "ps"], override_usage = "shoal container ls [OPTIONS]")]
    Ls(ListArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Show extra details provided to logs
    #[arg(long)]
    details: bool,
    /// Follow log output
    #[arg(short, long)]
    follow: bool,
    /// Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    since: String,
    /// Number of lines to show from the end of the logs
    #[arg(short = 'n', long, value_name = "string", default_value = "all")]
    tail: String,
    /// Show timestamps
    #[arg(short, long)]
    timestamps: bool,
    /// Show logs before a timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    until: String,
    #[arg(hide = true, value_name = "CONTAINER")]
    container: String,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Show all containers (default shows just running)
    #[arg(short, long)]
    all: bool,
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
    /// Show n last created containers (includes all states) (default -1)
    #[arg(short = 'n', long, value_name = "int", allow_hyphen_values = true)]
    last: Option<i64>,
    /// Show the latest created container (includes all states)
    #[arg(short, long)]
    latest: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only display container IDs
    #[arg(short, long)]
    quiet: bool,
    /// Display total file sizes
    #[arg(short, long)]
    size: bool,
}

pub(crate) async fn run(session: &Session, command: ContainerCommand) -> Result {
    match command {
        ContainerCommand::Inspect {
            format,
            size,
            containers,
        } => {
            inspect::print(&session.api, &containers, &format, |container| {
                Request::get(&["containers", container, "json"]).flag("size", size)
            })
            .await
        }
        ContainerCommand::Logs(args) => logs(session, &args).await,
        ContainerCommand::Ls(args) => ls(session, &args).await,
    }
}

async fn logs(session: &Session, args: &LogsArgs) -> Result {
    let query = Query {
        follow: args.follow,
        timestamps: args.timestamps,
        details: args.details,
        since: &args.since,
        until: &args.until,
        tail: &args.tail,
    };
    let request = query.request(&["containers", &args.container, "logs"])?;
    let mut frames = Frames::open(&session.api, request).await?;
    while let Some(line) = frames.next().await? {
        line.print()?;
    }
    Ok(())
}

const COLUMNS: Columns = Columns {
    kind: "*formatter.ContainerContext",
    titles: &[
        ("ID", "CONTAINER ID"),
        ("Names", "NAMES"),
        ("Image", "IMAGE"),
        ("Command", "COMMAND"),
        ("CreatedAt", "CREATED AT"),
        ("RunningFor", "CREATED"),
        ("Ports", "PORTS"),
        ("State", "STATE"),
        ("Status", "STATUS"),
        ("Size", "SIZE"),
        ("Labels", "LABELS"),
        ("Mounts", "MOUNTS"),
        ("LocalVolumes", "LOCAL VOLUMES"),
        ("Networks", "NETWORKS"),
        ("Platform", "PLATFORM"),
    ],
    table: "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}",
};

const COLUMNS_WITH_SIZE: Columns = Columns {
    table: "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}\t{{.Size}}",
    ..COLUMNS
};

async fn ls(session: &Session, args: &ListArgs) -> Result {
    let format = session.config.format(&args.format, args.quiet, "psFormat");
    let last = if args.latest { Some(1) } else { args.last };
    let last = last.filter(|last| *last > 0);
    let request = Request::get(&["containers", "json"])
        .flag("all", args.all)
        .query(
            "limit",
            last.map_or_else(String::new, |last| last.to_string()),
        )
        .flag("size", args.size || format.contains(".Size"))
        .filters(&Filters::new(&args.filter));
    let containers = session.api.list(request).await?;
    let now = Timestamp::now();
    let rows: Vec<Row> = containers
        .iter()
        .map(|c| row(c, !args.no_trunc, now))
        .collect();
    let columns = if args.size {
        &COLUMNS_WITH_SIZE
    } else {
        &COLUMNS
    };
    table::print(&format, args.quiet, columns, &rows)
}

fn row(container: &Value, truncate: bool, now: Timestamp) -> Row {
    let id = text(container, "/Id");
    let strings = |value: &Value| -> Vec<String> {
        let all = value.as_array().into_iter().flatten();
        all.filter_map(|item| item.as_str().map(str::to_owned))
            .collect()
    };
    let mut names: Vec<String> = strings(&container["Names"])
        .iter()
        .map(|name| name.strip_prefix('/').unwrap_or(name).to_owned())
        .collect();
    // Names with a slash are those of links.
    if truncate && let Some(own) = names.iter().find(|name| !name.contains('/')) {
        names = vec![own.clone()];
    }
    let command = text(container, "/Command");
    let command = if truncate {
        human::ellipsis(command, 20)
    } else {
        command.to_owned()
    };
    let mounts: Vec<String> = container["Mounts"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|mount| {
            let name = [text(mount, "/Name"), text(mount, "/Source")];
            let name = name.into_iter().find(|name| !name.is_empty()).unwrap_or("");
            if truncate {
                human::ellipsis(name, 15)
            } else {
                name.to_owned()
            }
        })
        .collect();
    let local = container["Mounts"].as_array().into_iter().flatten();
    let local = local
        .filter(|mount| text(mount, "/Driver") == "local")
        .count();
    let networks = container["NetworkSettings"]["Networks"].as_object();
    let networks: Vec<&str> = networks
        .into_iter()
        .flatten()
        .map(|(name, _)| name.as_str())
        .collect();
    let size = |key: &str| container[key].as_f64().unwrap_or(0.0);
    let (own, whole) = (size("SizeRw"), size("SizeRootFs"));
    let mut sizes = human::size(own, 3);
    if whole > 0.0 {
        sizes.push_str(&format!(" (virtual {})", human::size(whole, 3)));
    }
    let created = &container["Created"];
    Row::new([
        (
            "ID",
            if truncate {
                human::short_id(id).into()
            } else {
                id.into()
            },
        ),
        ("Names", names.join(",").into()),
        ("Image", image(container, truncate).into()),
        ("Command", format!("{command:?}").into()),
        (
            "CreatedAt",
            human::go_time(created, TimeZone::system()).into(),
        ),
        ("RunningFor", human::ago(created, now).into()),
        ("Ports", ports(&container["Ports"]).into()),
        ("State", text(container, "/State").into()),
        ("Status", text(container, "/Status").into()),
        ("Size", sizes.into()),
        ("Labels", human::labels(&container["Labels"]).into()),
        ("Mounts", mounts.join(",").into()),
        ("LocalVolumes", local.to_string().into()),
        ("Networks", networks.join(",").into()),
        (
            "Platform",
            container["ImageManifestDescriptor"]["platform"].clone(),
        ),
    ])
    .with_labels(&container["Labels"])
}

fn image(container: &Value, truncate: bool) -> String {
    let image = text(container, "/Image");
    if image.is_empty() {
        return "<no image>".into();
    }
    if !truncate {
        return image.to_owned();
    }
    let short = human::short_id(text(container, "/ImageID"));
    if !short.is_empty() && short == human::short_id(image) {
        return short;
    }
    match Reference::parse(image) {
        Some(reference) if reference.tag().is_some() => {
            reference.without_digest_if_tagged().to_string()
        }
        Some(reference) => reference.name().to_owned(),
        None => image.to_owned(),
    }
}

/// `0.0.0.0:80->9090/tcp, 9988/tcp`: neighbours that are published under their own numbers are joined.
fn ports(ports: &Value) -> String {
    struct Group {
        ip: String,
        protocol: String,
        first: u64,
        last: u64,
    }
    let join = |ip: &str, port: &str| {
        if ip.contains(':') {
            format!("[{ip}]:{port}")
        } else {
            format!("{ip}:{port}")
        }
    };
    let show = |group: &Group| {
        let span = if group.first == group.last {
            group.first.to_string()
        } else {
            format!("{}-{}", group.first, group.last)
        };
        let span = if group.ip.is_empty() {
            span
        } else {
            format!("{}->{span}", join(&group.ip, &span))
        };
        format!("{span}/{}", group.protocol)
    };
    let number = |port: &Value, key: &str| port[key].as_u64().unwrap_or(0);
    let mut sorted: Vec<(u64, &str, u64, &str)> = ports
        .as_array()
        .into_iter()
        .flatten()
        .map(|port| {
            (
                number(port, "PrivatePort"),
                text(port, "/IP"),
                number(port, "PublicPort"),
                text(port, "/Type"),
            )
        })
        .collect();
    sorted.sort_unstable();
    let mut groups: Vec<Group> = Vec::new();
    let (mut done, mut mapped) = (Vec::new(), Vec::new());
    for (private, ip, public, protocol) in sorted {
        if !ip.is_empty() && public != private {
            mapped.push(format!(
                "{}->{private}/{protocol}",
                join(ip, &public.to_string())
            ));
            continue;
        }
        match groups
            .iter_mut()
            .find(|group| group.ip == ip && group.protocol == protocol)
        {
            Some(group) if private == group.last + 1 => group.last = private,
            Some(group) => {
                done.push(show(group));
                (group.first, group.last) = (private, private);
            }
            None => groups.push(Group {
                ip: ip.to_owned(),
                protocol: protocol.to_owned(),
                first: private,
                last: private,
            }),
        }
    }
    done.extend(groups.iter().map(show));
    done.extend(mapped);
    done.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_is_docker_s() {
        let now: Timestamp = "2026-01-01T00:05:00Z".parse().unwrap();
        let container = json!({"Id": "0123456789abcdef", "Names": ["/web.1.abc"], "Image": format!("nginx:1@sha256:{}", "a".repeat(64)),
            "ImageID": "sha256:ff", "Command": "/docker-entrypoint.sh nginx", "Created": 1_767_225_600,
            "Ports": [{"PrivatePort": 80, "Type": "tcp"}], "State": "running", "Status": "Up 5 minutes"});
        assert_eq!(
            table::render("", false, &COLUMNS, &[row(&container, true, now)]).unwrap(),
            "CONTAINER ID   IMAGE     COMMAND                  CREATED         STATUS         PORTS     NAMES\n\
             0123456789ab   nginx:1   \"/docker-entrypoint.…\"   5 minutes ago   Up 5 minutes   80/tcp    web.1.abc\n"
        );
    }

    #[test]
    fn ports_are_joined_and_mapped() {
        let port = |ip: &str, public: u64, private: u64| json!({"IP": ip, "PublicPort": public, "PrivatePort": private, "Type": "tcp"});
        let cases = [
            (
                json!([port("0.0.0.0", 8080, 80), port("::", 8080, 80)]),
                "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp",
            ),
            (
                json!([port("0.0.0.0", 80, 80), port("0.0.0.0", 81, 81)]),
                "0.0.0.0:80-81->80-81/tcp",
            ),
            (
                json!([port("", 0, 1), port("", 0, 2), port("", 0, 5)]),
                "1-2/tcp, 5/tcp",
            ),
        ];
        for (given, shown) in cases {
            assert_eq!(ports(&given), shown);
        }
    }
}
