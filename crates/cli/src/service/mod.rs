//! `shoal service …`.

mod args;
mod converge;
mod list;
mod logs;
mod lookup;
mod pretty;
mod ps;
mod spec;
mod update;

use clap::{Args, Subcommand};
use serde_json::Value;

use crate::{
    api::Request,
    error::{CliError, Result},
    inspect,
    json::{number, text},
    opts::reference::Reference,
    output,
    session::Session,
};

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Create a new service
    Create(Box<args::CreateArgs>),
    /// Display detailed information on one or more services
    #[command(override_usage = "shoal service inspect [OPTIONS] SERVICE [SERVICE...]")]
    Inspect(InspectArgs),
    /// Fetch the logs of a service or task
    #[command(override_usage = "shoal service logs [OPTIONS] SERVICE|TASK")]
    Logs(logs::LogsArgs),
    /// List services
    #[command(visible_alias = "list", override_usage = "shoal service ls [OPTIONS]")]
    Ls(list::ListArgs),
    /// List the tasks of one or more services
    #[command(override_usage = "shoal service ps [OPTIONS] SERVICE [SERVICE...]")]
    Ps(PsArgs),
    /// Remove one or more services
    #[command(
        visible_alias = "remove",
        override_usage = "shoal service rm SERVICE [SERVICE...]"
    )]
    Rm {
        #[arg(hide = true, required = true, value_name = "SERVICE")]
        services: Vec<String>,
    },
    /// Revert changes to a service's configuration
    #[command(override_usage = "shoal service rollback [OPTIONS] SERVICE")]
    Rollback(RollbackArgs),
    /// Scale one or multiple replicated services
    #[command(override_usage = "shoal service scale SERVICE=REPLICAS [SERVICE=REPLICAS...]")]
    Scale(ScaleArgs),
    /// Update a service
    Update(Box<args::UpdateArgs>),
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
    #[arg(hide = true, required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    #[command(flatten)]
    tasks: ps::TaskListArgs,
    #[arg(hide = true, required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// Exit immediately instead of waiting for the service to converge
    #[arg(short, long)]
    detach: bool,
    /// Suppress progress output
    #[arg(short, long)]
    quiet: bool,
    #[arg(hide = true, value_name = "SERVICE")]
    service: String,
}

#[derive(Debug, Args)]
pub(crate) struct ScaleArgs {
    /// Exit immediately instead of waiting for the service to converge
    #[arg(short, long)]
    detach: bool,
    #[arg(hide = true, required = true, value_name = "SERVICE=REPLICAS")]
    scales: Vec<String>,
}

pub(crate) use converge::wait;
pub(crate) use list::{ListArgs, list, print as print_list};
pub(crate) use lookup::{References, pin_image, references, runtime_config};
pub(crate) use ps::{TaskListArgs, print_tasks};
pub(crate) use spec::privileges;

pub(crate) async fn run(session: &Session, command: ServiceCommand) -> Result {
    match command {
        ServiceCommand::Create(args) => create(session, &args).await,
        ServiceCommand::Inspect(args) => inspect_services(session, &args).await,
        ServiceCommand::Logs(args) => logs::run(session, &args).await,
        ServiceCommand::Ls(args) => list::run(session, &args).await,
        ServiceCommand::Ps(args) => ps::run(session, &args.services, &args.tasks).await,
        ServiceCommand::Rm { services } => {
            session
                .each(&services, |service| Request::delete(&["services", service]))
                .await
        }
        ServiceCommand::Rollback(args) => rollback(session, &args).await,
        ServiceCommand::Scale(args) => scale(session, &args).await,
        ServiceCommand::Update(args) => update(session, &args).await,
    }
}

async fn create(session: &Session, args: &args::CreateArgs) -> Result {
    let common = &args.common;
    let mut spec = spec::create(&session.api, args).await?;
    let auth = registry_auth(session, &spec, common.with_registry_auth)?;
    let ask = !common.no_resolve_image;
    let warning = lookup::pin_image(&session.api, &mut spec, ask, auth.as_deref()).await;
    let request = Request::post(&["services", "create"])
        .json(&spec)
        .registry_auth(auth.as_deref());
    let created = session.api.json(request).await?;
    output::warnings(&created);
    warning.into_iter().for_each(output::note);
    let id = text(&created, "/ID");
    output::line(id)?;
    if common.detach {
        return Ok(());
    }
    converge::wait(&session.api, id, common.quiet).await
}

/// The credentials for the spec's image, when they are to be sent along.
pub(crate) fn registry_auth(
    session: &Session,
    spec: &Value,
    wanted: bool,
) -> Result<Option<String>> {
    if !wanted {
        return Ok(None);
    }
    let image = text(spec, "/TaskTemplate/ContainerSpec/Image");
    let reference = Reference::parse(image)
        .ok_or_else(|| CliError::message(format!("invalid reference format: {image}")))?;
    session.config.registry_auth(reference.registry()).map(Some)
}

async fn update(session: &Session, args: &args::UpdateArgs) -> Result {
    let api = &session.api;
    let common = &args.common;
    let service = api.json(Request::get(&["services", &args.service])).await?;
    if args.rollback && sets_more_than_rollback(args) {
        return Err(CliError::message(
            "other flags may not be combined with --rollback",
        ));
    }
    let mut spec = service["Spec"].clone();
    update::apply(api, args, &mut spec).await?;
    let auth = registry_auth(session, &spec, common.with_registry_auth)?;
    let ask = args.image.is_some() && !common.no_resolve_image;
    let warning = lookup::pin_image(api, &mut spec, ask, auth.as_deref()).await;
    let mut request = update_request(&service)
        .json(&spec)
        .registry_auth(auth.as_deref());
    if auth.is_none() {
        request = request.query("registryAuthFrom", "spec");
    }
    if args.rollback {
        request = request.query("rollback", "previous");
    }
    let updated = api.json(request).await?;
    output::warnings(&updated);
    warning.into_iter().for_each(output::note);
    output::line(&args.service)?;
    if common.detach {
        return Ok(());
    }
    converge::wait(api, &args.service, common.quiet).await
}

/// Whether the words of this process name a flag that a rollback would ignore.
fn sets_more_than_rollback(args: &args::UpdateArgs) -> bool {
    let alone = args::UpdateArgs {
        common: args::Common {
            detach: args.common.detach,
            quiet: args.common.quiet,
            ..args::Common::default()
        },
        service: args.service.clone(),
        rollback: true,
        ..args::UpdateArgs::default()
    };
    format!("{alone:?}") != format!("{args:?}")
}

pub(crate) fn update_request(service: &Value) -> Request {
    Request::post(&["services", text(service, "/ID"), "update"])
        .query("version", number(service, "/Version/Index").to_string())
}

async fn rollback(session: &Session, args: &RollbackArgs) -> Result {
    let api = &session.api;
    let service = api.json(Request::get(&["services", &args.service])).await?;
    let request = update_request(&service)
        .query("rollback", "previous")
        .json(&service["Spec"]);
    let updated = api.json(request).await?;
    output::warnings(&updated);
    output::line(&args.service)?;
    if args.detach {
        return Ok(());
    }
    converge::wait(api, &args.service, args.quiet).await
}

async fn scale(session: &Session, args: &ScaleArgs) -> Result {
    for scale in &args.scales {
        let valid = scale
            .split_once('=')
            .is_some_and(|(service, replicas)| !service.is_empty() && !replicas.is_empty());
        if !valid {
            return Err(CliError::message(format!(
                "invalid scale specifier '{scale}'.\nSee 'shoal service scale --help'.\n\nUsage:  shoal service scale SERVICE=REPLICAS [SERVICE=REPLICAS...]\n\nScale one or multiple replicated services"
            )));
        }
    }
    let mut errors = Vec::new();
    let mut scaled = Vec::new();
    let failed = |service: &str, error: &dyn std::fmt::Display| {
        CliError::message(format!("{service}: {error}"))
    };
    for scale in &args.scales {
        let (service, replicas) = scale.split_once('=').unwrap_or((scale, ""));
        let Ok(count) = replicas.parse::<u64>() else {
            let why = format!(
                "invalid replicas value {replicas}: strconv.ParseUint: parsing {replicas:?}: invalid syntax"
            );
            errors.push(failed(service, &why));
            continue;
        };
        match scale_one(session, service, count).await {
            Ok(()) => {
                output::line(format!("{service} scaled to {count}"))?;
                scaled.push(service);
            }
            Err(error) => errors.push(failed(service, &error)),
        }
    }
    if !args.detach {
        for service in scaled {
            if let Err(error) = converge::wait(&session.api, service, false).await {
                errors.push(failed(service, &error));
            }
        }
    }
    CliError::all(errors)
}

async fn scale_one(session: &Session, service: &str, count: u64) -> Result {
    let service = session
        .api
        .json(Request::get(&["services", service]))
        .await?;
    let mut spec = service["Spec"].clone();
    let mode = &mut spec["Mode"];
    if let Some(Value::Object(replicated)) = mode.get_mut("Replicated") {
        replicated.insert("Replicas".into(), count.into());
    } else if let Some(Value::Object(job)) = mode.get_mut("ReplicatedJob") {
        job.insert("TotalCompletions".into(), count.into());
    } else {
        return Err(CliError::message(
            "scale can only be used with replicated or replicated-job mode",
        ));
    }
    let updated = session
        .api
        .json(update_request(&service).json(&spec))
        .await?;
    output::warnings(&updated);
    Ok(())
}

async fn inspect_services(session: &Session, args: &InspectArgs) -> Result {
    if args.pretty && !args.format.is_empty() {
        return Err(CliError::message(
            "--format is incompatible with human friendly format",
        ));
    }
    if args.pretty || args.format == "pretty" {
        return pretty::run(session, &args.services).await;
    }
    inspect::print(&session.api, &args.services, &args.format, |service| {
        Request::get(&["services", service]).query("insertDefaults", "true")
    })
    .await
}
