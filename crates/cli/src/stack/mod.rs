//! `shoal stack …`: services with their networks, secrets and configs, as Compose files describe them.
//!
//! A stack is nothing to the daemon: its objects have a label with its name, and their names begin with it.

mod compose;
mod convert;
mod deploy;

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde_json::Value;

use convert::NAMESPACE;

use crate::{
    api::Request,
    error::{CliError, Result},
    json::text,
    opts::{Filter, Filters},
    output::{self, Columns, Row, human, progress, table},
    service::{self, TaskListArgs},
    session::Session,
};

#[derive(Debug, Subcommand)]
pub(crate) enum StackCommand {
    /// Outputs the final config file, after doing merges and interpolations
    #[command(override_usage = "shoal stack config [OPTIONS]")]
    Config {
        /// Path to a Compose file, or "-" to read from stdin
        #[arg(
            short,
            long = "compose-file",
            value_name = "stringSlice",
            value_delimiter = ','
        )]
        compose_file: Vec<String>,
        /// Skip interpolation and output only merged config
        #[arg(long)]
        skip_interpolation: bool,
    },
    /// Deploy a new stack or update an existing stack
    #[command(
        visible_alias = "up",
        override_usage = "shoal stack deploy [OPTIONS] STACK"
    )]
    Deploy(deploy::DeployArgs),
    /// List stacks
    #[command(visible_alias = "list", override_usage = "shoal stack ls [OPTIONS]")]
    Ls {
        /// Format output: 'table', 'table TEMPLATE', 'json' or a Go template
        #[arg(
            long,
            value_name = "string",
            default_value = "",
            hide_default_value = true
        )]
        format: String,
    },
    /// List the tasks in the stack
    #[command(override_usage = "shoal stack ps [OPTIONS] STACK")]
    Ps {
        #[command(flatten)]
        tasks: TaskListArgs,
        #[arg(hide = true, value_name = "STACK")]
        stack: String,
    },
    /// Remove one or more stacks
    #[command(
        visible_aliases = ["remove", "down"],
        override_usage = "shoal stack rm [OPTIONS] STACK [STACK...]"
    )]
    Rm(RemoveArgs),
    /// List the services in the stack
    #[command(override_usage = "shoal stack services [OPTIONS] STACK")]
    Services {
        #[command(flatten)]
        list: service::ListArgs,
        #[arg(hide = true, value_name = "STACK")]
        stack: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// Do not wait for stack removal (default true)
    #[arg(short, long, value_name = "bool", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    detach: Option<bool>,
    #[arg(hide = true, required = true, value_name = "STACK")]
    stacks: Vec<String>,
}

pub(crate) async fn run(session: &Session, command: StackCommand) -> Result {
    match command {
        StackCommand::Config {
            compose_file,
            skip_interpolation,
        } => output::write(compose::load(&compose_file, !skip_interpolation)?.to_yaml()),
        StackCommand::Deploy(args) => deploy::run(session, &args).await,
        StackCommand::Ls { format } => ls(session, &format).await,
        StackCommand::Ps { tasks, stack } => ps(session, &stack, &tasks).await,
        StackCommand::Rm(args) => rm(session, &args).await,
        StackCommand::Services { list, stack } => services(session, &stack, &list).await,
    }
}

fn check_name(stack: &str) -> Result {
    let blank = |c: char| c.is_whitespace() || c == '"' || c == '\'';
    if stack.trim_matches(blank).is_empty() {
        return Err(CliError::message(format!("invalid stack name: {stack:?}")));
    }
    Ok(())
}

/// What selects the objects of a stack.
fn stack_filter(stack: &str) -> Filters {
    Filters::default().with("label", &format!("{NAMESPACE}={stack}"))
}

const COLUMNS: Columns = Columns {
    kind: "*stack.stackContext",
    titles: &[("Name", "NAME"), ("Services", "SERVICES")],
    table: "{{.Name}}\t{{.Services}}",
};

async fn ls(session: &Session, format: &str) -> Result {
    let filters = Filters::default().with("label", NAMESPACE);
    let services = session
        .api
        .list(Request::get(&["services"]).filters(&filters))
        .await?;
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for service in &services {
        let stack = service["Spec"]["Labels"][NAMESPACE].as_str();
        *counts.entry(stack.unwrap_or_default()).or_default() += 1;
    }
    let mut stacks: Vec<(&str, u64)> = counts.into_iter().collect();
    stacks.sort_by(|(a, _), (b, _)| human::natural(a, b));
    let row = |(stack, services): &(&str, u64)| {
        Row::new([
            ("Name", (*stack).into()),
            ("Services", services.to_string().into()),
        ])
    };
    let rows: Vec<Row> = stacks.iter().map(row).collect();
    table::print(format, false, &COLUMNS, &rows)
}

async fn ps(session: &Session, stack: &str, args: &TaskListArgs) -> Result {
    check_name(stack)?;
    let mut filters = Filters::new(&args.filter);
    filters.add("label", &format!("{NAMESPACE}={stack}"));
    let request = Request::get(&["tasks"]).filters(&filters);
    let tasks = session.api.list(request).await?;
    if tasks.is_empty() {
        return Err(CliError::message(format!(
            "nothing found in stack: {stack}"
        )));
    }
    service::print_tasks(session, tasks, args).await
}

async fn services(session: &Session, stack: &str, args: &service::ListArgs) -> Result {
    check_name(stack)?;
    let label = format!("label={NAMESPACE}={stack}");
    let label: Filter = label.parse().map_err(CliError::Value)?;
    let services = service::list(session, args, &[label]).await?;
    if services.is_empty() {
        output::note(format!("Nothing found in stack: {stack}"));
        return Ok(());
    }
    service::print_list(session, args, &services)
}

/// The kinds of objects that a stack has, in the order in which they are removed.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Service,
    Secret,
    Config,
    Network,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Service, Self::Secret, Self::Config, Self::Network];

    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Service => ("service", "services"),
            Self::Secret => ("secret", "secrets"),
            Self::Config => ("config", "configs"),
            Self::Network => ("network", "networks"),
        }
    }
}

async fn rm(session: &Session, args: &RemoveArgs) -> Result {
    for stack in &args.stacks {
        check_name(stack)?;
    }
    let mut errors = Vec::new();
    for stack in &args.stacks {
        let mut found = Vec::new();
        for kind in Kind::ALL {
            let request = Request::get(&[kind.words().1]).filters(&stack_filter(stack));
            found.push((kind, session.api.list(request).await?));
        }
        if found.iter().all(|(_, objects)| objects.is_empty()) {
            output::note(format!("Nothing found in stack: {stack}"));
            continue;
        }
        let mut removed = true;
        for (kind, objects) in found {
            removed &= remove(session, kind, objects).await?;
        }
        if !removed {
            errors.push(CliError::message(format!(
                "failed to remove some resources from stack: {stack}"
            )));
        } else if !args.detach.unwrap_or(true) {
            wait_until_ended(session, stack).await?;
        }
    }
    CliError::all(errors)
}

/// Removes objects by name and says so; whether all could be removed.
async fn remove(session: &Session, kind: Kind, mut objects: Vec<Value>) -> Result<bool> {
    let (word, path) = kind.words();
    let name = |object: &Value| match text(object, "/Spec/Name") {
        "" => text(object, "/Name").to_owned(),
        name => name.to_owned(),
    };
    let id = |object: &Value| match text(object, "/ID") {
        "" => text(object, "/Id").to_owned(),
        id => id.to_owned(),
    };
    objects.sort_by_key(name);
    let mut all = true;
    for object in &objects {
        output::line(format!("Removing {word} {}", name(object)))?;
        let id = id(object);
        match session.api.done(Request::delete(&[path, &id])).await {
            Ok(()) => {}
            Err(error @ CliError::Refused { .. }) => {
                all = false;
                output::note(format!("Failed to remove {word} {id}: {error}"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// Waits until no task of the stack runs any more.
async fn wait_until_ended(session: &Session, stack: &str) -> Result {
    loop {
        let request = Request::get(&["tasks"]).filters(&stack_filter(stack));
        let tasks = session.api.list(request).await?;
        let ended = |task: &Value| {
            let state = text(task, "/Status/State");
            matches!(
                state,
                "complete" | "shutdown" | "failed" | "rejected" | "remove" | "orphaned"
            )
        };
        if tasks.iter().all(ended) {
            return Ok(());
        }
        tokio::time::sleep(progress::POLL).await;
    }
}
