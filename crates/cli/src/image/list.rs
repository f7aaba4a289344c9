//! `shoal image ls`.

use clap::Args;
use jiff::{Timestamp, tz::TimeZone};
use serde_json::Value;

use crate::{
    api::Request,
    error::Result,
    json::text,
    opts::{Filter, Filters, reference::Reference},
    output::{Columns, Row, human, table},
    session::Session,
};

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

pub(super) async fn ls(session: &Session, args: &ListArgs) -> Result {
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
