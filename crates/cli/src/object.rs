//! `shoal secret …` and `shoal config …`, which differ in a few words.

use std::{io::Read, path::Path};

use base64::Engine;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{
    api::Request,
    error::{CliError, Result},
    inspect,
    json::{put, text},
    opts::{Filter, Filters, list},
    output::{self, Columns, Row, human, table},
    session::Session,
};

#[derive(Debug, Subcommand)]
pub(crate) enum SecretCommand {
    /// Create a secret from a file or STDIN as content
    #[command(override_usage = "shoal secret create [OPTIONS] SECRET [file|-]")]
    Create(SecretCreateArgs),
    #[command(flatten)]
    Other(ObjectCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Create a config from a file or STDIN
    #[command(override_usage = "shoal config create [OPTIONS] CONFIG file|-")]
    Create(ConfigCreateArgs),
    #[command(flatten)]
    Other(ObjectCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ObjectCommand {
    /// Display detailed information on one or more objects
    Inspect(InspectArgs),
    /// List objects
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Remove one or more objects
    #[command(visible_alias = "remove")]
    Rm {
        #[arg(hide = true, required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SecretCreateArgs {
    /// Secret driver
    #[arg(
        short,
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    driver: String,
    /// Secret labels
    #[arg(short, long, value_name = "list", value_parser = list::label)]
    label: Vec<String>,
    /// Template driver
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    template_driver: String,
    #[arg(hide = true, value_name = "SECRET")]
    name: String,
    #[arg(hide = true, value_name = "file|-")]
    file: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigCreateArgs {
    /// Config labels
    #[arg(short, long, value_name = "list", value_parser = list::label)]
    label: Vec<String>,
    /// Template driver
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    template_driver: String,
    #[arg(hide = true, value_name = "CONFIG")]
    name: String,
    #[arg(hide = true, value_name = "file|-")]
    file: String,
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
    #[arg(hide = true, required = true, value_name = "NAME")]
    names: Vec<String>,
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

/// Largest content that the cluster stores (SwarmKit: 500 KiB for a secret, 1000 KiB for a config) is checked there;
/// this only keeps a wrong file from being read whole.
const READ_LIMIT: u64 = 64 << 20;

pub(crate) async fn run_secret(session: &Session, command: SecretCommand) -> Result {
    let args = match command {
        SecretCommand::Other(command) => return run(session, command, "secret").await,
        SecretCommand::Create(args) => args,
    };
    if !args.driver.is_empty() && args.file.is_some() {
        return Err(CliError::message(
            "When using secret driver secret data must be empty",
        ));
    }
    let mut spec = Map::new();
    if args.driver.is_empty() {
        let data = read(args.file.as_deref().unwrap_or("-"))?;
        put(&mut spec, "Data", data);
    } else {
        spec.insert("Driver".into(), json!({ "Name": args.driver }));
    }
    create(
        session,
        "secrets",
        &args.name,
        &args.label,
        &args.template_driver,
        spec,
    )
    .await
}

pub(crate) async fn run_config(session: &Session, command: ConfigCommand) -> Result {
    let args = match command {
        ConfigCommand::Other(command) => return run(session, command, "config").await,
        ConfigCommand::Create(args) => args,
    };
    let mut spec = Map::new();
    put(&mut spec, "Data", read(&args.file)?);
    create(
        session,
        "configs",
        &args.name,
        &args.label,
        &args.template_driver,
        spec,
    )
    .await
}

/// The content of a file, or of standard input for `-`, in base64.
pub(crate) fn read(file: &str) -> Result<String> {
    let mut data = Vec::new();
    let read =
        |source: &mut dyn Read, data: &mut Vec<u8>| source.take(READ_LIMIT).read_to_end(data);
    let result = if file == "-" {
        read(&mut std::io::stdin().lock(), &mut data)
    } else {
        std::fs::File::open(Path::new(file)).and_then(|mut file| read(&mut file, &mut data))
    };
    result.map_err(CliError::file(format!(
        "error reading content from {file:?}"
    )))?;
    Ok(base64::engine::general_purpose::STANDARD.encode(data))
}

async fn create(
    session: &Session,
    path: &str,
    name: &str,
    labels: &[String],
    template: &str,
    mut spec: Map<String, Value>,
) -> Result {
    put(&mut spec, "Name", name);
    spec.insert("Labels".into(), json!(list::pairs(labels)));
    if !template.is_empty() {
        spec.insert("Templating".into(), json!({ "Name": template }));
    }
    let request = Request::post(&[path, "create"]).json(&Value::Object(spec));
    let created = session.api.json(request).await?;
    output::line(text(&created, "/ID"))
}

const SECRETS: Columns = Columns {
    kind: "*secret.secretContext",
    titles: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("CreatedAt", "CREATED"),
        ("UpdatedAt", "UPDATED"),
        ("Labels", "LABELS"),
    ],
    table: "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.CreatedAt}}\t{{.UpdatedAt}}",
};

const CONFIGS: Columns = Columns {
    kind: "*config.configContext",
    titles: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("CreatedAt", "CREATED"),
        ("UpdatedAt", "UPDATED"),
        ("Labels", "LABELS"),
    ],
    table: "{{.ID}}\t{{.Name}}\t{{.CreatedAt}}\t{{.UpdatedAt}}",
};

async fn run(session: &Session, command: ObjectCommand, word: &str) -> Result {
    let (path, columns, key) = match word {
        "secret" => ("secrets", &SECRETS, "secretFormat"),
        _ => ("configs", &CONFIGS, "configFormat"),
    };
    match command {
        ObjectCommand::Rm { names } => {
            session
                .each(&names, |name| Request::delete(&[path, name]))
                .await
        }
        ObjectCommand::Ls(args) => {
            let filters = Filters::new(&args.filter);
            let mut objects = session
                .api
                .list(Request::get(&[path]).filters(&filters))
                .await?;
            objects.sort_by(|a, b| human::natural(text(a, "/Spec/Name"), text(b, "/Spec/Name")));
            let now = Timestamp::now();
            let rows: Vec<Row> = objects
                .iter()
                .map(|object| row(object, word, now))
                .collect();
            let format = session.config.format(&args.format, args.quiet, key);
            table::print(&format, args.quiet, columns, &rows)
        }
        ObjectCommand::Inspect(args) if args.pretty || args.format == "pretty" => {
            if args.pretty && !args.format.is_empty() {
                return Err(CliError::message(
                    "--format is incompatible with human friendly format",
                ));
            }
            for name in &args.names {
                let object = session.api.json(Request::get(&[path, name])).await?;
                output::line(pretty(&object, word))?;
            }
            Ok(())
        }
        ObjectCommand::Inspect(args) => {
            inspect::print(&session.api, &args.names, &args.format, |name| {
                Request::get(&[path, name])
            })
            .await
        }
    }
}

fn row(object: &Value, word: &str, now: Timestamp) -> Row {
    let labels = &object["Spec"]["Labels"];
    let common = [
        ("ID", text(object, "/ID").into()),
        ("Name", text(object, "/Spec/Name").into()),
        ("CreatedAt", human::ago(&object["CreatedAt"], now).into()),
        ("UpdatedAt", human::ago(&object["UpdatedAt"], now).into()),
        ("Labels", human::labels(labels).into()),
    ];
    if word == "config" {
        return Row::new(common).with_labels(labels);
    }
    let [id, name, created, updated, all] = common;
    let driver = ("Driver", text(object, "/Spec/Driver/Name").into());
    Row::new([id, name, driver, created, updated, all]).with_labels(labels)
}

fn pretty(object: &Value, word: &str) -> String {
    let time = |key: &str| human::go_time(&object[key], jiff::tz::TimeZone::UTC);
    let mut page = format!(
        "ID:\t\t\t{}\nName:\t\t\t{}\n",
        text(object, "/ID"),
        text(object, "/Spec/Name")
    );
    let labels = object["Spec"]["Labels"].as_object();
    if let Some(labels) = labels.filter(|labels| !labels.is_empty()) {
        page.push_str("Labels:\n");
        for (key, value) in labels {
            let value = value.as_str().unwrap_or("");
            page.push_str(&format!(" - {key}={value}\n"));
        }
    }
    if word == "secret" {
        page.push_str(&format!(
            "Driver:\t\t\t{}\n",
            text(object, "/Spec/Driver/Name")
        ));
    }
    page.push_str(&format!(
        "Created at:            \t{}\nUpdated at:            \t{}",
        time("CreatedAt"),
        time("UpdatedAt")
    ));
    if word == "config" {
        let data = base64::engine::general_purpose::STANDARD.decode(text(object, "/Spec/Data"));
        let data = String::from_utf8_lossy(&data.unwrap_or_default()).into_owned();
        page.push_str(&format!("\nData:\n{data}"));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_have_a_driver_and_configs_have_none() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let object = json!({"ID": "id1", "CreatedAt": "2026-01-01T00:00:00Z",
            "UpdatedAt": "2026-01-01T00:00:57Z", "Spec": {"Name": "db", "Labels": {"a": "1"}}});
        assert_eq!(
            table::render("", false, &SECRETS, &[row(&object, "secret", now)]).unwrap(),
            "ID        NAME      DRIVER    CREATED              UPDATED\n\
             id1       db                  About a minute ago   3 seconds ago\n"
        );
        assert_eq!(
            table::render("", false, &CONFIGS, &[row(&object, "config", now)]).unwrap(),
            "ID        NAME      CREATED              UPDATED\n\
             id1       db        About a minute ago   3 seconds ago\n"
        );
    }
}
