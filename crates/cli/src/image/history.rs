//! `shoal image history`.

use clap::Args;
use jiff::{
    Timestamp,
    tz::{Offset, TimeZone},
};

use crate::{
    api::Request,
    error::Result,
    json::text,
    output::{Columns, Row, human, table},
    session::Session,
};

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

pub(super) async fn history(session: &Session, args: &HistoryArgs) -> Result {
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
                let time = time.to_zoned(TimeZone::system());
                let zone = if time.offset() == Offset::UTC {
                    "Z"
                } else {
                    "%:z"
                };
                time.strftime(&format!("%Y-%m-%dT%H:%M:%S{zone}"))
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
