//! Lists: `--format`, `-q`, tables and JSON lines.

use serde_json::{Map, Value};

use super::tabs;
use crate::{
    error::Result,
    template::{Scope, Template},
};

/// What a kind of list shows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Columns {
    /// Docker's type of a row, named when a template asks for a column that there is not.
    pub(crate) kind: &'static str,
    /// Names of columns and their titles.
    pub(crate) titles: &'static [(&'static str, &'static str)],
    /// The template of the plain table, without `table`.
    pub(crate) table: &'static str,
}

/// One line of a list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Row {
    fields: Map<String, Value>,
    labels: Option<Map<String, Value>>,
}

impl Row {
    pub(crate) fn new<const N: usize>(fields: [(&str, Value); N]) -> Self {
        Self {
            fields: fields
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            labels: None,
        }
    }

    /// Lets a template ask for `.Label "name"`.
    pub(crate) fn with_labels(mut self, labels: &Value) -> Self {
        self.labels = Some(labels.as_object().cloned().unwrap_or_default());
        self
    }
}

/// The text of a list. `format` is what the user wrote after `--format`, empty when nothing.
pub(crate) fn render(format: &str, quiet: bool, columns: &Columns, rows: &[Row]) -> Result<String> {
    let quiet_table = quiet && (format.is_empty() || format == "table");
    let (template, table) = match format {
        _ if quiet_table => ("{{.ID}}".to_owned(), false),
        "" | "table" => (columns.table.to_owned(), true),
        "json" => ("{{json .}}".to_owned(), false),
        // A template that begins with `table` has a line of titles.
        format => match format.strip_prefix("table") {
            Some(rest) => (rest.to_owned(), true),
            None => (format.to_owned(), false),
        },
    };
    let template = template
        .trim_matches(' ')
        .replace("\\t", "\t")
        .replace("\\n", "\n");
    let template = Template::parse(&template)?;
    let mut text = String::new();
    if table {
        let titles: Map<String, Value> = columns
            .titles
            .iter()
            .map(|(name, title)| ((*name).to_owned(), (*title).into()))
            .collect();
        let scope = Scope {
            header: true,
            ..Scope::default()
        };
        text.push_str(&template.execute(&Value::Object(titles), scope)?);
        text.push('\n');
    }
    for row in rows {
        let scope = Scope {
            strict: Some(columns.kind),
            labels: row.labels.as_ref(),
            header: false,
        };
        let fields = Value::Object(row.fields.clone());
        text.push_str(&template.execute(&fields, scope)?);
        text.push('\n');
    }
    Ok(if table { tabs::align(&text) } else { text })
}

/// Prints a list.
pub(crate) fn print(format: &str, quiet: bool, columns: &Columns, rows: &[Row]) -> Result {
    super::write(render(format, quiet, columns, rows)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const COLUMNS: Columns = Columns {
        kind: "*service.serviceContext",
        titles: &[("ID", "ID"), ("Name", "NAME"), ("Image", "IMAGE")],
        table: "{{.ID}}\t{{.Name}}\t{{.Image}}",
    };

    fn rows() -> Vec<Row> {
        vec![
            Row::new([
                ("ID", "abcdefghijkl".into()),
                ("Name", "web".into()),
                ("Image", "a:1".into()),
            ])
            .with_labels(&json!({"tier": "front"})),
            Row::new([
                ("ID", "x".into()),
                ("Name", "a-longer-name".into()),
                ("Image", "".into()),
            ])
            .with_labels(&json!({})),
        ]
    }

    fn text(format: &str, quiet: bool) -> String {
        render(format, quiet, &COLUMNS, &rows()).unwrap()
    }

    #[test]
    fn every_format_has_its_look() {
        assert_eq!(
            text("", false),
            "ID             NAME            IMAGE\n\
             abcdefghijkl   web             a:1\n\
             x              a-longer-name   \n"
        );
        assert_eq!(text("", true), "abcdefghijkl\nx\n");
        assert_eq!(
            text("json", false).lines().next().unwrap(),
            r#"{"ID":"abcdefghijkl","Image":"a:1","Name":"web"}"#
        );
        assert_eq!(
            text("{{.Name}}: {{upper .ID}}", false),
            "web: ABCDEFGHIJKL\na-longer-name: X\n"
        );
        assert_eq!(
            text(r#"table {{.Name}}\t{{.Label "tier"}}"#, false),
            "NAME            tier\nweb             front\na-longer-name   \n"
        );
        assert!(render("{{.Foo}}", false, &COLUMNS, &rows()).is_err());
    }
}
