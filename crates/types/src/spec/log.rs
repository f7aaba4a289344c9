//! Where a container's output goes, as the user describes it in Docker's words.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A log driver by name, and its options; without a name the node's own one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogDriver {
    pub name: String,
    pub options: BTreeMap<String, String>,
}

/// What a [`LogDriver`] asks for. `None` is for what it does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogKeeping {
    /// Nothing is kept, and there is nothing to read.
    Nothing,
    Files {
        /// Bytes after which a new file is begun; more than 0.
        max_size: Option<u64>,
        /// How many files are kept, the current one included; at least 1.
        max_files: Option<u32>,
    },
}

/// There is no such driver or option, or the option has no such value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogDriverError {
    #[error(
        "logger: no log driver named '{name}' is registered: there are json-file, local and none"
    )]
    Driver { name: String },
    #[error("unknown log opt '{option}' for {driver} log driver: there are max-size and max-file")]
    Option { driver: String, option: String },
    #[error("log opt {option}={value}: {reason}")]
    Value {
        option: &'static str,
        value: String,
        reason: &'static str,
    },
}

impl LogDriver {
    /// Docker's driver that keeps nothing.
    pub const NONE: &'static str = "none";

    /// What the name and the options mean.
    pub fn keeping(&self) -> Result<LogKeeping, LogDriverError> {
        // Docker's defaults of the driver `local`; those of `json-file` are the node's.
        let (mut max_size, mut max_files) = match self.name.as_str() {
            // Docker looks at no option of it, either.
            Self::NONE => return Ok(LogKeeping::Nothing),
            "" | "json-file" => (None, None),
            "local" => (Some(20_000_000), Some(5)),
            _ => {
                return Err(LogDriverError::Driver {
                    name: self.name.clone(),
                });
            }
        };
        for (option, value) in &self.options {
            let bad = |option, reason| LogDriverError::Value {
                option,
                value: value.clone(),
                reason,
            };
            match option.as_str() {
                "max-size" => {
                    let size = human_size(value).filter(|size| *size > 0).ok_or_else(|| {
                        bad(
                            "max-size",
                            "max-size must be a positive number, such as 10m",
                        )
                    })?;
                    max_size = Some(size);
                }
                "max-file" => {
                    let files = value.parse().ok().filter(|files| *files > 0);
                    let reason = "max-file must be a number and cannot be less than 1";
                    max_files = Some(files.ok_or_else(|| bad("max-file", reason))?);
                }
                _ => {
                    let named = if self.name.is_empty() {
                        "json-file"
                    } else {
                        &self.name
                    };
                    return Err(LogDriverError::Option {
                        driver: named.to_owned(),
                        option: option.clone(),
                    });
                }
            }
        }
        Ok(LogKeeping::Files {
            max_size,
            max_files,
        })
    }

    /// The driver of a container on a node whose own one is `own`. As in Docker, options of the node's driver are for containers
    /// with that driver which do not say otherwise.
    pub fn on(driver: Option<&Self>, own: &Self) -> Self {
        let Some(driver) = driver else {
            return own.clone();
        };
        let mut driver = driver.clone();
        if driver.name.is_empty() {
            driver.name.clone_from(&own.name);
        }
        if driver.name == own.name {
            for (option, value) in &own.options {
                let value = || value.clone();
                driver.options.entry(option.clone()).or_insert_with(value);
            }
        }
        driver
    }

    /// Whether output is kept for `service logs`.
    pub fn keeps_output(&self) -> bool {
        self.name != Self::NONE
    }
}

/// Bytes out of a number with an optional suffix, in powers of 1000 as Docker reads it here: `10m`, `1.5 GB`, `512`.
fn human_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, suffix) = text.split_at(digits.unwrap_or(text.len()));
    let suffix = suffix.strip_prefix(' ').unwrap_or(suffix);
    let suffix = suffix.to_ascii_lowercase();
    let number: f64 = number.parse().ok()?;
    let unit = match suffix.as_str() {
        "" | "b" => "",
        _ => suffix
            .strip_suffix("ib")
            .or_else(|| suffix.strip_suffix('b'))
            .unwrap_or(&suffix),
    };
    let factor = match unit {
        "" => 1.0,
        "k" => 1e3,
        "m" => 1e6,
        "g" => 1e9,
        "t" => 1e12,
        "p" => 1e15,
        _ => return None,
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "digits and a point are not negative; what is beyond u64 is as good as no limit"
    )]
    Some((number * factor) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeping(name: &str, options: &[(&str, &str)]) -> Result<LogKeeping, String> {
        let options = options.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        let driver = LogDriver {
            name: name.to_owned(),
            options: options.collect(),
        };
        driver.keeping().map_err(|error| error.to_string())
    }

    fn files(max_size: Option<u64>, max_files: Option<u32>) -> LogKeeping {
        LogKeeping::Files {
            max_size,
            max_files,
        }
    }

    #[test]
    fn drivers_and_their_options_are_dockers() {
        assert_eq!(keeping("", &[]), Ok(files(None, None)));
        let both = [("max-size", "10m"), ("max-file", "3")];
        for name in ["", "json-file", "local"] {
            assert_eq!(keeping(name, &both), Ok(files(Some(10_000_000), Some(3))));
        }
        assert_eq!(keeping("json-file", &both[1..]), Ok(files(None, Some(3))));
        assert_eq!(keeping("local", &[]), Ok(files(Some(20_000_000), Some(5))));
        assert_eq!(keeping("none", &[("any", "x")]), Ok(LogKeeping::Nothing));
    }

    #[test]
    fn a_nodes_options_are_for_its_own_driver() {
        let driver = |name: &str, options: &[(&str, &str)]| LogDriver {
            name: name.to_owned(),
            options: options
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect(),
        };
        let own = driver("json-file", &[("max-size", "1m"), ("max-file", "2")]);
        let on = |wanted: LogDriver| LogDriver::on(Some(&wanted), &own);
        assert_eq!(LogDriver::on(None, &own), own);
        assert_eq!(
            on(driver("", &[("max-size", "9m")])),
            driver("json-file", &[("max-size", "9m"), ("max-file", "2")])
        );
        assert_eq!(on(driver("local", &[])), driver("local", &[]));
    }

    #[test]
    fn what_is_unknown_is_named() {
        let refused = |name, options| keeping(name, options).unwrap_err();
        assert_eq!(
            refused("syslog", &[]),
            "logger: no log driver named 'syslog' is registered: there are json-file, local and none"
        );
        assert_eq!(
            refused("local", &[("tag", "x")]),
            "unknown log opt 'tag' for local log driver: there are max-size and max-file"
        );
        assert_eq!(
            refused("", &[("max-file", "0")]),
            "log opt max-file=0: max-file must be a number and cannot be less than 1"
        );
        for size in ["0", "-1", "much", "", "10x", "1kk", "1ibb", "1.2.3"] {
            assert!(keeping("", &[("max-size", size)]).is_err(), "{size}");
        }
    }

    #[test]
    fn sizes_are_in_powers_of_a_thousand() {
        for (text, bytes) in [
            ("512", 512),
            ("1b", 1),
            ("1.5k", 1500),
            ("2 MB", 2_000_000),
            ("3GiB", 3_000_000_000),
            ("1t", 1_000_000_000_000),
        ] {
            assert_eq!(human_size(text), Some(bytes), "{text}");
        }
    }
}
