//! Flags that may be given many times: labels, variables, hosts, domains, capabilities.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::BadValue;

/// Checks `KEY[=VALUE]` of a label.
pub(crate) fn label(text: &str) -> Result<String, BadValue> {
    let key = text
        .split('=')
        .next()
        .unwrap_or("")
        .trim_start_matches([' ', '\t']);
    if key.is_empty() {
        return Err(BadValue::new(format!("invalid label '{text}': empty name")));
    }
    if key.contains([' ', '\t']) {
        return Err(BadValue::new(format!(
            "label '{text}' contains whitespaces"
        )));
    }
    Ok(text.to_owned())
}

/// Checks `KEY=VALUE` of a variable; a bare `KEY` takes its value from this process, if it has one.
pub(crate) fn env(text: &str) -> Result<String, BadValue> {
    env_from(text, |key| std::env::var(key).ok())
}

fn env_from(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<String, BadValue> {
    let key = text.split('=').next().unwrap_or("");
    if key.is_empty() {
        return Err(BadValue::new(format!(
            "invalid environment variable: {text}"
        )));
    }
    if !text.contains('=')
        && let Some(value) = lookup(key)
    {
        return Ok(format!("{key}={value}"));
    }
    Ok(text.to_owned())
}

/// Checks `HOST:IP`.
pub(crate) fn extra_host(text: &str) -> Result<String, BadValue> {
    let separator = text.find(['=', ':']);
    let (host, ip) = match separator {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => ("", ""),
    };
    if host.is_empty() {
        return Err(BadValue::new(format!("bad format for add-host: {text:?}")));
    }
    let bare = ip
        .strip_prefix('[')
        .and_then(|ip| ip.strip_suffix(']'))
        .unwrap_or(ip);
    if bare != "host-gateway" && bare.parse::<std::net::IpAddr>().is_err() {
        return Err(BadValue::new(format!(
            "invalid IP address in add-host: {ip:?}"
        )));
    }
    Ok(format!("{host}:{bare}"))
}

/// `HOST:IP` in the form of `/etc/hosts`, which services use.
pub(crate) fn hosts_line(entry: &str) -> Option<String> {
    let (host, ip) = entry.split_once(':')?;
    Some(format!("{ip} {host}"))
}

/// Checks a nameserver's address.
pub(crate) fn ip(text: &str) -> Result<String, BadValue> {
    text.trim()
        .parse::<std::net::IpAddr>()
        .map(|ip| ip.to_string())
        .map_err(|_| BadValue::new(format!("IP address is not correctly formatted: {text}")))
}

/// Checks a search domain; `.` stands for none.
pub(crate) fn domain(text: &str) -> Result<String, BadValue> {
    let text = text.trim_matches(' ');
    let valid = |text: &str| {
        text.len() < 255
            && text.split('.').all(|part| {
                !part.is_empty()
                    && part.len() <= 63
                    && !part.starts_with('-')
                    && !part.ends_with('-')
                    && part
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            })
    };
    let bare = text.strip_suffix('.').unwrap_or(text);
    if text == "." {
        Ok(text.to_owned())
    } else if bare.contains(|c: char| c.is_ascii_alphabetic()) && valid(bare) {
        Ok(bare.to_owned())
    } else {
        Err(BadValue::new(format!("{text} is not a valid domain")))
    }
}

/// `KEY=VALUE` entries as a map; the last one of a key counts.
pub(crate) fn pairs(entries: &[String]) -> BTreeMap<String, String> {
    entries
        .iter()
        .map(|entry| {
            let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
            (key.to_owned(), value.to_owned())
        })
        .collect()
}

/// Reads a file of variables: a `KEY=VALUE` a line, comments with `#`, bare keys taken from this process.
pub(crate) fn env_file(path: &Path) -> Result<Vec<String>, BadValue> {
    let shown = path.display();
    let bytes = std::fs::read(path)
        .map_err(|error| BadValue::new(format!("open {shown}: {}", lower_os(&error))))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| BadValue::new(format!("env file {shown} contains invalid utf8 bytes")))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut variables = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key = line.split('=').next().unwrap_or("");
        if key.is_empty() {
            return Err(BadValue::new(format!(
                "invalid env file ({shown}): no variable name on line '{line}'"
            )));
        }
        if key.contains(char::is_whitespace) && line.contains('=') {
            return Err(BadValue::new(format!(
                "invalid env file ({shown}): variable '{key}' contains whitespaces on line {}",
                number + 1
            )));
        }
        if line.contains('=') {
            variables.push(line.to_owned());
        } else if let Ok(value) = std::env::var(line.trim()) {
            variables.push(format!("{}={value}", line.trim()));
        }
    }
    Ok(variables)
}

fn lower_os(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or("");
    text.to_lowercase()
}

/// All variables of a command line, files first, each name once with its last value.
pub(crate) fn merge_env(variables: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut merged: Vec<String> = Vec::new();
    for variable in variables {
        let prefix = format!("{}=", variable.split('=').next().unwrap_or(""));
        merged.retain(|other| *other == variable || !other.starts_with(&prefix));
        merged.push(variable);
    }
    merged
}

/// `ALL` or `CAP_NAME`, however it was written.
pub(crate) fn capability(text: &str) -> String {
    let upper = text.trim().to_uppercase();
    if upper == "ALL" || upper == "RESET" || upper.starts_with("CAP_") {
        upper
    } else {
        format!("CAP_{upper}")
    }
}

/// What to add and what to drop, sorted; adding wins, and `ALL` swallows the rest.
pub(crate) fn capabilities(add: &[String], drop: &[String]) -> (Vec<String>, Vec<String>) {
    let set = |texts: &[String]| -> BTreeSet<String> {
        let set: BTreeSet<String> = texts.iter().map(|text| capability(text)).collect();
        if set.contains("ALL") {
            BTreeSet::from(["ALL".to_owned()])
        } else {
            set
        }
    };
    let (add, drop) = (set(add), set(drop));
    let dropped = drop.difference(&add).filter(|cap| *cap != "RESET").cloned();
    let dropped = dropped.collect();
    let added = add.into_iter().filter(|cap| cap != "RESET").collect();
    (added, dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_checked_with_docker_messages() {
        let error = |result: Result<String, BadValue>| result.unwrap_err().to_string();
        assert_eq!(error(label("=x")), "invalid label '=x': empty name");
        assert_eq!(error(label("a b=x")), "label 'a b=x' contains whitespaces");
        assert_eq!(error(env("=x")), "invalid environment variable: =x");
        assert_eq!(error(ip("x")), "IP address is not correctly formatted: x");
        assert_eq!(error(domain("-x")), "-x is not a valid domain");
        assert_eq!(domain("example.com."), Ok("example.com".into()));
        assert_eq!(error(extra_host("x")), "bad format for add-host: \"x\"");
        assert_eq!(
            error(extra_host("a:b")),
            "invalid IP address in add-host: \"b\""
        );
        assert_eq!(extra_host("a:::1"), Ok("a:::1".into()));
        assert_eq!(hosts_line("a:::1"), Some("::1 a".into()));
    }

    #[test]
    fn bare_variables_come_from_the_process() {
        let lookup = |key: &str| (key == "HERE").then(|| "1".to_owned());
        assert_eq!(env_from("HERE", lookup), Ok("HERE=1".into()));
        assert_eq!(env_from("GONE", lookup), Ok("GONE".into()));
        assert_eq!(env_from("HERE=", lookup), Ok("HERE=".into()));
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let words = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
        assert_eq!(merge_env(words(&["A=1", "B=2", "A=3"])), ["B=2", "A=3"]);
    }

    #[test]
    fn env_files_skip_comments_and_name_bad_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        std::fs::write(&path, "\u{feff}# c\n\nA=1\n  B= 2 \nSHOAL_TEST_NOT_SET\n").unwrap();
        assert_eq!(env_file(&path).unwrap(), ["A=1", "B= 2 "]);
        std::fs::write(&path, "=x\n").unwrap();
        assert!(
            env_file(&path)
                .unwrap_err()
                .to_string()
                .contains("no variable name")
        );
        let missing = env_file(&dir.path().join("none")).unwrap_err().to_string();
        assert!(
            missing.ends_with("none: no such file or directory"),
            "{missing}"
        );
    }

    #[test]
    fn capabilities_are_normalised() {
        let words = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
        let (add, drop) = capabilities(&words(&["net_admin", "CAP_CHOWN"]), &words(&["ALL", "x"]));
        assert_eq!(add, ["CAP_CHOWN", "CAP_NET_ADMIN"]);
        assert_eq!(drop, ["ALL"]);
        let (_, drop) = capabilities(&words(&["chown"]), &words(&["chown", "reset"]));
        assert!(drop.is_empty());
    }
}
