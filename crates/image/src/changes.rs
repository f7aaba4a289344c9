//! Dockerfile instructions that change an image's configuration (`docker import --change`).

use serde_json::{Map, Value, json};

/// An instruction cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error(
        "{0} is not a valid change command: use one of CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR"
    )]
    Unknown(String),
    #[error("change {instruction}: {problem} in {text:?}")]
    Malformed {
        instruction: &'static str,
        problem: &'static str,
        text: String,
    },
}

/// Applies instructions to the `config` object of an image configuration, in order.
pub(crate) fn apply(
    config: &mut Map<String, Value>,
    changes: &[String],
) -> Result<(), ChangeError> {
    for change in changes {
        let change = change.trim();
        if change.is_empty() {
            continue;
        }
        let (word, rest) = change
            .split_once(char::is_whitespace)
            .unwrap_or((change, ""));
        instruction(config, &word.to_ascii_uppercase(), rest.trim(), change)?;
    }
    Ok(())
}

fn instruction(
    config: &mut Map<String, Value>,
    word: &str,
    rest: &str,
    whole: &str,
) -> Result<(), ChangeError> {
    let bad = |instruction, problem| ChangeError::Malformed {
        instruction,
        problem,
        text: rest.to_owned(),
    };
    match word {
        "CMD" => {
            config.insert("Cmd".to_owned(), json!(command(rest)));
        }
        "ENTRYPOINT" => {
            config.insert("Entrypoint".to_owned(), json!(command(rest)));
        }
        "ENV" => {
            for (key, value) in key_values(rest).ok_or_else(|| bad("ENV", "expected NAME=value"))? {
                set_env(config, &key, &value);
            }
        }
        "LABEL" => {
            let pairs = key_values(rest).ok_or_else(|| bad("LABEL", "expected name=value"))?;
            let labels = object(config, "Labels");
            labels.extend(
                pairs
                    .into_iter()
                    .map(|(key, value)| (key, Value::String(value))),
            );
        }
        "EXPOSE" => {
            let ports =
                ports(rest).ok_or_else(|| bad("EXPOSE", "expected PORT[-PORT][/PROTOCOL]"))?;
            let exposed = object(config, "ExposedPorts");
            exposed.extend(ports.into_iter().map(|port| (port, json!({}))));
        }
        "VOLUME" => {
            let paths = match json_list(rest) {
                Some(paths) => paths,
                None => words(rest).ok_or_else(|| bad("VOLUME", "unbalanced quotes"))?,
            };
            if paths.is_empty() || paths.iter().any(|path| path.trim().is_empty()) {
                return Err(bad("VOLUME", "expected a path"));
            }
            object(config, "Volumes").extend(paths.into_iter().map(|path| (path, json!({}))));
        }
        "USER" | "STOPSIGNAL" if rest.is_empty() || rest.contains(char::is_whitespace) => {
            let name = if word == "USER" { "USER" } else { "STOPSIGNAL" };
            return Err(bad(name, "expected exactly one word"));
        }
        "USER" => {
            config.insert("User".to_owned(), json!(rest));
        }
        "STOPSIGNAL" => {
            config.insert("StopSignal".to_owned(), json!(rest));
        }
        "WORKDIR" => {
            if rest.is_empty() {
                return Err(bad("WORKDIR", "expected a path"));
            }
            let before = config
                .get("WorkingDir")
                .and_then(Value::as_str)
                .unwrap_or("");
            let path = join_path(before, rest);
            config.insert("WorkingDir".to_owned(), json!(path));
        }
        "HEALTHCHECK" => {
            let check = healthcheck(rest).map_err(|problem| bad("HEALTHCHECK", problem))?;
            config.insert("Healthcheck".to_owned(), check);
        }
        "ONBUILD" => {
            if rest.is_empty() {
                return Err(bad("ONBUILD", "expected an instruction"));
            }
            let list = config.entry("OnBuild").or_insert_with(|| json!([]));
            if let Value::Array(list) = list {
                list.push(json!(rest));
            }
        }
        _ => return Err(ChangeError::Unknown(whole.to_owned())),
    }
    Ok(())
}

/// The exec form is a JSON list of strings; anything else is given to the shell.
fn command(rest: &str) -> Vec<String> {
    json_list(rest).unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into(), rest.to_owned()])
}

fn json_list(rest: &str) -> Option<Vec<String>> {
    rest.starts_with('[')
        .then(|| serde_json::from_str(rest).ok())
        .flatten()
}

fn object<'a>(config: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = config.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("made an object above")
}

fn set_env(config: &mut Map<String, Value>, key: &str, value: &str) {
    let entry = json!(format!("{key}={value}"));
    let list = config.entry("Env").or_insert_with(|| json!([]));
    let Value::Array(list) = list else { return };
    let prefix = format!("{key}=");
    match list
        .iter_mut()
        .find(|old| old.as_str().is_some_and(|old| old.starts_with(&prefix)))
    {
        Some(old) => *old = entry,
        None => list.push(entry),
    }
}

/// `a=b c="d e"`, or the old form `a b c` that means a = "b c".
fn key_values(rest: &str) -> Option<Vec<(String, String)>> {
    let first = rest.split_whitespace().next()?;
    if !first.contains('=') {
        let (key, value) = rest.split_once(char::is_whitespace)?;
        return Some(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    words(rest)?
        .into_iter()
        .map(|word| {
            let (key, value) = word.split_once('=')?;
            (!key.is_empty()).then(|| (key.to_owned(), value.to_owned()))
        })
        .collect()
}

/// Splits at blanks outside quotes; a backslash takes the next character as it is.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().push(chars.next()?),
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

fn ports(rest: &str) -> Option<Vec<String>> {
    let mut ports = Vec::new();
    for word in rest.split_whitespace() {
        let (range, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
        let protocol = protocol.to_ascii_lowercase();
        if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
            return None;
        }
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        if first == 0 || last < first {
            return None;
        }
        ports.extend((first..=last).map(|port| format!("{port}/{protocol}")));
    }
    (!ports.is_empty()).then_some(ports)
}

fn join_path(before: &str, path: &str) -> String {
    let joined = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{before}/{path}")
    };
    let mut names: Vec<&str> = Vec::new();
    for name in joined.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

fn healthcheck(rest: &str) -> Result<Value, &'static str> {
    let mut check = Map::new();
    let mut rest = rest;
    while let Some(option) = rest.strip_prefix("--") {
        let (option, after) = option
            .split_once(char::is_whitespace)
            .unwrap_or((option, ""));
        let (name, value) = option.split_once('=').ok_or("expected --option=value")?;
        let key = match name {
            "interval" => "Interval",
            "timeout" => "Timeout",
            "start-period" => "StartPeriod",
            "start-interval" => "StartInterval",
            "retries" => {
                let retries: u32 = value.parse().map_err(|_| "retries is not a number")?;
                check.insert("Retries".to_owned(), json!(retries));
                rest = after.trim_start();
                continue;
            }
            _ => return Err("unknown option"),
        };
        let span: jiff::SignedDuration = value.parse().map_err(|_| "malformed duration")?;
        let nanos = i64::try_from(span.as_nanos()).map_err(|_| "duration out of range")?;
        // Docker: an interval below a millisecond is a mistake.
        if nanos != 0 && nanos < 1_000_000 {
            return Err("duration must be 0 or at least 1ms");
        }
        check.insert(key.to_owned(), json!(nanos));
        rest = after.trim_start();
    }
    let (word, command_text) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let test = match (word.to_ascii_uppercase().as_str(), command_text.trim()) {
        ("NONE", "") => vec!["NONE".to_owned()],
        ("NONE", _) => return Err("NONE takes no arguments"),
        ("CMD", "") => return Err("missing command after CMD"),
        ("CMD", text) => match json_list(text) {
            Some(list) => [vec!["CMD".to_owned()], list].concat(),
            None => vec!["CMD-SHELL".to_owned(), text.to_owned()],
        },
        _ => return Err("expected CMD or NONE"),
    };
    check.insert("Test".to_owned(), json!(test));
    Ok(Value::Object(check))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(changes: &[&str]) -> Result<Value, ChangeError> {
        let mut config = Map::new();
        let changes: Vec<String> = changes.iter().map(|&text| text.to_owned()).collect();
        apply(&mut config, &changes).map(|()| Value::Object(config))
    }

    #[test]
    fn every_instruction_lands_in_its_field() {
        let config = applied(&[
            "CMD echo hi",
            "entrypoint [\"/a\", \"b\"]",
            "ENV A=1 B=\"x y\"",
            "ENV A 2 3",
            "EXPOSE 80 53/udp 90-91",
            "USER 1:2",
            "WORKDIR /a",
            "WORKDIR b/../c",
            "LABEL x=y",
            "STOPSIGNAL SIGINT",
            "VOLUME [\"/v\"]",
            "HEALTHCHECK --interval=1m30s --retries=2 CMD curl x",
            "ONBUILD RUN a",
        ])
        .unwrap();
        assert_eq!(
            config,
            json!({
                "Cmd": ["/bin/sh", "-c", "echo hi"],
                "Entrypoint": ["/a", "b"],
                "Env": ["A=2 3", "B=x y"],
                "ExposedPorts": {"80/tcp": {}, "53/udp": {}, "90/tcp": {}, "91/tcp": {}},
                "User": "1:2",
                "WorkingDir": "/a/c",
                "Labels": {"x": "y"},
                "StopSignal": "SIGINT",
                "Volumes": {"/v": {}},
                "Healthcheck": {"Interval": 90_000_000_000_i64, "Retries": 2, "Test": ["CMD-SHELL", "curl x"]},
                "OnBuild": ["RUN a"],
            })
        );
    }

    #[test]
    fn wrong_instructions_name_themselves() {
        assert!(
            applied(&["RUN x"])
                .unwrap_err()
                .to_string()
                .contains("RUN x is not a valid change")
        );
        for change in [
            "EXPOSE 0",
            "EXPOSE 80/icmp",
            "ENV",
            "ENV A=\"x",
            "USER",
            "VOLUME",
            "HEALTHCHECK",
            "HEALTHCHECK --interval=1 CMD x",
            "HEALTHCHECK --interval=1us CMD x",
            "LABEL =x",
        ] {
            assert!(
                matches!(applied(&[change]), Err(ChangeError::Malformed { .. })),
                "{change}"
            );
        }
    }
}
