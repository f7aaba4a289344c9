//! `info`, `version`, `events`, `doctor`.

use clap::{Args, Subcommand};
use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Value, json};
use shoal_engine_api::client::API_VERSION;

use crate::{
    api::Request,
    error::{CliError, Result},
    inspect,
    json::{number, text},
    logs,
    opts::{Filter, Filters},
    output::{self, human},
    session::Session,
    template::Scope,
};

#[derive(Debug, Subcommand)]
pub(crate) enum SystemCommand {
    /// Get real time events from the server
    #[command(override_usage = "shoal system events [OPTIONS]")]
    Events(EventsArgs),
    /// Display system-wide information
    #[command(override_usage = "shoal system info [OPTIONS]")]
    Info(FormatArgs),
}

#[derive(Debug, Args)]
pub(crate) struct FormatArgs {
    /// Format output using a custom template: 'json' or a Go template
    #[arg(
        short,
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    format: String,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Filter output based on conditions provided
    #[arg(short, long, value_name = "filter")]
    filter: Vec<Filter>,
    /// Format output using a custom template: 'json' or a Go template
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    format: String,
    /// Show all events created since timestamp
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    since: String,
    /// Stream events until this timestamp
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    until: String,
}

pub(crate) async fn run(session: &Session, command: SystemCommand) -> Result {
    match command {
        SystemCommand::Events(args) => events(session, &args).await,
        SystemCommand::Info(args) => info(session, &args).await,
    }
}

pub(crate) async fn events(session: &Session, args: &EventsArgs) -> Result {
    let template = match args.format.as_str() {
        "" => None,
        "json" => Some(inspect::parse("{{json .}}")?),
        format => Some(inspect::parse(format)?),
    };
    let now = Timestamp::now();
    let request = Request::get(&["events"])
        .query("since", logs::point_in_time(&args.since, now, "since")?)
        .query("until", logs::point_in_time(&args.until, now, "until")?)
        .filters(&Filters::new(&args.filter));
    let mut lines = session.api.lines(request).await?;
    while let Some(event) = lines.next().await? {
        output::line(match &template {
            Some(template) => template.execute(&event, Scope::default())?,
            None => event_line(&event, TimeZone::system()),
        })?;
    }
    Ok(())
}

/// `2026-01-02T15:04:05.000000000Z service create ID (name=web)`.
fn event_line(event: &Value, zone: TimeZone) -> String {
    let nanos = event["timeNano"].as_i64().unwrap_or(0);
    let time = if nanos == 0 {
        human::timestamp(&event["time"])
    } else {
        Timestamp::from_nanosecond(nanos.into()).ok()
    };
    let time = time.map_or_else(String::new, |time| {
        let zoned = time.to_zoned(zone);
        let offset = if zoned.offset().seconds() == 0 {
            "Z".to_owned()
        } else {
            zoned.strftime("%:z").to_string()
        };
        format!("{}{offset} ", zoned.strftime("%Y-%m-%dT%H:%M:%S.%9f"))
    });
    let mut line = format!(
        "{time}{} {} {}",
        text(event, "/Type"),
        text(event, "/Action"),
        text(event, "/Actor/ID")
    );
    let attributes: Vec<String> = event["Actor"]["Attributes"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or("")))
        .collect();
    if !attributes.is_empty() {
        line.push_str(&format!(" ({})", attributes.join(", ")));
    }
    line
}

fn client_version() -> Value {
    json!({
        "Platform": {"Name": "Shoal"},
        "Version": env!("CARGO_PKG_VERSION"),
        "ApiVersion": API_VERSION,
        "DefaultAPIVersion": API_VERSION,
        "Os": std::env::consts::OS,
        "Arch": architecture(),
        "Context": "default",
    })
}

/// Go's name of this processor.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Shows what is known of the client even when no daemon answers, and fails all the same.
pub(crate) async fn version(session: &Session, args: &FormatArgs) -> Result {
    let server = session.api.json(Request::get(&["version"])).await;
    let (server, error) = match server {
        Ok(server) => (server, None),
        Err(error) => (Value::Null, Some(error)),
    };
    let both = json!({"Client": client_version(), "Server": server});
    match args.format.as_str() {
        "" => output::write(version_page(&both))?,
        "json" => output::line(both.to_string())?,
        format => {
            let fields = with_docker_names(both);
            output::line(inspect::parse(format)?.execute(&fields, Scope::default())?)?;
        }
    }
    error.map_or(Ok(()), Err)
}

/// Docker's templates go by the names of Go's fields, where its JSON has others.
fn with_docker_names(mut both: Value) -> Value {
    for side in ["Client", "Server"] {
        let version = both[side]["ApiVersion"].clone();
        if let Some(fields) = both[side].as_object_mut() {
            fields.insert("APIVersion".to_owned(), version);
        }
    }
    both
}

fn version_page(both: &Value) -> String {
    let client = &both["Client"];
    let mut page = format!("Client: {}\n", text(client, "/Platform/Name"));
    let mut line = |title: &str, value: &str| {
        if !value.is_empty() {
            page.push_str(&format!(" {title:<18}{value}\n"));
        }
    };
    line("Version:", text(client, "/Version"));
    line("API version:", text(client, "/ApiVersion"));
    let platform = format!("{}/{}", text(client, "/Os"), text(client, "/Arch"));
    line("OS/Arch:", &platform);
    line("Context:", text(client, "/Context"));
    let server = &both["Server"];
    if server.is_null() {
        return page;
    }
    let name = text(server, "/Platform/Name");
    page.push_str(&format!(
        "\nServer:{}{name}\n",
        if name.is_empty() { "" } else { " " }
    ));
    let engine = json!([{"Name": "Engine", "Version": server["Version"], "Details": {
        "ApiVersion": server["ApiVersion"], "MinAPIVersion": server["MinAPIVersion"],
        "Os": server["Os"], "Arch": server["Arch"], "GitCommit": server["GitCommit"],
        "BuildTime": server["BuildTime"], "KernelVersion": server["KernelVersion"]}}]);
    let components = match server["Components"].as_array() {
        Some(components) if !components.is_empty() => &server["Components"],
        _ => &engine,
    };
    for component in components.as_array().into_iter().flatten() {
        let details = &component["Details"];
        page.push_str(&format!(" {}:\n", text(component, "/Name")));
        let mut line = |title: &str, value: String| {
            if !value.is_empty() {
                page.push_str(&format!("  {title:<17}{value}\n"));
            }
        };
        let detail = |key: &str| details[key].as_str().unwrap_or("").to_owned();
        line("Version:", text(component, "/Version").to_owned());
        let minimum = detail("MinAPIVersion");
        let api = detail("ApiVersion");
        if !api.is_empty() {
            line("API version:", format!("{api} (minimum version {minimum})"));
        }
        line("Git commit:", detail("GitCommit"));
        line("Built:", detail("BuildTime"));
        if !detail("Os").is_empty() {
            line("OS/Arch:", format!("{}/{}", detail("Os"), detail("Arch")));
        }
        line("Kernel:", detail("KernelVersion"));
    }
    page
}

pub(crate) async fn info(session: &Session, args: &FormatArgs) -> Result {
    let server = session.api.bytes(Request::get(&["info"])).await;
    if !args.format.is_empty() {
        let server = String::from_utf8_lossy(&server?).into_owned();
        return match args.format.as_str() {
            "json" => output::line(server.trim()),
            format => inspect::show(&[server], format),
        };
    }
    output::line(format!(
        "Client: Shoal\n Version:    {}\n Context:    default\n Debug Mode: false\n\nServer:",
        env!("CARGO_PKG_VERSION")
    ))?;
    let info: Value = serde_json::from_slice(&server?)
        .map_err(|error| CliError::message(format!("the daemon's answer is not JSON: {error}")))?;
    output::write(info_page(&info))?;
    output::warnings(&info);
    Ok(())
}

fn info_page(info: &Value) -> String {
    let mut page = String::new();
    let mut line = |title: &str, value: String| {
        page.push_str(&format!("{title} {value}"));
        page.truncate(page.trim_end_matches(' ').len());
        page.push('\n');
    };
    let count = |key: &str| info[key].as_i64().unwrap_or(0).to_string();
    let words = |value: &Value| {
        let all: Vec<&str> = value
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        all.join(" ")
    };
    line(" Containers:", count("Containers"));
    line("  Running:", count("ContainersRunning"));
    line("  Paused:", count("ContainersPaused"));
    line("  Stopped:", count("ContainersStopped"));
    line(" Images:", count("Images"));
    let optional = [
        (" Server Version:", "ServerVersion"),
        (" Storage Driver:", "Driver"),
    ];
    for (title, key) in optional {
        if !text(info, &format!("/{key}")).is_empty() {
            line(title, info[key].as_str().unwrap_or("").to_owned());
        }
    }
    for pair in info["DriverStatus"].as_array().into_iter().flatten() {
        line(
            &format!("  {}:", text(pair, "/0")),
            text(pair, "/1").to_owned(),
        );
    }
    let optional = [
        (" Logging Driver:", "LoggingDriver"),
        (" Cgroup Driver:", "CgroupDriver"),
        (" Cgroup Version:", "CgroupVersion"),
    ];
    for (title, key) in optional {
        if !text(info, &format!("/{key}")).is_empty() {
            line(title, info[key].as_str().unwrap_or("").to_owned());
        }
    }
    line(" Plugins:", String::new());
    for kind in ["Volume", "Network", "Log"] {
        line(&format!("  {kind}:"), words(&info["Plugins"][kind]));
    }
    let swarm = &info["Swarm"];
    line(" Swarm:", text(swarm, "/LocalNodeState").to_owned());
    if !matches!(text(swarm, "/LocalNodeState"), "inactive" | "locked" | "") {
        line("  NodeID:", text(swarm, "/NodeID").to_owned());
        if !text(swarm, "/Error").is_empty() {
            line("  Error:", text(swarm, "/Error").to_owned());
        }
        let manager = swarm["ControlAvailable"] == true;
        line("  Is Manager:", manager.to_string());
        let cluster = &swarm["Cluster"];
        if manager && cluster.is_object() {
            line("  ClusterID:", text(cluster, "/ID").to_owned());
            line("  Managers:", number(swarm, "/Managers").to_string());
            line("  Nodes:", number(swarm, "/Nodes").to_string());
            let pools = words(&cluster["DefaultAddrPool"]);
            if !pools.is_empty() {
                line("  Default Address Pool:", pools);
                line("  SubnetSize:", number(cluster, "/SubnetSize").to_string());
            }
            line(
                "  Data Path Port:",
                number(cluster, "/DataPathPort").to_string(),
            );
        }
        let heartbeat = number(cluster, "/Spec/Dispatcher/HeartbeatPeriod");
        if manager && heartbeat > 0 {
            line("  Dispatcher:", String::new());
            let seconds = i64::try_from(heartbeat / 1_000_000_000).unwrap_or(i64::MAX);
            line("   Heartbeat Period:", human::duration(seconds));
        }
        line("  Node Address:", text(swarm, "/NodeAddr").to_owned());
        let managers: Vec<String> = swarm["RemoteManagers"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|peer| text(peer, "/Addr").to_owned())
            .collect();
        if !managers.is_empty() {
            line("  Manager Addresses:", String::new());
        }
        for address in managers {
            line("  ", address);
        }
    }
    let runtimes = info["Runtimes"].as_object();
    let runtimes: Vec<&str> = runtimes
        .into_iter()
        .flatten()
        .map(|(name, _)| name.as_str())
        .collect();
    if !runtimes.is_empty() {
        line(" Runtimes:", runtimes.join(" "));
        line(
            " Default Runtime:",
            text(info, "/DefaultRuntime").to_owned(),
        );
    }
    let optional = [
        (" Kernel Version:", "KernelVersion"),
        (" Operating System:", "OperatingSystem"),
        (" OSType:", "OSType"),
        (" Architecture:", "Architecture"),
    ];
    for (title, key) in optional {
        if !text(info, &format!("/{key}")).is_empty() {
            line(title, info[key].as_str().unwrap_or("").to_owned());
        }
    }
    line(" CPUs:", count("NCPU"));
    line(
        " Total Memory:",
        human::binary_size(info["MemTotal"].as_f64().unwrap_or(0.0)),
    );
    for (title, key) in [
        (" Name:", "Name"),
        (" ID:", "ID"),
        (" Docker Root Dir:", "DockerRootDir"),
    ] {
        line(title, info[key].as_str().unwrap_or("").to_owned());
    }
    line(" Debug Mode:", (info["Debug"] == true).to_string());
    let labels = info["Labels"]
        .as_array()
        .filter(|labels| !labels.is_empty());
    if let Some(labels) = labels {
        line(" Labels:", String::new());
        for label in labels {
            line(" ", format!(" {}", label.as_str().unwrap_or("")));
        }
    }
    line(
        " Experimental:",
        (info["ExperimentalBuild"] == true).to_string(),
    );
    line(
        " Live Restore Enabled:",
        (info["LiveRestoreEnabled"] == true).to_string(),
    );
    page.push('\n');
    page
}

/// `shoal doctor`: what differs between the state that is wanted on the node and the kernel's. Nothing is good news.
pub(crate) async fn doctor(session: &Session, args: &FormatArgs) -> Result {
    let answer = session.api.bytes(Request::get(&["doctor"])).await?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    if !args.format.is_empty() {
        return match args.format.as_str() {
            "json" => output::line(answer.trim()),
            format => inspect::show(&[answer], format),
        };
    }
    let report: Value = serde_json::from_str(&answer)
        .map_err(|error| CliError::message(format!("the daemon's answer is not JSON: {error}")))?;
    output::warnings(&report);
    let findings = report["Findings"].as_array().map_or(&[][..], Vec::as_slice);
    if findings.is_empty() {
        return output::line("The kernel is as the cluster wants it.");
    }
    for finding in findings {
        output::line(finding.as_str().unwrap_or_default())?;
    }
    let plural = if findings.len() == 1 { "" } else { "s" };
    Err(CliError::message(format!(
        "{} difference{plural} found",
        findings.len()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_read_as_in_docker() {
        let event = json!({"Type": "service", "Action": "create", "timeNano": 1_767_225_600_000_000_005_i64,
            "Actor": {"ID": "s1", "Attributes": {"name": "web"}}});
        assert_eq!(
            event_line(&event, TimeZone::UTC),
            "2026-01-01T00:00:00.000000005Z service create s1 (name=web)"
        );
    }
}
