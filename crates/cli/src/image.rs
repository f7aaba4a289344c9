//! `shoal image …` and its short forms.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use http_body_util::BodyExt;
use jiff::{Timestamp, tz::TimeZone};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::{
    api::Request,
    error::{CliError, Result},
    inspect,
    json::text,
    opts::{Filter, Filters, reference::Reference},
    output::{self, Columns, Row, human, progress, table},
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
pub(crate) struct HistoryArgs {
    /// Format output: 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    format: String,
    /// Print sizes and dates in human readable format (default true)
    #[arg(short = 'H', long, value_name = "bool", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    human: Option<bool>,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only show image IDs
    #[arg(short, long)]
    quiet: bool,
    #[arg(hide = true, value_name = "IMAGE")]
    image: String,
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
pub(crate) struct ListArgs {
    /// Show all images (default hides intermediate images)
    #[arg(short, long)]
    all: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
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
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only show image IDs
    #[arg(short, long)]
    quiet: bool,
    #[arg(hide = true, value_name = "REPOSITORY[:TAG]")]
    reference: Option<String>,
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
        ImageCommand::History(args) => history(session, &args).await,
        ImageCommand::Import(args) => import(session, &args).await,
        ImageCommand::Inspect { format, images } => {
            inspect::print(&session.api, &images, &format, |image| {
                Request::get(&["images", image, "json"])
            })
            .await
        }
        ImageCommand::Load(args) => load(session, &args).await,
        ImageCommand::Ls(args) => ls(session, &args).await,
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

const TITLES: &[(&str, &str)] = &[
    ("ID", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("Containers", "CONTAINERS"),
    ("VirtualSize", "SIZE"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
];

const COLUMNS: Columns = Columns {
    kind: "*formatter.imageContext",
    titles: TITLES,
    table: "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{if .CreatedSince}}{{.CreatedSince}}{{else}}N/A{{end}}\t{{.Size}}",
};

const COLUMNS_WITH_DIGEST: Columns = Columns {
    table: "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{if .CreatedSince}}{{.CreatedSince}}{{else}}N/A{{end}}\t{{.Size}}",
    ..COLUMNS
};

async fn ls(session: &Session, args: &ListArgs) -> Result {
    let mut filters = Filters::new(&args.filter);
    if let Some(reference) = &args.reference {
        filters.add("reference", reference);
    }
    let request = Request::get(&["images", "json"])
        .flag("all", args.all)
        .filters(&filters);
    let images = session.api.list(request).await?;
    let format = session
        .config
        .format(&args.format, args.quiet, "imagesFormat");
    let digests = args.digests || format.contains("{{.Digest}}");
    let now = Timestamp::now();
    let rows: Vec<Row> = images
        .iter()
        .flat_map(|image| rows(image, digests, !args.no_trunc, now))
        .collect();
    let columns = if args.digests {
        &COLUMNS_WITH_DIGEST
    } else {
        &COLUMNS
    };
    table::print(&format, args.quiet, columns, &rows)
}

/// A line for each name of an image; one of `<none>` when it has none.
fn rows(image: &Value, digests: bool, truncate: bool, now: Timestamp) -> Vec<Row> {
    let names = |key: &str| -> Vec<Reference> {
        let all = image[key].as_array().into_iter().flatten();
        all.filter_map(|name| Reference::parse(name.as_str()?))
            .collect()
    };
    let (tagged, pinned) = (names("RepoTags"), names("RepoDigests"));
    let none = "<none>";
    let mut lines: Vec<(String, String, String)> = Vec::new();
    for reference in &tagged {
        let of_name = pinned
            .iter()
            .filter(|other| other.name() == reference.name());
        let mut shown: Vec<&str> = of_name.filter_map(Reference::digest).collect();
        if !digests || shown.is_empty() {
            shown = vec![none];
        }
        let tag = reference.tag().unwrap_or(none);
        let line = |digest: &str| {
            (
                reference.name().to_owned(),
                tag.to_owned(),
                digest.to_owned(),
            )
        };
        lines.extend(shown.into_iter().map(line));
    }
    for reference in &pinned {
        let known = lines.iter().any(|(name, tag, digest)| {
            name == reference.name()
                && (tag != none || !digests || Some(digest.as_str()) == reference.digest())
        });
        if !known {
            let digest = reference.digest().filter(|_| digests).unwrap_or(none);
            lines.push((
                reference.name().to_owned(),
                none.to_owned(),
                digest.to_owned(),
            ));
        }
    }
    if lines.is_empty() {
        lines.push((none.into(), none.into(), none.into()));
    }
    lines
        .into_iter()
        .map(|(name, tag, digest)| row(image, [name, tag, digest], truncate, now))
        .collect()
}

fn row(image: &Value, [name, tag, digest]: [String; 3], truncate: bool, now: Timestamp) -> Row {
    let id = text(image, "/Id");
    let size = |key: &str| image[key].as_f64().unwrap_or(-1.0);
    let (all, shared) = (size("Size"), size("SharedSize"));
    let known = |bytes: f64| {
        if bytes < 0.0 {
            "N/A".into()
        } else {
            human::size(bytes, 4)
        }
    };
    let containers = image["Containers"].as_i64().filter(|count| *count >= 0);
    let unique = if all < 0.0 || shared < 0.0 {
        -1.0
    } else {
        all - shared
    };
    Row::new([
        (
            "ID",
            if truncate {
                human::short_id(id).into()
            } else {
                id.into()
            },
        ),
        ("Repository", name.into()),
        ("Tag", tag.into()),
        ("Digest", digest.into()),
        ("CreatedSince", human::ago(&image["Created"], now).into()),
        (
            "CreatedAt",
            human::go_time(&image["Created"], TimeZone::system()).into(),
        ),
        ("Size", human::size(all.max(0.0), 3).into()),
        (
            "Containers",
            containers
                .map_or_else(|| "N/A".to_owned(), |count| count.to_string())
                .into(),
        ),
        ("VirtualSize", human::size(all.max(0.0), 4).into()),
        ("SharedSize", Value::String(known(shared))),
        ("UniqueSize", Value::String(known(unique))),
    ])
}

const HISTORY: Columns = Columns {
    kind: "*image.historyContext",
    titles: &[
        ("ID", "IMAGE"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("CreatedBy", "CREATED BY"),
        ("Size", "SIZE"),
        ("Comment", "COMMENT"),
    ],
    table: "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}",
};

const HISTORY_EXACT: Columns = Columns {
    table: "{{.ID}}\t{{.CreatedAt}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}",
    ..HISTORY
};

/// 2000-01-01: a layer from before then says nothing about its age.
const EPOCH: i64 = 946_684_800;

async fn history(session: &Session, args: &HistoryArgs) -> Result {
    let layers = session
        .api
        .list(Request::get(&["images", &args.image, "history"]))
        .await?;
    let readable = args.human.unwrap_or(true);
    let now = Timestamp::now();
    let rows: Vec<Row> = layers
        .iter()
        .map(|layer| {
            let id = text(layer, "/Id");
            let created = layer["Created"].as_i64().unwrap_or(0);
            let at = human::timestamp(&layer["Created"]).map_or_else(String::new, |time| {
                time.to_zoned(TimeZone::system())
                    .strftime("%Y-%m-%dT%H:%M:%S%:z")
                    .to_string()
            });
            let since = match created {
                _ if !readable => at.clone(),
                ..=EPOCH => "N/A".into(),
                _ => human::ago(&layer["Created"], now),
            };
            let by = text(layer, "/CreatedBy").replace('\t', " ");
            let bytes = layer["Size"].as_f64().unwrap_or(0.0);
            let size = if readable {
                human::size(bytes, 3)
            } else {
                bytes.to_string()
            };
            let id = if args.no_trunc {
                id.to_owned()
            } else {
                human::short_id(id)
            };
            let by = if args.no_trunc {
                by
            } else {
                human::ellipsis(&by, 45)
            };
            Row::new([
                ("ID", id.into()),
                ("CreatedSince", since.into()),
                ("CreatedAt", at.into()),
                ("CreatedBy", by.into()),
                ("Size", size.into()),
                ("Comment", text(layer, "/Comment").into()),
            ])
        })
        .collect();
    let columns = if readable { &HISTORY } else { &HISTORY_EXACT };
    table::print(&args.format, args.quiet, columns, &rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_image_has_a_line_for_each_name() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let created = 1_767_225_600;
        let images = [
            json!({"Id": "sha256:0123456789abcdef", "Created": created, "Size": 7_833_600,
                   "RepoTags": ["alpine:3", "r.io/a:1"], "RepoDigests": [format!("alpine@{digest}")]}),
            json!({"Id": "sha256:fedcba9876543210", "Created": created, "Size": 10, "RepoTags": [], "RepoDigests": []}),
        ];
        let shown: Vec<Row> = images
            .iter()
            .flat_map(|i| rows(i, false, true, now))
            .collect();
        assert_eq!(
            table::render("", false, &COLUMNS, &shown).unwrap(),
            "REPOSITORY   TAG       IMAGE ID       CREATED        SIZE\n\
             alpine       3         0123456789ab   24 hours ago   7.83MB\n\
             r.io/a       1         0123456789ab   24 hours ago   7.83MB\n\
             <none>       <none>    fedcba987654   24 hours ago   10B\n"
        );
        let with: Vec<Row> = rows(&images[0], true, true, now);
        let text = table::render("{{.Repository}} {{.Digest}}", false, &COLUMNS, &with).unwrap();
        assert_eq!(text, format!("alpine {digest}\nr.io/a <none>\n"));
    }
}
