//! `--network NAME` or `--network name=,alias=,driver-opt=`.

use std::{collections::BTreeMap, str::FromStr};

use serde_json::{Map, Value, json};

use super::{BadValue, csv, port};

/// A network that a service joins, by name or id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct NetworkAttachment {
    pub(crate) target: String,
    pub(crate) aliases: Vec<String>,
    pub(crate) driver_options: BTreeMap<String, String>,
}

impl NetworkAttachment {
    /// The API's form, with the network's id in place of its name.
    pub(crate) fn to_json(&self, id: &str) -> Value {
        let mut map = Map::new();
        map.insert("Target".into(), id.into());
        if !self.aliases.is_empty() {
            map.insert("Aliases".into(), json!(self.aliases));
        }
        if !self.driver_options.is_empty() {
            map.insert("DriverOpts".into(), json!(self.driver_options));
        }
        Value::Object(map)
    }
}

impl FromStr for NetworkAttachment {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        if !port::is_long(text) {
            return Ok(Self {
                target: text.to_owned(),
                ..Self::default()
            });
        }
        let mut network = Self::default();
        for field in csv::fields(text)? {
            let lower = field.to_lowercase();
            let (key, value) = lower
                .split_once('=')
                .filter(|(key, _)| !key.is_empty())
                .ok_or_else(|| BadValue::new(format!("invalid field {field}")))?;
            let value = value.trim();
            match key.trim() {
                "name" => value.clone_into(&mut network.target),
                "alias" => network.aliases.push(value.to_owned()),
                "driver-opt" => {
                    let (key, value) = value
                        .split_once('=')
                        .filter(|(key, _)| !key.is_empty())
                        .ok_or_else(|| {
                            BadValue::new("invalid key value pair format in driver options")
                        })?;
                    network
                        .driver_options
                        .insert(key.trim().to_owned(), value.trim().to_owned());
                }
                // Meant for single containers; a service cannot use them, and Docker drops them too.
                "ip" | "ip6" | "mac-address" | "link-local-ip" => {}
                "gw-priority" => {
                    value.parse::<i64>().map_err(|_| {
                        BadValue::new(format!("invalid gw-priority ({value}): invalid syntax"))
                    })?;
                }
                key => return Err(BadValue::new(format!("invalid field key {key}"))),
            }
        }
        if network.target.is_empty() {
            return Err(BadValue::new("network name/id is not specified"));
        }
        Ok(network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_name_a_network() {
        let short: NetworkAttachment = "front".parse().unwrap();
        assert_eq!(short.target, "front");
        let long: NetworkAttachment = "name=front,alias=web,alias=www,driver-opt=a=b"
            .parse()
            .unwrap();
        assert_eq!(
            long.to_json("id"),
            json!({"Target": "id", "Aliases": ["web", "www"], "DriverOpts": {"a": "b"}})
        );
    }

    #[test]
    fn bad_networks_say_what_docker_says() {
        let cases = [
            ("alias=web", "network name/id is not specified"),
            ("name=a,foo", "invalid field foo"),
            ("name=a,foo=b", "invalid field key foo"),
            (
                "name=a,driver-opt=x",
                "invalid key value pair format in driver options",
            ),
            (
                "name=a,gw-priority=x",
                "invalid gw-priority (x): invalid syntax",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(
                text.parse::<NetworkAttachment>().unwrap_err().to_string(),
                message
            );
        }
    }
}
