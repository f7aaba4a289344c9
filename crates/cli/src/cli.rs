//! The command line: its words, and Docker's way of saying what is wrong with them.

use std::{ffi::OsString, path::PathBuf};

use clap::{
    Arg, ArgAction, Command, CommandFactory, Parser, Subcommand,
    error::{ContextKind, ContextValue, ErrorKind},
};
use clap_complete::Shell;

use crate::{
    container::{self, ContainerCommand},
    daemon_args::{DaemonArgs, PurgeArgs},
    error::CliError,
    image::{self, ImageCommand},
    network::NetworkCommand,
    node::NodeCommand,
    object::{ConfigCommand, SecretCommand},
    opts,
    service::ServiceCommand,
    stack::StackCommand,
    swarm::SwarmCommand,
    system::{EventsArgs, FormatArgs, SystemCommand},
};

/// Services across machines, in one binary
#[derive(Debug, Parser)]
#[command(
    name = "shoal",
    version,
    disable_version_flag = true,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    override_usage = "shoal [OPTIONS] COMMAND"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: TopCommand,
}

/// Flags before the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// Location of client config files (default "~/.docker")
    #[arg(long, value_name = "string")]
    pub(crate) config: Option<PathBuf>,
    /// Enable debug mode
    #[arg(short = 'D', long)]
    pub(crate) debug: bool,
    /// Daemon socket to connect to (default: $SHOAL_HOST, $DOCKER_HOST, unix:///run/shoal/shoal.sock)
    #[arg(short = 'H', long, value_name = "list")]
    pub(crate) host: Option<String>,
    /// Set the logging level ("debug", "info", "warn", "error", "fatal") (default "info")
    #[arg(short, long, value_name = "string", value_parser = ["debug", "info", "warn", "error", "fatal"], hide_possible_values = true)]
    pub(crate) log_level: Option<String>,
    /// Print version information and quit
    #[arg(short = 'v', long, action = ArgAction::Version)]
    version: (),
}

#[derive(Debug, Subcommand)]
pub(crate) enum TopCommand {
    /// Manage Swarm configs
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Manage containers
    #[command(subcommand)]
    Container(ContainerCommand),
    /// Manage images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Manage networks
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Manage Swarm nodes
    #[command(subcommand)]
    Node(NodeCommand),
    /// Manage Swarm secrets
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Manage Swarm services
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Manage Swarm stacks
    #[command(subcommand)]
    Stack(StackCommand),
    /// Manage Swarm
    #[command(subcommand)]
    Swarm(SwarmCommand),
    /// Manage the engine
    #[command(subcommand)]
    System(SystemCommand),
    /// Manage volumes
    #[command(subcommand)]
    Volume(crate::volume::VolumeCommand),
    /// Generate the completion script for a shell
    #[command(override_usage = "shoal completion SHELL")]
    Completion {
        #[arg(hide = true, value_name = "SHELL")]
        shell: Shell,
    },
    /// Run the engine of a node
    Daemon(Box<DaemonArgs>),
    /// Compare the node's kernel with what the cluster wants of it
    #[command(override_usage = "shoal doctor [OPTIONS]")]
    Doctor(FormatArgs),
    /// Get real time events from the server
    #[command(override_usage = "shoal events [OPTIONS]")]
    Events(EventsArgs),
    /// Show the history of an image
    #[command(override_usage = "shoal history [OPTIONS] IMAGE")]
    History(image::HistoryArgs),
    /// List images
    #[command(override_usage = "shoal images [OPTIONS] [REPOSITORY[:TAG]]")]
    Images(image::ListArgs),
    /// Import the contents from a tarball to create a filesystem image
    #[command(override_usage = "shoal import [OPTIONS] file|URL|- [REPOSITORY[:TAG]]")]
    Import(image::ImportArgs),
    /// Display system-wide information
    #[command(override_usage = "shoal info [OPTIONS]")]
    Info(FormatArgs),
    /// Return low-level information on Shoal objects
    #[command(override_usage = "shoal inspect [OPTIONS] NAME|ID [NAME|ID...]")]
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
        /// Display total file sizes if the type is container
        #[arg(short, long)]
        size: bool,
        /// Only inspect objects of the given type
        #[arg(
            long = "type",
            value_name = "string",
            default_value = "",
            hide_default_value = true
        )]
        kind: String,
        #[arg(hide = true, required = true, value_name = "NAME|ID")]
        names: Vec<String>,
    },
    /// Load an image from a tar archive or STDIN
    #[command(override_usage = "shoal load [OPTIONS]")]
    Load(image::LoadArgs),
    /// Fetch the logs of a container
    #[command(override_usage = "shoal logs [OPTIONS] CONTAINER")]
    Logs(container::LogsArgs),
    /// List containers
    #[command(override_usage = "shoal ps [OPTIONS]")]
    Ps(container::ListArgs),
    /// Download an image from a registry
    #[command(override_usage = "shoal pull [OPTIONS] NAME[:TAG|@DIGEST]")]
    Pull(image::PullArgs),
    /// Take away everything that a daemon made: containers, networks and state
    #[command(override_usage = "shoal purge [OPTIONS]")]
    Purge(PurgeArgs),
    /// Remove one or more images
    #[command(override_usage = "shoal rmi [OPTIONS] IMAGE [IMAGE...]")]
    Rmi(image::RemoveArgs),
    /// Save one or more images to a tar archive (streamed to STDOUT by default)
    #[command(override_usage = "shoal save [OPTIONS] IMAGE [IMAGE...]")]
    Save(image::SaveArgs),
    /// Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
    #[command(override_usage = "shoal tag SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]")]
    Tag(image::TagArgs),
    /// Show the Shoal version information
    #[command(override_usage = "shoal version [OPTIONS]")]
    Version(FormatArgs),
}

const LEAF_HELP: &str = "Usage:  {usage}\n\n{about}\n\n{all-args}{after-help}\n";

/// The whole command line, with the habits of Docker's: a flag may be repeated and its last value counts, `--flag`
/// may be written `--flag=true`.
pub(crate) fn command() -> Command {
    shape(Cli::command(), "shoal").term_width(80)
}

fn shape(command: Command, path: &str) -> Command {
    let is_group = command.has_subcommands();
    let names: Vec<String> = command
        .get_subcommands()
        .map(|sub| sub.get_name().to_owned())
        .collect();
    let mut command = command
        .args_override_self(true)
        .help_template(LEAF_HELP)
        .mut_args(valued);
    if is_group && path != "shoal" {
        command = command
            .override_usage(format!("{path} COMMAND"))
            .subcommand_required(true)
            .arg_required_else_help(true)
            .disable_help_subcommand(true)
            .after_help(format!(
                "Run '{path} COMMAND --help' for more information on a command."
            ));
    }
    // Secrets and configs share their grammar, and with it the text of its usage.
    let shared = ["secret", "config"]
        .iter()
        .find(|word| path.starts_with(&format!("shoal {word} ")));
    if let Some(word) = shared
        && command.get_name() != "create"
    {
        let name = word.to_uppercase();
        command = match command.get_name() {
            "ls" => command.override_usage(format!("{path} [OPTIONS]")),
            "rm" => command.override_usage(format!("{path} {name} [{name}...]")),
            _ => command.override_usage(format!("{path} [OPTIONS] {name} [{name}...]")),
        };
    }
    for name in names {
        let path = format!("{path} {name}");
        command = command.mut_subcommand(name, |sub| shape(sub, &path));
    }
    command
}

/// `--flag` as `--flag[=true|false]`.
fn valued(arg: Arg) -> Arg {
    if !matches!(arg.get_action(), ArgAction::SetTrue) {
        // The word after a flag is its value, whatever it looks like.
        let is_option = !arg.is_positional() && arg.get_action().takes_values();
        return if is_option {
            arg.allow_hyphen_values(true)
        } else {
            arg
        };
    }
    arg.action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_value("false")
        .default_missing_value("true")
        .hide_default_value(true)
        .hide_possible_values(true)
        .value_name("bool")
        .value_parser(opts::boolean)
}

/// Parses the words of a process; an error is ready to be printed.
pub(crate) fn parse(words: &[OsString]) -> Result<Cli, Refusal> {
    let matches = command()
        .try_get_matches_from(fence_image(words))
        .map_err(|error| Refusal::new(&error, words))?;
    <Cli as clap::FromArgMatches>::from_arg_matches(&matches)
        .map_err(|error| Refusal::new(&error, words))
}

/// Puts `--` before the image of `service create`: flags end there, what follows are the container's own words.
fn fence_image(words: &[OsString]) -> Vec<OsString> {
    let mut fenced = words.to_vec();
    let is_create = |pair: &[OsString]| pair[0] == "service" && pair[1] == "create";
    let Some(start) = words.windows(2).position(is_create) else {
        return fenced;
    };
    let (command, path, _) = leaf(words);
    if path != "shoal service create" {
        return fenced;
    }
    let takes_value = |arg: Option<&Arg>| {
        arg.and_then(Arg::get_num_args)
            .is_some_and(|range| range.min_values() > 0)
    };
    let long = |name: &str| {
        command
            .get_arguments()
            .find(|arg| arg.get_long() == Some(name))
    };
    let short = |name: char| {
        command
            .get_arguments()
            .find(|arg| arg.get_short() == Some(name))
    };
    let mut at = start + 2;
    while let Some(word) = words.get(at).map(|word| word.to_string_lossy()) {
        if word == "--" {
            return fenced;
        }
        let needs_next = if let Some(name) = word.strip_prefix("--") {
            takes_value(long(name))
        } else if let Some(cluster) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) {
            // The first letter that takes a value takes the rest of the word, or the next one.
            let valued = cluster
                .char_indices()
                .find(|(_, c)| *c == '=' || takes_value(short(*c)));
            valued.is_some_and(|(place, c)| c != '=' && place + c.len_utf8() == cluster.len())
        } else {
            fenced.insert(at, "--".into());
            return fenced;
        };
        at += if needs_next { 2 } else { 1 };
    }
    fenced
}

/// Why words were not taken.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Help or a version was asked for.
    Shown(String),
    Error(CliError),
}

impl Refusal {
    fn new(error: &clap::Error, words: &[OsString]) -> Self {
        let (command, path, usage) = leaf(words);
        let see = format!("\n\nUsage:  {usage}\n\nRun '{path} --help' for more information");
        let context = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => text.clone(),
            Some(ContextValue::Strings(texts)) => texts.join(", "),
            _ => String::new(),
        };
        match error.kind() {
            ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Self::Shown(error.to_string()),
            ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
                let flag = flag_names(&command, &context(ContextKind::InvalidArg));
                let value = context(ContextKind::InvalidValue);
                let why = std::error::Error::source(error)
                    .map_or_else(|| "invalid value".to_owned(), ToString::to_string);
                let message = if value.is_empty() && std::error::Error::source(error).is_none() {
                    format!("flag needs an argument: {flag}")
                } else {
                    format!("invalid argument {value:?} for \"{flag}\" flag: {why}")
                };
                Self::Error(CliError::Usage(message + &see))
            }
            ErrorKind::UnknownArgument => {
                let word = context(ContextKind::InvalidArg);
                if word.starts_with('-') {
                    Self::Error(CliError::Usage(unknown_flag(&word) + &see))
                } else {
                    let (least, most) = positional_limits(&command);
                    let wants = match most {
                        Some(0) | None => "accepts no arguments".to_owned(),
                        Some(most) => {
                            let at_most = if most == least { "" } else { "at most " };
                            format!("requires {at_most}{most} argument{}", plural(most))
                        }
                    };
                    Self::Error(CliError::message(format!("shoal: '{path}' {wants}{see}")))
                }
            }
            ErrorKind::InvalidSubcommand => {
                let word = context(ContextKind::InvalidSubcommand);
                let usage = if path == "shoal" {
                    String::new()
                } else {
                    format!("\n\nUsage:  {path}")
                };
                Self::Error(CliError::message(format!(
                    "shoal: unknown command: {path} {word}{usage}\n\nRun '{path} --help' for more information"
                )))
            }
            ErrorKind::MissingRequiredArgument => {
                let wants = match positional_limits(&command) {
                    (least, None) => format!("requires at least {least} argument{}", plural(least)),
                    (least, Some(most)) if least == most => {
                        format!("requires {least} argument{}", plural(least))
                    }
                    (least, Some(_)) => {
                        format!("requires at least {least} argument{}", plural(least))
                    }
                };
                Self::Error(CliError::message(format!("shoal: '{path}' {wants}{see}")))
            }
            _ => {
                let text = error.to_string();
                let text = text
                    .strip_prefix("error: ")
                    .unwrap_or(&text)
                    .trim_end()
                    .to_owned();
                Self::Error(CliError::Usage(text))
            }
        }
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

fn unknown_flag(word: &str) -> String {
    if word.starts_with("--") {
        format!("unknown flag: {}", word.split('=').next().unwrap_or(word))
    } else {
        let letter = word.chars().nth(1).unwrap_or('-');
        format!("unknown shorthand flag: '{letter}' in {word}")
    }
}

/// `-p, --publish`, from what clap calls the argument.
fn flag_names(command: &Command, shown: &str) -> String {
    let name = shown.split([' ', '=', '[']).next().unwrap_or(shown);
    let long = name.trim_start_matches('-');
    let arg = command.get_arguments().find(|arg| {
        arg.get_long() == Some(long) || arg.get_short().map(String::from).as_deref() == Some(long)
    });
    match arg.map(|arg| (arg.get_short(), arg.get_long())) {
        Some((Some(short), Some(long))) => format!("-{short}, --{long}"),
        _ => name.to_owned(),
    }
}

/// Fewest and most positional words of a command; `None`: no limit.
fn positional_limits(command: &Command) -> (usize, Option<usize>) {
    let positionals: Vec<&Arg> = command.get_positionals().collect();
    let least = positionals
        .iter()
        .filter(|arg| arg.is_required_set())
        .count();
    let unbounded = positionals
        .iter()
        .any(|arg| matches!(arg.get_action(), ArgAction::Append));
    (least, (!unbounded).then_some(positionals.len()))
}

/// The command that `words` lead to, its path, and its usage line.
fn leaf(words: &[OsString]) -> (Command, String, String) {
    let mut current = command();
    current.build();
    let mut path = "shoal".to_owned();
    let mut takes_value = false;
    for word in words.iter().skip(1).map(|word| word.to_string_lossy()) {
        if takes_value {
            takes_value = false;
            continue;
        }
        if word.starts_with('-') {
            takes_value = path == "shoal"
                && matches!(
                    word.as_ref(),
                    "-H" | "--host" | "-l" | "--log-level" | "--config"
                );
            continue;
        }
        let Some(sub) = current.find_subcommand(word.as_ref()) else {
            break;
        };
        path = format!("{path} {}", sub.get_name());
        current = sub.clone();
        if !current.has_subcommands() {
            break;
        }
    }
    let usage = current.clone().render_usage().to_string();
    let usage = usage
        .strip_prefix("Usage:")
        .unwrap_or(&usage)
        .trim()
        .to_owned();
    (current, path, usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        std::iter::once("shoal")
            .chain(line.split_whitespace())
            .map(OsString::from)
            .collect()
    }

    fn refusal(line: &str) -> (String, bool) {
        match parse(&words(line)) {
            Err(Refusal::Error(error)) => (error.to_string(), matches!(error, CliError::Usage(_))),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn wrong_words_are_refused_in_docker_s_way() {
        let (message, usage) = refusal("service create --publish x:y alpine");
        assert_eq!(
            message,
            "invalid argument \"x:y\" for \"-p, --publish\" flag: invalid containerPort: y\n\nUsage:  shoal service create [OPTIONS] IMAGE [COMMAND] [ARG...]\n\nRun 'shoal service create --help' for more information"
        );
        assert!(usage);
        let first = |line: &str| refusal(line).0.lines().next().unwrap_or("").to_owned();
        assert_eq!(
            first("service create"),
            "shoal: 'shoal service create' requires at least 1 argument"
        );
        assert_eq!(first("service create --foo alpine"), "unknown flag: --foo");
        assert_eq!(
            first("service frob"),
            "shoal: unknown command: shoal service frob"
        );
        assert_eq!(first("frob"), "shoal: unknown command: shoal frob");
        assert_eq!(
            first("service ls extra"),
            "shoal: 'shoal service ls' accepts no arguments"
        );
        assert_eq!(
            first("service inspect"),
            "shoal: 'shoal service inspect' requires at least 1 argument"
        );
        assert_eq!(
            first("swarm join-token"),
            "shoal: 'shoal swarm join-token' requires 1 argument"
        );
        assert_eq!(
            first("network create"),
            "shoal: 'shoal network create' requires 1 argument"
        );
        assert_eq!(first("tag a"), "shoal: 'shoal tag' requires 2 arguments");
        assert_eq!(
            first("service create --replicas -1 a"),
            "invalid argument \"-1\" for \"--replicas\" flag: strconv.ParseUint: parsing \"-1\": invalid syntax"
        );
        assert_eq!(
            first("service create --limit-cpu x a"),
            "invalid argument \"x\" for \"--limit-cpu\" flag: failed to parse x as a rational number"
        );
        assert_eq!(
            first("service create --health-interval -1s a"),
            "invalid argument \"-1s\" for \"--health-interval\" flag: duration cannot be negative"
        );
        assert_eq!(
            first("service ls -f foo"),
            "invalid argument \"foo\" for \"-f, --filter\" flag: bad format of filter (expected name=value)"
        );
        assert_eq!(first("service ls -z"), "unknown shorthand flag: 'z' in -z");
    }

    #[test]
    fn words_after_the_image_are_the_container_s() {
        let cli = parse(&words(
            "service create --name a -t=false alpine ls -la --name b",
        ))
        .unwrap();
        let TopCommand::Service(ServiceCommand::Create(args)) = cli.command else {
            panic!("another command");
        };
        assert_eq!(args.words, ["alpine", "ls", "-la", "--name", "b"]);
        assert_eq!(args.name.as_deref(), Some("a"));
        assert_eq!(args.common.tty, Some(false));
    }

    #[test]
    fn flags_repeat_and_take_their_last_value() {
        let cli = parse(&words(
            "service create --name a --name b -d --detach=false -l x=1 -l y=2 -e A=1 -e B=2 alpine",
        ))
        .unwrap();
        let TopCommand::Service(ServiceCommand::Create(args)) = cli.command else {
            panic!("another command");
        };
        assert_eq!(args.name.as_deref(), Some("b"));
        assert!(!args.common.detach);
        assert_eq!((args.label.len(), args.env.len()), (2, 2));
    }

    #[test]
    fn the_daemon_takes_dockerd_s_flags() {
        let cli = parse(&words(
            "daemon -H unix:///a -H tcp://1.2.3.4:5 --data-root /d --exec-root /e -p /p -D --label a=b --local --log-opt max-size=10m --log-opt max-file=3",
        ))
        .unwrap();
        let TopCommand::Daemon(args) = cli.command else {
            panic!("another command");
        };
        assert_eq!(args.host, ["unix:///a", "tcp://1.2.3.4:5"]);
        assert_eq!(args.log_opt, ["max-size=10m", "max-file=3"]);
        assert!(args.debug && args.local);
        assert_eq!(args.pidfile, PathBuf::from("/p"));
    }
}
