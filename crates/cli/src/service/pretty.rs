//! `service inspect --pretty`.

use jiff::Timestamp;
use serde_json::Value;

use super::list;
use crate::{
    api::Request,
    error::Result,
    json::{number, text},
    opts::GoDuration,
    output::{self, human},
    session::Session,
};

pub(super) async fn run(session: &Session, services: &[String]) -> Result {
    for name in services {
        let request = Request::get(&["services", name]).query("insertDefaults", "true");
        let service = session.api.json(request).await?;
        let mut networks = Vec::new();
        for network in items(&service, "/Spec/TaskTemplate/Networks") {
            let id = text(network, "/Target");
            let found = session.api.json(Request::get(&["networks", id])).await;
            let found = found.unwrap_or(Value::Null);
            let name = text(&found, "/Name");
            networks.push(if name.is_empty() {
                id.to_owned()
            } else {
                name.to_owned()
            });
        }
        output::line(show(&service, &networks, Timestamp::now()))?;
    }
    Ok(())
}

fn items<'a>(value: &'a Value, path: &str) -> impl Iterator<Item = &'a Value> {
    value
        .pointer(path)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// Lines of `title`, a tab or spaces, and a value; empty values have no line.
struct Page(String);

impl Page {
    fn line(&mut self, text: impl AsRef<str>) {
        self.0.push('\n');
        self.0.push_str(text.as_ref());
    }

    fn field(&mut self, title: &str, value: impl AsRef<str>) {
        if !value.as_ref().is_empty() {
            self.line(format!("{title}{}", value.as_ref()));
        }
    }

    /// `title` and, below it, the pairs of a map.
    fn map(&mut self, title: &str, map: &Value, separator: &str, indent: &str) {
        let Some(map) = map.as_object().filter(|map| !map.is_empty()) else {
            return;
        };
        self.line(title);
        for (key, value) in map {
            let value = value.as_str().unwrap_or("");
            let separator = if value.is_empty() { "" } else { separator };
            self.line(format!("{indent}{key}{separator}{value}"));
        }
    }
}

fn show(service: &Value, networks: &[String], now: Timestamp) -> String {
    let mut page = Page(String::new());
    page.line(format!("ID:\t\t{}", text(service, "/ID")));
    page.line(format!("Name:\t\t{}", text(service, "/Spec/Name")));
    page.map("Labels:", &service["Spec"]["Labels"], "=", " ");
    match list::mode(service) {
        "global" => page.line("Service Mode:\tGlobal"),
        "replicated" => {
            page.line("Service Mode:\tReplicated");
            let replicas = number(service, "/Spec/Mode/Replicated/Replicas");
            page.line(format!(" Replicas:\t{replicas}"));
        }
        other => page.line(format!("Service Mode:\t{}", human::capitalized(other))),
    }
    update_status(&mut page, &service["UpdateStatus"], now);
    let task = &service["Spec"]["TaskTemplate"];
    placement(&mut page, &task["Placement"]);
    update_config(&mut page, "Update", &service["Spec"]["UpdateConfig"]);
    update_config(&mut page, "Rollback", &service["Spec"]["RollbackConfig"]);
    container(&mut page, &task["ContainerSpec"]);
    let driver = &task["LogDriver"];
    if driver.is_object() {
        page.line("Log Driver:");
        page.field(" Name:\t\t", text(driver, "/Name"));
        page.map(" LogOpts:", &driver["Options"], ":       ", "  ");
    }
    resources(&mut page, &task["Resources"]);
    if !networks.is_empty() {
        page.line(format!("Networks: {} ", networks.join(" ")));
    }
    page.line(format!(
        "Endpoint Mode:\t{}",
        text(service, "/Spec/EndpointSpec/Mode")
    ));
    let mut ports = items(service, "/Endpoint/Ports").peekable();
    if ports.peek().is_some() {
        page.line("Ports:");
    }
    while let Some(port) = ports.next() {
        page.line(format!(
            " PublishedPort = {}",
            number(port, "/PublishedPort")
        ));
        page.line(format!("  Protocol = {}", text(port, "/Protocol")));
        page.line(format!("  TargetPort = {}", number(port, "/TargetPort")));
        // Docker's template has a space behind the last.
        let space = if ports.peek().is_some() { "" } else { " " };
        page.line(format!(
            "  PublishMode = {}{space}",
            text(port, "/PublishMode")
        ));
    }
    health(&mut page, &task["ContainerSpec"]["Healthcheck"]);
    page.line("");
    page.0
}

fn update_status(page: &mut Page, status: &Value, now: Timestamp) {
    let state = text(status, "/State");
    if state.is_empty() {
        return;
    }
    page.line("UpdateStatus:");
    page.line(format!(" State:\t\t{state}"));
    page.field(" Started:\t", human::ago(&status["StartedAt"], now));
    if state == "completed" {
        page.field(" Completed:\t", human::ago(&status["CompletedAt"], now));
    }
    page.line(format!(" Message:\t{}", text(status, "/Message")));
}

fn placement(page: &mut Page, placement: &Value) {
    page.line("Placement:");
    let words = |path: &str, item: fn(&Value) -> String| {
        let all: Vec<String> = items(placement, path).map(item).collect();
        if all.is_empty() {
            String::new()
        } else {
            format!("[{}]", all.join(" "))
        }
    };
    let constraint = |item: &Value| item.as_str().unwrap_or("").to_owned();
    page.field(" Constraints:\t", words("/Constraints", constraint));
    let spread = |item: &Value| format!("spread={}", text(item, "/Spread/SpreadDescriptor"));
    page.field(" Preferences:   ", words("/Preferences", spread));
    let most = number(placement, "/MaxReplicas");
    if most > 0 {
        page.line(format!(" Max Replicas Per Node:   {most}"));
    }
}

fn update_config(page: &mut Page, what: &str, config: &Value) {
    if !config.is_object() {
        return;
    }
    let nanos = |path: &str| match config.pointer(path).and_then(Value::as_i64) {
        Some(nanos) if nanos > 0 => GoDuration(nanos).to_string(),
        _ => String::new(),
    };
    page.line(format!("{what}Config:"));
    page.line(format!(" Parallelism:\t{}", number(config, "/Parallelism")));
    page.field(" Delay:\t\t", nanos("/Delay"));
    page.line(format!(" On failure:\t{}", text(config, "/FailureAction")));
    page.field(" Monitoring Period: ", nanos("/Monitor"));
    let most = config["MaxFailureRatio"].as_f64().unwrap_or(0.0);
    page.line(format!(" Max failure ratio: {most}"));
    let title = format!(" {what} order:");
    page.line(format!("{title:<20}{}", text(config, "/Order")));
}

fn container(page: &mut Page, spec: &Value) {
    let strings = |path: &str, separator: &str| {
        let all: Vec<&str> = items(spec, path).filter_map(Value::as_str).collect();
        all.join(separator)
    };
    page.line("ContainerSpec:");
    page.line(format!(" Image:\t\t{}", text(spec, "/Image")));
    for (title, path) in [(" Args:\t\t", "/Args"), (" Env:\t\t", "/Env")] {
        let words = strings(path, " ");
        if !words.is_empty() {
            page.line(format!("{title}{words} "));
        }
    }
    page.field(" Dir:\t\t", text(spec, "/Dir"));
    if let Some(init) = spec["Init"].as_bool() {
        page.line(format!(" Init:\t\t{init}"));
    }
    page.field(" User: ", text(spec, "/User"));
    let (add, drop) = (
        strings("/CapabilityAdd", ", "),
        strings("/CapabilityDrop", ", "),
    );
    if !(add.is_empty() && drop.is_empty()) {
        page.line("Capabilities:");
        page.field(" Add: ", add);
        page.field(" Drop: ", drop);
    }
    page.map("SysCtls:", &spec["Sysctls"], ": ", " ");
    let mut limits = items(spec, "/Ulimits").peekable();
    if limits.peek().is_some() {
        page.line("Ulimits:");
    }
    for limit in limits {
        page.line(format!(
            " {}: {}:{}",
            text(limit, "/Name"),
            limit["Soft"],
            limit["Hard"]
        ));
    }
    let mut mounts = items(spec, "/Mounts").peekable();
    if mounts.peek().is_some() {
        page.line("Mounts:");
    }
    for mount in mounts {
        page.line(format!(" Target:\t{}", text(mount, "/Target")));
        page.line(format!("  Source:\t{}", text(mount, "/Source")));
        page.line(format!("  ReadOnly:\t{}", mount["ReadOnly"] == true));
        page.line(format!("  Type:\t\t{}", text(mount, "/Type")));
    }
    for (title, path, name) in [
        ("Configs:", "/Configs", "/ConfigName"),
        ("Secrets:", "/Secrets", "/SecretName"),
    ] {
        let mut files = items(spec, path).peekable();
        if files.peek().is_some() {
            page.line(title);
        }
        for file in files {
            page.line(format!(" Target:\t{}", text(file, "/File/Name")));
            page.line(format!("  Source:\t{}", text(file, name)));
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a processor count or a size of four digits is shown"
)]
fn resources(page: &mut Page, resources: &Value) {
    let groups = [("Reservations", " Reservations:"), ("Limits", " Limits:")];
    let used = |group: &str| {
        ["NanoCPUs", "MemoryBytes", "Pids"]
            .iter()
            .any(|key| number(&resources[group], &format!("/{key}")) > 0)
    };
    if groups.iter().any(|(group, _)| used(group)) {
        page.line("Resources:");
    }
    for (group, title) in groups {
        if !used(group) {
            continue;
        }
        page.line(title);
        let values = &resources[group];
        let (cpu, memory) = (number(values, "/NanoCPUs"), number(values, "/MemoryBytes"));
        let pids = number(values, "/Pids");
        if cpu > 0 {
            page.line(format!("  CPU:\t\t{}", cpu as f64 / 1e9));
        }
        if memory > 0 {
            page.line(format!("  Memory:\t{}", human::binary_size(memory as f64)));
        }
        if pids > 0 {
            page.line(format!("  PIDs:\t\t{pids}"));
        }
    }
}

fn health(page: &mut Page, check: &Value) {
    if !check.is_object() {
        return;
    }
    let nanos = |path: &str| {
        GoDuration(check.pointer(path).and_then(Value::as_i64).unwrap_or(0)).to_string()
    };
    page.line(" Healthcheck:");
    page.line(format!("  Interval = {}", nanos("/Interval")));
    page.line(format!("  Retries = {}", number(check, "/Retries")));
    page.line(format!("  StartPeriod =\t{}", nanos("/StartPeriod")));
    page.line(format!("  Timeout =\t{}", nanos("/Timeout")));
    let mut tests = items(check, "/Test").peekable();
    if tests.peek().is_some() {
        page.line("  Tests:");
    }
    for test in tests {
        page.line(format!("\t Test = {}", test.as_str().unwrap_or("")));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_reads_as_in_docker() {
        let service = json!({"ID": "s1", "Endpoint": {"Ports": [
                {"PublishedPort": 8080, "TargetPort": 80, "Protocol": "tcp", "PublishMode": "ingress"}]},
            "Spec": {"Name": "web", "Labels": {"a": "1"}, "Mode": {"Replicated": {"Replicas": 2}},
                "UpdateConfig": {"Parallelism": 1, "FailureAction": "pause", "Monitor": 5_000_000_000_i64,
                    "MaxFailureRatio": 0, "Order": "stop-first"},
                "EndpointSpec": {"Mode": "vip"},
                "TaskTemplate": {"Placement": {"Constraints": ["node.role==worker"]},
                    "Resources": {"Limits": {"MemoryBytes": 67_108_864, "NanoCPUs": 500_000_000}},
                    "ContainerSpec": {"Image": "nginx:1", "Args": ["a", "b"], "Init": false}}}});
        assert_eq!(
            show(&service, &["front".into()], Timestamp::UNIX_EPOCH),
            "\nID:\t\ts1\nName:\t\tweb\nLabels:\n a=1\nService Mode:\tReplicated\n Replicas:\t2\nPlacement:\n Constraints:\t[node.role==worker]\nUpdateConfig:\n Parallelism:\t1\n On failure:\tpause\n Monitoring Period: 5s\n Max failure ratio: 0\n Update order:      stop-first\nContainerSpec:\n Image:\t\tnginx:1\n Args:\t\ta b \n Init:\t\tfalse\nResources:\n Limits:\n  CPU:\t\t0.5\n  Memory:\t64MiB\nNetworks: front \nEndpoint Mode:\tvip\nPorts:\n PublishedPort = 8080\n  Protocol = tcp\n  TargetPort = 80\n  PublishMode = ingress \n"
        );
    }
}
