//! Placement constraints: `key == value` or `key != value` (SwarmKit `manager/constraint`).

use std::net::IpAddr;

use shoal_types::object::Node;

/// One condition on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Constraint {
    key: Key,
    equal: bool,
    value: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    Id,
    Hostname,
    Ip,
    Role,
    Os,
    Architecture,
    NodeLabel(String),
    EngineLabel(String),
    /// Well formed, but nothing that a node has: never matches, whatever the operator.
    Unknown,
}

/// The text is not a constraint. The messages are Docker's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConstraintError {
    #[error("constraint expected one operator from ==, !=")]
    Operator,
    #[error("key '{0}' is invalid")]
    Key(String),
    #[error("value '{0}' is invalid")]
    Value(String),
}

impl Constraint {
    pub(crate) fn parse_all(texts: &[String]) -> Result<Vec<Self>, ConstraintError> {
        texts.iter().map(|text| Self::parse(text)).collect()
    }

    pub(crate) fn parse(text: &str) -> Result<Self, ConstraintError> {
        let (key, equal, value) = if let Some((key, value)) = text.split_once("==") {
            (key, true, value)
        } else if let Some((key, value)) = text.split_once("!=") {
            (key, false, value)
        } else {
            return Err(ConstraintError::Operator);
        };
        let (key, value) = (key.trim(), value.trim());
        if !is_key(key) {
            return Err(ConstraintError::Key(key.to_owned()));
        }
        if !is_value(value) {
            return Err(ConstraintError::Value(value.to_owned()));
        }
        Ok(Self {
            key: Key::parse(key),
            equal,
            value: value.to_owned(),
        })
    }

    pub(crate) fn matches(&self, node: &Node) -> bool {
        let text = match &self.key {
            Key::Unknown => return false,
            Key::Ip => return self.matches_ip(&node.status.addr),
            Key::Id => node.id.as_str(),
            Key::Hostname => &node.description.hostname,
            Key::Role => node.spec.role.as_str(),
            Key::Os => &node.description.platform.os,
            Key::Architecture => &node.description.platform.architecture,
            // A missing label has the empty value, which `!=` matches.
            Key::NodeLabel(label) => node.spec.labels.get(label).map_or("", String::as_str),
            Key::EngineLabel(label) => node
                .description
                .engine_labels
                .get(label)
                .map_or("", String::as_str),
        };
        (text.to_lowercase() == self.value.to_lowercase()) == self.equal
    }

    /// `value` is an address or a network in CIDR form; anything else matches no node.
    fn matches_ip(&self, addr: &str) -> bool {
        let Ok(addr) = addr.parse::<IpAddr>() else {
            return !self.equal;
        };
        if let Ok(wanted) = self.value.parse::<IpAddr>() {
            return (wanted == addr) == self.equal;
        }
        let Some((net, prefix)) = self.value.split_once('/') else {
            return false;
        };
        let (Ok(net), Ok(prefix)) = (net.parse::<IpAddr>(), prefix.parse::<u32>()) else {
            return false;
        };
        let inside = match (net, addr) {
            (IpAddr::V4(net), IpAddr::V4(addr)) if prefix <= 32 => {
                (u64::from(u32::from(net) ^ u32::from(addr)) >> (32 - prefix)) == 0
            }
            (IpAddr::V6(net), IpAddr::V6(addr)) if prefix <= 128 => {
                (u128::from(net) ^ u128::from(addr))
                    .checked_shr(128 - prefix)
                    .unwrap_or(0)
                    == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
            _prefix_too_long => return false,
        };
        inside == self.equal
    }
}

impl Key {
    fn parse(key: &str) -> Self {
        let lower = key.to_ascii_lowercase();
        let label = |prefix: &str| {
            lower
                .starts_with(prefix)
                .then(|| key[prefix.len()..].to_owned())
        };
        match lower.as_str() {
            "node.id" => Self::Id,
            "node.hostname" => Self::Hostname,
            "node.ip" => Self::Ip,
            "node.role" => Self::Role,
            "node.platform.os" => Self::Os,
            "node.platform.arch" => Self::Architecture,
            _other => label("node.labels.")
                .map(Self::NodeLabel)
                .or_else(|| label("engine.labels.").map(Self::EngineLabel))
                .unwrap_or(Self::Unknown),
        }
    }
}

/// `^(?i)[a-z_][a-z0-9\-_.]+$`
fn is_key(text: &str) -> bool {
    let mut chars = text.chars();
    let first = chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    first && text.len() > 1 && chars.all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// `^(?i)[a-z0-9:\-_\s\.\*\(\)\?\+\[\]\\\^\$\|\/]+$`
fn is_value(text: &str) -> bool {
    let allowed = |c: char| {
        c.is_ascii_alphanumeric() || c.is_ascii_whitespace() || ":-_.*()?+[]\\^$|/".contains(c)
    };
    !text.is_empty() && text.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn matches(node: &Node, text: &str) -> bool {
        Constraint::parse(text).expect("a constraint").matches(node)
    }

    #[test]
    fn every_key_of_dockers_grammar_is_known() {
        let mut node = testing::node(1);
        node.description.hostname = "Web-1".to_owned();
        node.spec.labels.insert("Zone".to_owned(), "EU".to_owned());
        node.description
            .engine_labels
            .insert("disk".to_owned(), "ssd".to_owned());
        node.status.addr = "10.1.2.3".to_owned();
        for text in [
            "node.hostname==web-1",
            "node.hostname == WEB-1",
            "node.role==manager",
            "NODE.ROLE != worker",
            "node.labels.Zone == eu",
            "node.labels.zone != eu",
            "engine.labels.disk==ssd",
            "node.platform.os == linux",
            "node.platform.arch == x86_64",
            "node.ip == 10.1.2.3",
            "node.ip == 10.1.0.0/16",
            "node.ip != 10.2.0.0/16",
            "node.ip == 0.0.0.0/0",
        ] {
            assert!(matches(&node, text), "{text}");
        }
        let id = format!("node.id=={}", node.id);
        assert!(matches(&node, &id));
        for text in [
            "node.hostname==web",
            "node.labels.Zone != EU",
            "node.ip == 10.2.0.0/16",
            "node.ip == here",
            "node.color == red",
            "node.color != red",
        ] {
            assert!(!matches(&node, text), "{text}");
        }
    }

    #[test]
    fn malformed_constraints_say_what_is_wrong() {
        let error = |text| Constraint::parse(text).expect_err(text).to_string();
        assert_eq!(
            error("node.role"),
            "constraint expected one operator from ==, !="
        );
        assert_eq!(error("node.role=manager"), error("x"));
        assert_eq!(error("1x==a"), "key '1x' is invalid");
        assert_eq!(error("node.role=="), "value '' is invalid");
        assert_eq!(error("node.role==a,b"), "value 'a,b' is invalid");
    }
}
