//! `--publish`: `[PUBLISHED:]TARGET[/PROTOCOL]` with ranges, or `published=,target=,protocol=,mode=`.

use std::str::FromStr;

use serde_json::{Map, Value};

use super::{BadValue, csv};

/// The ports that one `--publish` asks for; a range gives several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ports(pub(crate) Vec<Port>);

/// One published port of a service, in the API's words.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Port {
    pub(crate) protocol: String,
    pub(crate) target: u16,
    /// 0: chosen by the cluster.
    pub(crate) published: u16,
    pub(crate) mode: &'static str,
}

impl Port {
    pub(crate) fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("Protocol".into(), self.protocol.clone().into());
        if self.target != 0 {
            map.insert("TargetPort".into(), self.target.into());
        }
        if self.published != 0 {
            map.insert("PublishedPort".into(), self.published.into());
        }
        map.insert("PublishMode".into(), self.mode.into());
        Value::Object(map)
    }
}

impl FromStr for Ports {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        if is_long(text) {
            long(text)
        } else {
            match on_address(text)? {
                ("", ports) => Ok(ports),
                _ => Err(BadValue::new("hostip is not supported")),
            }
        }
        .map(Self)
    }
}

/// Whether `\w+=\w+` occurs anywhere, which is how Docker tells the two forms apart.
pub(crate) fn is_long(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices('=')
        .any(|(at, _)| text[..at].ends_with(word) && text[at + 1..].starts_with(word))
}

fn long(text: &str) -> Result<Vec<Port>, BadValue> {
    let mut port = Port {
        protocol: "tcp".into(),
        target: 0,
        published: 0,
        mode: "ingress",
    };
    for field in csv::fields(text)? {
        let lower = field.to_lowercase();
        let (key, value) = lower
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| BadValue::new(format!("invalid field: {field}")))?;
        let number = |what: &str| {
            let why = match value.parse::<u16>() {
                Ok(number) if !value.starts_with('+') => return Ok(number),
                Err(error) if *error.kind() == std::num::IntErrorKind::PosOverflow => {
                    "value out of range"
                }
                _ => "invalid syntax",
            };
            Err(BadValue::new(format!(
                "invalid {what} port ({value}): value must be an integer: {why}"
            )))
        };
        match key {
            "protocol" => match value {
                "tcp" | "udp" | "sctp" => value.clone_into(&mut port.protocol),
                _ => {
                    return Err(BadValue::new(format!("invalid protocol value '{value}'")));
                }
            },
            "mode" => {
                port.mode = match value {
                    "ingress" => "ingress",
                    "host" => "host",
                    _ => {
                        return Err(BadValue::new(format!(
                            "invalid publish mode value ({value}): must be either 'ingress' or 'host'"
                        )));
                    }
                }
            }
            "target" => port.target = number("target")?,
            "published" => port.published = number("published")?,
            _ => return Err(BadValue::new(format!("invalid field key: {key}"))),
        }
    }
    if port.target == 0 {
        return Err(BadValue::new("missing mandatory field 'target'"));
    }
    Ok(vec![port])
}

/// The short form, which may begin with an address; it is given apart, since services listen on all.
pub(crate) fn on_address(text: &str) -> Result<(&str, Vec<Port>), BadValue> {
    let (front, container) = text.rsplit_once(':').unwrap_or(("", text));
    let (ip, host) = front.rsplit_once(':').unwrap_or(("", front));
    let (container, protocol) = match container.split_once('/') {
        Some(("", _)) => ("", ""),
        Some((port, protocol)) => (port, protocol.split('/').next().unwrap_or("")),
        None => (container, ""),
    };
    let protocol = if protocol.is_empty() { "tcp" } else { protocol };
    if !ip.is_empty() {
        let bare = ip
            .strip_prefix('[')
            .and_then(|ip| ip.strip_suffix(']'))
            .unwrap_or(ip);
        if bare.parse::<std::net::IpAddr>().is_err() {
            return Err(BadValue::new(format!("invalid IP address: {bare}")));
        }
    }
    if container.is_empty() {
        return Err(BadValue::new(format!("no port specified: {text}<empty>")));
    }
    let target = range(container)
        .ok_or_else(|| BadValue::new(format!("invalid containerPort: {container}")))?;
    let published = if host.is_empty() {
        None
    } else {
        Some(range(host).ok_or_else(|| BadValue::new(format!("invalid hostPort: {host}")))?)
    };
    let lower = protocol.to_lowercase();
    let spans = |(first, last): (u16, u16)| last - first;
    if let Some(published) = published
        && spans(target) != spans(published)
        && spans(target) != 0
    {
        return Err(BadValue::new(format!(
            "invalid ranges specified for container and host Ports: {container} and {host}"
        )));
    }
    if !matches!(lower.as_str(), "tcp" | "udp" | "sctp") {
        return Err(BadValue::new(format!("invalid proto: {protocol}")));
    }
    let port = |target, published| Port {
        protocol: lower.clone(),
        target,
        published,
        mode: "ingress",
    };
    let ports = match published {
        // One target under several published ports.
        Some((first, last)) if spans(target) == 0 => {
            (first..=last).map(|host| port(target.0, host)).collect()
        }
        Some((first, last)) => (target.0..=target.1)
            .zip(first..=last)
            .map(|(target, host)| port(target, host))
            .collect(),
        None => (target.0..=target.1)
            .map(|target| port(target, 0))
            .collect(),
    };
    Ok((ip, ports))
}

fn range(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| text.parse::<u16>().ok().filter(|_| !text.starts_with('+'));
    let (first, last) = match text.split_once('-') {
        Some((first, rest)) => (number(first)?, number(rest.split('-').next()?)?),
        None => (number(text)?, number(text)?),
    };
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(text: &str) -> Vec<(u16, u16, String, &'static str)> {
        let Ports(ports) = text.parse().unwrap();
        ports
            .into_iter()
            .map(|p| (p.published, p.target, p.protocol, p.mode))
            .collect()
    }

    #[test]
    fn short_form_takes_ranges_and_protocols() {
        let tcp = || "tcp".to_owned();
        assert_eq!(ports("80"), [(0, 80, tcp(), "ingress")]);
        assert_eq!(ports("8080:80"), [(8080, 80, tcp(), "ingress")]);
        assert_eq!(ports("53:53/UDP"), [(53, 53, "udp".into(), "ingress")]);
        assert_eq!(
            ports("8080-8081:80-81"),
            [(8080, 80, tcp(), "ingress"), (8081, 81, tcp(), "ingress")]
        );
        assert_eq!(
            ports("8080-8081:80"),
            [(8080, 80, tcp(), "ingress"), (8081, 80, tcp(), "ingress")]
        );
        assert_eq!(ports("80/"), [(0, 80, tcp(), "ingress")]);
        assert_eq!(ports("65535:65535").len(), 1);
        assert_eq!(ports("65534-65535:65534-65535").len(), 2);
    }

    #[test]
    fn long_form_takes_every_field() {
        assert_eq!(
            ports("published=8080,target=80,protocol=udp,mode=host"),
            [(8080, 80, "udp".into(), "host")]
        );
        assert_eq!(ports("target=80"), [(0, 80, "tcp".into(), "ingress")]);
    }

    #[test]
    fn bad_ports_say_what_docker_says() {
        let cases = [
            ("x:y", "invalid containerPort: y"),
            ("x:80", "invalid hostPort: x"),
            ("", "no port specified: <empty>"),
            ("80/http", "invalid proto: http"),
            ("127.0.0.1:80:80", "hostip is not supported"),
            ("a:80:80", "invalid IP address: a"),
            (
                "8080-8082:80-81",
                "invalid ranges specified for container and host Ports: 80-81 and 8080-8082",
            ),
            ("published=80", "missing mandatory field 'target'"),
            (
                "target=x",
                "invalid target port (x): value must be an integer: invalid syntax",
            ),
            (
                "target=80,published=70000",
                "invalid published port (70000): value must be an integer: value out of range",
            ),
            ("target=80,protocol=http", "invalid protocol value 'http'"),
            (
                "target=80,mode=x",
                "invalid publish mode value (x): must be either 'ingress' or 'host'",
            ),
            ("foo=bar", "invalid field key: foo"),
            ("target=80,foo", "invalid field: foo"),
            ("70000:80", "invalid hostPort: 70000"),
            ("81-80", "invalid containerPort: 81-80"),
        ];
        for (text, message) in cases {
            assert_eq!(
                text.parse::<Ports>().unwrap_err().to_string(),
                message,
                "{text}"
            );
        }
    }
}
