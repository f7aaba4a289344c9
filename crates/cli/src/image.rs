//! `shoal image …` and its short forms.

mod history;
mod list;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::io::AsyncWriteExt;

pub(crate) use self::{history::HistoryArgs, list::ListArgs};
use crate::{
    api::Request,
    error::{CliError, Result},
    inspect,
    json::text,
    opts::{Filter, Filters, reference::Reference},
    output::{self, progress},
    session::Session,
};

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Show the history of an image
    #[command(override_usage = "shoal image history [OPTIONS] IMAGE")]
    History(HistoryArgs),
    /// Import the contents from a tarball to create a filesystem image
    #[command(override_usage = "shoal image import [OPTIONS] file|URL|- [REPOSITORY[:TAG]]")]
    Import(ImportArgs),
    /// Display detailed information on one or more images
    #[command(override_usage = "shoal image inspect [OPTIONS] IMAGE [IMAGE...]")]
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
        #[arg(hide = true, required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Load an image from a tar archive or STDIN
    #[command(override_usage = "shoal image load [OPTIONS]")]
    Load(LoadArgs),
    /// List images
    #[command(
        visible_alias = "list",
        override_usage = "shoal image ls [OPTIONS] [REPOSITORY[:TAG]]"
    )]
    Ls(ListArgs),
    /// Remove unused images
    #[command(override_usage = "shoal image prune [OPTIONS]")]
    Prune {
        /// Remove all unused images, not just dangling ones
        #[arg(short, long)]
        all: bool,
        /// Provide filter values (e.g. "until=<timestamp>")
        #[arg(long, value_name = "filter")]
        filter: Vec<Filter>,
        /// Do not prompt for confirmation
        #[arg(short, long)]
        force: bool,
    },
    /// Download an image from a registry
    #[command(override_usage = "shoal image pull [OPTIONS] NAME[:TAG|@DIGEST]")]
    Pull(PullArgs),
    /// Remove one or more images
    #[command(
        visible_alias = "remove",
        override_usage = "shoal image rm [OPTIONS] IMAGE [IMAGE...]"
    )]
    Rm(RemoveArgs),
    /// Save one or more images to a tar archive (streamed to STDOUT by default)
    #[command(override_usage = "shoal image save [OPTIONS] IMAGE [IMAGE...]")]
    Save(SaveArgs),
    /// Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
    #[command(override_usage = "shoal image tag SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]")]
    Tag(TagArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Apply Dockerfile instruction to the created image
    #[arg(short, long, value_name = "list")]
    change: Vec<String>,
    /// Set commit message for imported image
    #[arg(
        short,
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    message: String,
    /// Set platform if server is multi-platform capable
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    platform: String,
    #[arg(hide = true, value_name = "file|URL|-")]
    source: String,
    #[arg(hide = true, value_name = "REPOSITORY[:TAG]")]
    reference: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Read from tar archive file, instead of STDIN
    #[arg(short, long, value_name = "string")]
    input: Option<PathBuf>,
    /// Load only the given platform variant. Formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    platform: String,
    /// Suppress the load output
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Download all tagged images in the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Set platform if server is multi-platform capable
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    platform: String,
    /// Suppress verbose output
    #[arg(short, long)]
    quiet: bool,
    #[arg(hide = true, value_name = "NAME[:TAG|@DIGEST]")]
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// Force removal of the image
    #[arg(short, long)]
    force: bool,
    /// Do not delete untagged parents
    #[arg(long)]
    no_prune: bool,
    #[arg(hide = true, required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// Write to a file, instead of STDOUT
    #[arg(short, long, value_name = "string")]
    output: Option<PathBuf>,
    #[arg(hide = true, required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    #[arg(hide = true, value_name = "SOURCE_IMAGE[:TAG]")]
    source: String,
    #[arg(hide = true, value_name = "TARGET_IMAGE[:TAG]")]
    target: String,
}

/// Standard input as a file, so that it is read as one.
const STDIN: &str = "/dev/stdin";

pub(crate) async fn run(session: &Session, command: ImageCommand) -> Result {
    match command {
        ImageCommand::History(args) => history::history(session, &args).await,
        ImageCommand::Import(args) => import(session, &args).await,
        ImageCommand::Inspect { format, images } => {
            inspect::print(&session.api, &images, &format, |image| {
                Request::get(&["images", image, "json"])
            })
            .await
        }
        ImageCommand::Load(args) => load(session, &args).await,
        ImageCommand::Ls(args) => list::ls(session, &args).await,
        ImageCommand::Prune { all, filter, force } => prune(session, all, &filter, force).await,
        ImageCommand::Pull(args) => pull(session, &args).await,
        ImageCommand::Rm(args) => rm(session, &args).await,
        ImageCommand::Save(args) => save(session, &args).await,
        ImageCommand::Tag(args) => {
            let target = parse(&args.target)?;
            let request = Request::post(&["images", &args.source, "tag"])
                .query("repo", target.name())
                .query("tag", target.tag().unwrap_or("latest"));
            session.api.done(request).await
        }
    }
}

fn parse(name: &str) -> Result<Reference> {
    Reference::parse(name).ok_or_else(|| {
        CliError::message(if name.chars().any(char::is_uppercase) {
            format!("invalid reference format: repository name ({name}) must be lowercase")
        } else {
            "invalid reference format".into()
        })
    })
}

async fn pull(session: &Session, args: &PullArgs) -> Result {
    let reference = parse(&args.name)?;
    if args.all_tags && !reference.is_name_only() {
        return Err(CliError::message("tag can't be used with --all-tags/-a"));
    }
    let auth = session.config.registry_auth(reference.registry())?;
    let tagged = if args.all_tags {
        reference
    } else {
        reference.with_default_tag()
    };
    if parse(&args.name)?.is_name_only() && !args.all_tags && !args.quiet {
        output::line("Using default tag: latest")?;
    }
    // A digest goes where the tag would be.
    let tag = tagged.digest().or_else(|| tagged.tag()).unwrap_or("");
    let request = Request::post(&["images", "create"])
        .query("fromImage", tagged.name())
        .query("tag", tag)
        .query("platform", args.platform.as_str())
        .registry_auth(Some(&auth));
    let mut lines = session.api.lines(request).await?;
    progress::stream(&mut lines, args.quiet).await?;
    let name = tagged.to_string();
    let full = match name.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => name,
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    };
    output::line(full)
}

async fn open(path: &Path) -> Result<tokio::fs::File> {
    let file = tokio::fs::File::open(path).await;
    file.map_err(CliError::file(format!("open {}", path.display())))
}

async fn load(session: &Session, args: &LoadArgs) -> Result {
    use std::io::IsTerminal;
    // Said in any case: without the word the daemon takes it for yes.
    let is_quiet = args.quiet || !output::is_terminal();
    let request = Request::post(&["images", "load"])
        .query("quiet", if is_quiet { "1" } else { "0" })
        .query("platform", args.platform.as_str());
    let request = match &args.input {
        Some(path) => request.tar(open(path).await?),
        None if std::io::stdin().is_terminal() => {
            return Err(CliError::message(
                "requested load from stdin, but stdin is empty",
            ));
        }
        None => request.tar(open(Path::new(STDIN)).await?),
    };
    let mut lines = session.api.lines(request).await?;
    progress::stream(&mut lines, false).await
}

async fn import(session: &Session, args: &ImportArgs) -> Result {
    let mut request = Request::post(&["images", "create"])
        .query("message", args.message.as_str())
        .query("platform", args.platform.as_str());
    if let Some(name) = &args.reference {
        let reference = parse(name)?;
        request = request
            .query("repo", reference.name())
            .query("tag", reference.tag().unwrap_or(""));
    }
    for change in &args.change {
        request = request.query("changes", change.as_str());
    }
    let is_url = ["http://", "https://"]
        .iter()
        .any(|s| args.source.starts_with(s));
    let request = if args.source == "-" {
        let archive = open(Path::new(STDIN)).await?;
        request.query("fromSrc", "-").tar(archive)
    } else if is_url {
        request.query("fromSrc", args.source.as_str())
    } else {
        let file = open(Path::new(&args.source)).await?;
        request.query("fromSrc", "-").tar(file)
    };
    let mut lines = session.api.lines(request).await?;
    progress::stream(&mut lines, false).await
}

async fn save(session: &Session, args: &SaveArgs) -> Result {
    use std::io::IsTerminal;
    if args.output.is_none() && std::io::stdout().is_terminal() {
        return Err(CliError::message(
            "cowardly refusing to save to a terminal. Use the -o flag or redirect",
        ));
    }
    let request = match args.images.as_slice() {
        [image] => Request::get(&["images", image, "get"]),
        images => images
            .iter()
            .fold(Request::get(&["images", "get"]), |request, image| {
                request.query("names", image.as_str())
            }),
    };
    let mut body = session.api.send(request).await?.into_body();
    let Some(path) = &args.output else {
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.map_err(CliError::Lost)?.into_data() {
                output::write(&data)?;
            }
        }
        return Ok(());
    };
    // A file of that name is only replaced by a whole archive.
    let mut partial = path.clone().into_os_string();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let shown = path.display().to_string();
    let result = async {
        let mut file = tokio::fs::File::create(&partial)
            .await
            .map_err(CliError::file(&shown))?;
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.map_err(CliError::Lost)?.into_data() {
                file.write_all(&data)
                    .await
                    .map_err(CliError::file(&shown))?;
            }
        }
        file.sync_all().await.map_err(CliError::file(&shown))?;
        tokio::fs::rename(&partial, path)
            .await
            .map_err(CliError::file(&shown))
    }
    .await;
    if result.is_err() {
        // It may never have been made.
        let _ = tokio::fs::remove_file(&partial).await;
    }
    result
}

/// A line for each step of a removal, which begins with one of these words.
fn removed(items: &[Value], (deleted, untagged): (&str, &str)) -> String {
    let mut lines = String::new();
    for item in items {
        for (key, word) in [("/Deleted", deleted), ("/Untagged", untagged)] {
            let name = text(item, key);
            if !name.is_empty() {
                lines.push_str(&format!("{word}: {name}\n"));
            }
        }
    }
    lines
}

async fn prune(session: &Session, all: bool, filter: &[Filter], force: bool) -> Result {
    let what = if all {
        "all images without at least one container associated to them"
    } else {
        "all dangling images"
    };
    let mut filters = Filters::new(filter);
    filters.add("dangling", if all { "false" } else { "true" });
    let report = session.prune("image", what, force, &filters).await?;
    let items = report["ImagesDeleted"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    if !items.is_empty() {
        let lines = removed(&items, ("deleted", "untagged"));
        output::line(format!("Deleted Images:\n{lines}"))?;
    }
    output::reclaimed(&report)
}

async fn rm(session: &Session, args: &RemoveArgs) -> Result {
    let mut errors = Vec::new();
    for image in &args.images {
        let request = Request::delete(&["images", image])
            .flag("force", args.force)
            .flag("noprune", args.no_prune);
        match session.api.list(request).await {
            Ok(items) => output::write(removed(&items, ("Deleted", "Untagged")))?,
            Err(error) if args.force && error.is_not_found() => {
                output::note(error.to_string());
            }
            Err(error @ CliError::Refused { .. }) => errors.push(error),
            Err(error) => return Err(error),
        }
    }
    CliError::all(errors)
}
