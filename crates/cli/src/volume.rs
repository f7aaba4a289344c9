//! `shoal volume …`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::{
    api::Request,
    error::{CliError, Result},
    inspect,
    json::text,
    opts::{Filter, Filters, list},
    output::{self, Columns, Row, human, table},
    session::Session,
};

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Create a volume
    #[command(override_usage = "shoal volume create [OPTIONS] [VOLUME]")]
    Create(CreateArgs),
    /// Display detailed information on one or more volumes
    #[command(override_usage = "shoal volume inspect [OPTIONS] VOLUME [VOLUME...]")]
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
        #[arg(hide = true, required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
    },
    /// List volumes
    #[command(visible_alias = "list", override_usage = "shoal volume ls [OPTIONS]")]
    Ls(ListArgs),
    /// Remove unused local volumes
    #[command(override_usage = "shoal volume prune [OPTIONS]")]
    Prune {
        /// Remove all unused volumes, not just anonymous ones
        #[arg(short, long)]
        all: bool,
        /// Provide filter values (e.g. "label=<label>")
        #[arg(long, value_name = "filter")]
        filter: Vec<Filter>,
        /// Do not prompt for confirmation
        #[arg(short, long)]
        force: bool,
    },
    /// Remove one or more volumes
    #[command(
        visible_alias = "remove",
        override_usage = "shoal volume rm [OPTIONS] VOLUME [VOLUME...]"
    )]
    Rm {
        /// Force the removal of one or more volumes
        #[arg(short, long)]
        force: bool,
        #[arg(hide = true, required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Specify volume driver name
    #[arg(short, long, value_name = "string", default_value = "local")]
    driver: String,
    /// Set metadata for a volume
    #[arg(long, value_name = "list", value_parser = list::label)]
    label: Vec<String>,
    /// Specify volume name
    #[arg(
        long = "name",
        value_name = "string",
        default_value = "",
        hide = true,
        hide_default_value = true
    )]
    flag_name: String,
    /// Set driver specific options
    #[arg(short, long, value_name = "map")]
    opt: Vec<String>,
    #[arg(hide = true, value_name = "VOLUME")]
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Provide filter values (e.g. "dangling=true")
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
    /// Only display volume names
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) async fn run(session: &Session, command: VolumeCommand) -> Result {
    let api = &session.api;
    match command {
        VolumeCommand::Create(args) => {
            if args.name.is_some() && !args.flag_name.is_empty() {
                return Err(CliError::message(
                    "conflicting options: cannot specify a volume-name through both --name and as a positional arg",
                ));
            }
            let body = json!({
                "Name": args.name.unwrap_or(args.flag_name),
                "Driver": args.driver,
                "DriverOpts": list::pairs(&args.opt),
                "Labels": list::pairs(&args.label),
            });
            let created = api
                .json(Request::post(&["volumes", "create"]).json(&body))
                .await?;
            output::line(text(&created, "/Name"))
        }
        VolumeCommand::Inspect { format, volumes } => {
            inspect::print(api, &volumes, &format, |volume| {
                Request::get(&["volumes", volume])
            })
            .await
        }
        VolumeCommand::Ls(args) => ls(session, &args).await,
        VolumeCommand::Prune { all, filter, force } => prune(session, all, &filter, force).await,
        VolumeCommand::Rm { force, volumes } => {
            let request = |volume: &str| Request::delete(&["volumes", volume]).flag("force", force);
            session.each(&volumes, request).await
        }
    }
}

async fn prune(session: &Session, all: bool, filter: &[Filter], force: bool) -> Result {
    let which = if all { "all" } else { "anonymous" };
    let what = format!("{which} local volumes not used by at least one container");
    let mut filters = Filters::new(filter);
    if all {
        filters.add("all", "true");
    }
    let report = session.prune("volume", &what, force, &filters).await?;
    let deleted = report["VolumesDeleted"].as_array().into_iter().flatten();
    let removed: Vec<&str> = deleted.filter_map(Value::as_str).collect();
    if !removed.is_empty() {
        output::line(format!("Deleted Volumes:\n{}\n", removed.join("\n")))?;
    }
    output::reclaimed(&report)
}

const COLUMNS: Columns = Columns {
    kind: "*formatter.volumeContext",
    titles: &[
        ("Name", "VOLUME NAME"),
        ("Driver", "DRIVER"),
        ("Scope", "SCOPE"),
        ("Availability", "AVAILABILITY"),
        ("Mountpoint", "MOUNTPOINT"),
        ("Labels", "LABELS"),
        ("Links", "LINKS"),
        ("Size", "SIZE"),
        ("Group", "GROUP"),
        ("Status", "STATUS"),
    ],
    table: "{{.Driver}}\t{{.Name}}",
};

async fn ls(session: &Session, args: &ListArgs) -> Result {
    let request = Request::get(&["volumes"]).filters(&Filters::new(&args.filter));
    let answer = session.api.json(request).await?;
    let mut volumes = answer["Volumes"].as_array().cloned().unwrap_or_default();
    volumes.sort_by(|a, b| human::natural(text(a, "/Name"), text(b, "/Name")));
    let rows: Vec<Row> = volumes.iter().map(row).collect();
    // Docker's quiet is the name, which here is what identifies.
    let format = if args.quiet && args.format.is_empty() {
        "{{.Name}}".to_owned()
    } else {
        session
            .config
            .format(&args.format, args.quiet, "volumesFormat")
    };
    table::print(&format, args.quiet, &COLUMNS, &rows)
}

fn row(volume: &Value) -> Row {
    Row::new([
        ("Name", text(volume, "/Name").into()),
        ("Driver", text(volume, "/Driver").into()),
        ("Scope", text(volume, "/Scope").into()),
        ("Availability", "N/A".into()),
        ("Mountpoint", text(volume, "/Mountpoint").into()),
        ("Labels", human::labels(&volume["Labels"]).into()),
        ("Links", "N/A".into()),
        ("Size", "N/A".into()),
        ("Group", "N/A".into()),
        ("Status", "N/A".into()),
    ])
    .with_labels(&volume["Labels"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_docker_s() {
        let volume = json!({"Name": "data", "Driver": "local", "Scope": "local"});
        assert_eq!(
            table::render("", false, &COLUMNS, &[row(&volume)]).unwrap(),
            "DRIVER    VOLUME NAME\nlocal     data\n"
        );
    }
}
