//! `service logs`: each line after the name of its task and node.

use std::collections::HashMap;

use clap::Args;
use serde_json::Value;

use crate::{
    api::{Api, Request},
    error::{CliError, Result},
    json::{number, text},
    logs::{self, LogLine, Query},
    output::human,
    session::Session,
};

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Show extra details provided to logs
    #[arg(long)]
    details: bool,
    /// Follow log output
    #[arg(short, long)]
    follow: bool,
    /// Do not map IDs to Names in output
    #[arg(long)]
    no_resolve: bool,
    /// Do not include task IDs in output
    #[arg(long)]
    no_task_ids: bool,
    /// Do not truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Do not neatly format logs
    #[arg(long)]
    raw: bool,
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
    #[arg(hide = true, value_name = "SERVICE|TASK")]
    target: String,
}

pub(super) async fn run(session: &Session, args: &LogsArgs) -> Result {
    let api = &session.api;
    let (kind, tty, most) = match api.json(Request::get(&["services", &args.target])).await {
        Ok(service) => (
            "services",
            service["Spec"]["TaskTemplate"]["ContainerSpec"]["TTY"] == true,
            number(&service, "/Spec/Mode/Replicated/Replicas"),
        ),
        Err(error) if error.is_not_found() => {
            let task = api.json(Request::get(&["tasks", &args.target])).await;
            let task = task.map_err(|error| {
                if error.is_not_found() {
                    CliError::message(format!("no such task or service: {}", args.target))
                } else {
                    error
                }
            })?;
            let tty = task["Spec"]["ContainerSpec"]["TTY"] == true;
            ("tasks", tty, number(&task, "/Slot"))
        }
        Err(error) => return Err(error),
    };
    if tty && !args.raw {
        return Err(CliError::message(
            "tty service logs only supported with --raw",
        ));
    }
    let query = Query {
        follow: args.follow,
        timestamps: args.timestamps,
        details: args.details || !args.raw,
        since: &args.since,
        until: "",
        tail: &args.tail,
    };
    let request = query.request(&[kind, &args.target, "logs"])?;
    let mut names = TaskNames {
        api,
        args,
        digits: most.max(1).to_string().len(),
        known: HashMap::new(),
        objects: HashMap::new(),
    };
    let mut frames = logs::Frames::open(api, request).await?;
    while let Some(line) = frames.next().await? {
        if tty || args.raw {
            line.print()?;
        } else {
            let text = names.format(&line).await?;
            line.print_as(&text)?;
        }
    }
    Ok(())
}

/// Writes the task's name before a line, from the details that the daemon puts there.
struct TaskNames<'a> {
    api: &'a Api,
    args: &'a LogsArgs,
    /// Digits of the highest slot.
    digits: usize,
    known: HashMap<String, String>,
    objects: HashMap<(&'static str, String), String>,
}

impl TaskNames<'_> {
    async fn format(&mut self, line: &LogLine) -> Result<String> {
        let whole = line.text();
        let invalid = || CliError::message(format!("invalid context in log message: {whole}"));
        let (time, rest) = if self.args.timestamps {
            whole.split_once(' ').ok_or_else(invalid)?
        } else {
            ("", whole.as_ref())
        };
        let (details, message) = rest.split_once(' ').ok_or_else(invalid)?;
        let mut details: Vec<(String, String)> = details
            .split(',')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (logs::unescape(key), logs::unescape(value)))
            .collect();
        let mut take = |what: &str| {
            let key = format!("com.docker.swarm.{what}.id");
            let at = details.iter().position(|(name, _)| *name == key);
            at.map(|at| details.swap_remove(at).1)
                .ok_or_else(|| CliError::message(format!("missing {what} id in details: {rest}")))
        };
        let (node, service, task) = (take("node")?, take("service")?, take("task")?);
        let name = if let Some(name) = self.known.get(&task) {
            name.clone()
        } else {
            let name = self.name(&node, &service, &task).await?;
            self.known.insert(task, name.clone());
            name
        };
        let mut out = String::new();
        if self.args.timestamps {
            out.push_str(time);
            out.push(' ');
        }
        out.push_str(&name);
        out.push_str("    | ");
        if self.args.details {
            details.sort();
            let pairs: Vec<String> = details.iter().map(|(k, v)| format!("{k}={v}")).collect();
            out.push_str(&pairs.join(","));
            out.push(' ');
        }
        out.push_str(message);
        Ok(out)
    }

    async fn name(&mut self, node: &str, service: &str, task: &str) -> Result<String> {
        let service = self.resolve("services", service).await;
        let node = self.resolve("nodes", node).await;
        let found = self.api.json(Request::get(&["tasks", task])).await?;
        let slot = number(&found, "/Slot");
        let mut name = format!("{service}.{slot}");
        if !self.args.no_task_ids {
            name.push('.');
            name.push_str(&if self.args.no_trunc {
                task.to_owned()
            } else {
                human::short_id(task)
            });
        }
        let padding = self.digits.saturating_sub(slot.to_string().len());
        Ok(format!("{name}@{node}{}", " ".repeat(padding)))
    }

    async fn resolve(&mut self, kind: &'static str, id: &str) -> String {
        if self.args.no_resolve {
            return id.to_owned();
        }
        let key = (kind, id.to_owned());
        if let Some(name) = self.objects.get(&key) {
            return name.clone();
        }
        let object = self.api.json(Request::get(&[kind, id])).await;
        let object = object.unwrap_or(Value::Null);
        let names = [
            text(&object, "/Spec/Name"),
            text(&object, "/Description/Hostname"),
            id,
        ];
        let name = names.into_iter().find(|name| !name.is_empty());
        let name = name.unwrap_or(id).to_owned();
        self.objects.insert(key, name.clone());
        name
    }
}
