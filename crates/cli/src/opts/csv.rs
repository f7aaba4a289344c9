//! One record of comma separated values, as Go's `encoding/csv` reads it: fields may be quoted, a quote inside is doubled.

use super::BadValue;

/// The fields of the first line of `text`.
pub(crate) fn fields(text: &str) -> Result<Vec<String>, BadValue> {
    let text = text.trim_start_matches('\n');
    if text.is_empty() {
        return Err(BadValue::new("EOF"));
    }
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, next) = field(rest)?;
        fields.push(field);
        match next {
            Some(next) => rest = next,
            None => return Ok(fields),
        }
    }
}

/// One field, and what follows its comma.
fn field(text: &str) -> Result<(String, Option<&str>), BadValue> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', '\n']).unwrap_or(text.len());
        let field = text[..end].trim_end_matches('\r');
        if let Some(column) = field.find('"') {
            return Err(BadValue::new(format!(
                "parse error on line 1, column {}: bare \" in non-quoted-field",
                column + 1
            )));
        }
        return Ok((field.to_owned(), text[end..].strip_prefix(',')));
    };
    let mut value = String::new();
    let mut rest = quoted;
    loop {
        let Some(end) = rest.find('"') else {
            return Err(BadValue::new(
                "record on line 1; parse error on line 1, column 1: extraneous or missing \" in quoted-field",
            ));
        };
        value.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        if let Some(next) = rest.strip_prefix('"') {
            value.push('"');
            rest = next;
        } else if rest.is_empty() || rest.starts_with(['\n', '\r']) {
            return Ok((value, None));
        } else if let Some(next) = rest.strip_prefix(',') {
            return Ok((value, Some(next)));
        } else {
            return Err(BadValue::new(
                "parse error on line 1, column 1: extraneous or missing \" in quoted-field",
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_fields_keep_commas_and_quotes() {
        assert_eq!(fields("a,b").unwrap(), ["a", "b"]);
        assert_eq!(fields("a,").unwrap(), ["a", ""]);
        assert_eq!(
            fields(r#"type=volume,"volume-opt=o=a,b ""c""",x=1"#).unwrap(),
            ["type=volume", r#"volume-opt=o=a,b "c""#, "x=1"]
        );
        assert!(fields("").is_err() && fields("\"a").is_err() && fields("a\"b").is_err());
    }
}
