//! JSON text made readable without reading it into a value: keys keep the daemon's order.

/// Indents valid JSON as Go's `json.Indent` does, every line but the first after `prefix`.
pub(crate) fn indent(json: &str, prefix: &str) -> String {
    const STEP: &str = "    ";
    let mut out = String::with_capacity(json.len() * 2);
    let mut depth = 0_usize;
    let (mut quoted, mut escaped) = (false, false);
    let mut chars = json.trim().chars().peekable();
    let newline = |out: &mut String, depth: usize| {
        out.push('\n');
        out.push_str(prefix);
        for _ in 0..depth {
            out.push_str(STEP);
        }
    };
    while let Some(c) = chars.next() {
        if quoted {
            out.push(c);
            if escaped {
                escaped = false;
            } else {
                escaped = c == '\\';
                quoted = c != '"';
            }
            continue;
        }
        match c {
            ' ' | '\t' | '\r' | '\n' => {}
            '"' => {
                quoted = true;
                out.push(c);
            }
            '{' | '[' => {
                out.push(c);
                while chars.next_if(char::is_ascii_whitespace).is_some() {}
                if let Some(close @ ('}' | ']')) = chars.peek() {
                    out.push(*close);
                    chars.next();
                } else {
                    depth += 1;
                    newline(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                newline(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                newline(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c => out.push(c),
        }
    }
    out
}

/// Several documents as one indented array, as `inspect` prints them.
pub(crate) fn array(documents: &[String]) -> String {
    if documents.is_empty() {
        return "[]\n".into();
    }
    let items: Vec<String> = documents
        .iter()
        .map(|document| format!("    {}", indent(document, "    ")))
        .collect();
    format!("[\n{}\n]\n", items.join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_their_order() {
        assert_eq!(
            array(&[r#"{"b":1,"a":{"x":[],"y":{ }},"s":"{\"q\":[1]}","l":[1,2]}"#.into()]),
            r#"[
    {
        "b": 1,
        "a": {
            "x": [],
            "y": {}
        },
        "s": "{\"q\":[1]}",
        "l": [
            1,
            2
        ]
    }
]
"#
        );
        assert_eq!(array(&[]), "[]\n");
    }
}
