//! `shoal`: the command line of the cluster, and the daemon of a node, in one binary.
//!
//! The client keeps no state and holds no policy: it checks the form of words, turns them into requests of the Docker
//! Engine API, and shows the answers. What Docker's client decides (defaults of flags, order of lists, exit codes)
//! is decided here in the same way.

#![expect(
    clippy::format_push_string,
    reason = "a page of text is built once a command; one more allocation a line is nothing"
)]

mod api;
mod cli;
mod config;
mod container;
mod daemon;
mod daemon_args;
mod error;
mod image;
mod inspect;
mod json;
mod logs;
mod network;
mod node;
mod object;
mod opts;
mod output;
mod service;
mod session;
mod stack;
mod swarm;
mod system;
mod template;
mod volume;

use std::{ffi::OsString, process::ExitCode};

use cli::{Cli, Global, Refusal, TopCommand};
use error::{CliError, Result};
use session::Session;

/// First word of the process that holds a node's containers; the runtime starts it, never a user.
const SUPERVISOR: &str = "supervisor";

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    // Before anything else: this process must stay small and without threads.
    if words.get(1).is_some_and(|word| word == SUPERVISOR) {
        return shoal_runtime::supervisor_main(words.into_iter().skip(2));
    }
    let result = match cli::parse(&words) {
        Ok(cli) => dispatch(cli),
        Err(Refusal::Shown(text)) => output::write(text),
        Err(Refusal::Error(error)) => Err(error),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is_broken_pipe() {
                output::note(error.to_string());
            }
            error.exit_code()
        }
    }
}

fn dispatch(cli: Cli) -> Result {
    match cli.command {
        TopCommand::Daemon(args) => {
            daemon::start(*args).map_err(|error| CliError::message(format!("{error:#}")))
        }
        TopCommand::Purge(args) => {
            daemon::start_purge(&args).map_err(|error| CliError::message(format!("{error:#}")))
        }
        TopCommand::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut cli::command(), "shoal", &mut script);
            output::write(script)
        }
        command => client(&cli.global, command),
    }
}

/// Runs a command that talks to a daemon, on one thread: it waits for one answer at a time.
fn client(global: &Global, command: TopCommand) -> Result {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let host = global
        .host
        .clone()
        .or_else(|| variable("SHOAL_HOST"))
        .or_else(|| variable("DOCKER_HOST"));
    let config = config::Config::load(global.config.clone());
    let session = Session::new(host.as_deref(), config)?;
    if global.debug || global.log_level.as_deref() == Some("debug") {
        output::note(format!("connecting to {}", session.api.endpoint()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::file("start of the runtime"))?;
    let result = runtime.block_on(run(&session, command));
    // A read of standard input that never ends must not keep the process.
    runtime.shutdown_background();
    result
}

async fn run(session: &Session, command: TopCommand) -> Result {
    use container::ContainerCommand;
    use image::ImageCommand;
    let api = &session.api;
    match command {
        TopCommand::Config(command) => object::run_config(session, command).await,
        TopCommand::Container(command) => container::run(session, command).await,
        TopCommand::Image(command) => image::run(session, command).await,
        TopCommand::Network(command) => network::run(session, command).await,
        TopCommand::Node(command) => node::run(session, command).await,
        TopCommand::Secret(command) => object::run_secret(session, command).await,
        TopCommand::Service(command) => service::run(session, command).await,
        TopCommand::Stack(command) => stack::run(session, command).await,
        TopCommand::Swarm(command) => swarm::run(session, command).await,
        TopCommand::System(command) => system::run(session, command).await,
        TopCommand::Volume(command) => volume::run(session, command).await,
        TopCommand::Doctor(args) => system::doctor(session, &args).await,
        TopCommand::Events(args) => system::events(session, &args).await,
        TopCommand::Info(args) => system::info(session, &args).await,
        TopCommand::Version(args) => system::version(session, &args).await,
        TopCommand::Inspect {
            format,
            size,
            kind,
            names,
        } => inspect::any(api, &names, &format, &kind, size).await,
        TopCommand::History(args) => image::run(session, ImageCommand::History(args)).await,
        TopCommand::Images(args) => image::run(session, ImageCommand::Ls(args)).await,
        TopCommand::Import(args) => image::run(session, ImageCommand::Import(args)).await,
        TopCommand::Load(args) => image::run(session, ImageCommand::Load(args)).await,
        TopCommand::Pull(args) => image::run(session, ImageCommand::Pull(args)).await,
        TopCommand::Rmi(args) => image::run(session, ImageCommand::Rm(args)).await,
        TopCommand::Save(args) => image::run(session, ImageCommand::Save(args)).await,
        TopCommand::Tag(args) => image::run(session, ImageCommand::Tag(args)).await,
        TopCommand::Logs(args) => container::run(session, ContainerCommand::Logs(args)).await,
        TopCommand::Ps(args) => container::run(session, ContainerCommand::Ls(args)).await,
        TopCommand::Completion { .. } | TopCommand::Daemon(_) | TopCommand::Purge(_) => {
            unreachable!("these were handled before a daemon was looked for")
        }
    }
}
