//! `--ulimit NAME=SOFT[:HARD]` (go-units `ParseUlimit`).

use std::str::FromStr;

use serde_json::{Value, json};

use super::BadValue;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ulimit {
    pub(crate) name: String,
    /// -1: no limit.
    pub(crate) soft: i64,
    pub(crate) hard: i64,
}

const NAMES: [&str; 16] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
    "as",
];

impl Ulimit {
    pub(crate) fn to_json(&self) -> Value {
        json!({"Name": self.name, "Hard": self.hard, "Soft": self.soft})
    }
}

impl FromStr for Ulimit {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let (name, limits) = text
            .split_once('=')
            .ok_or_else(|| BadValue::new(format!("invalid ulimit argument: {text}")))?;
        if !NAMES.contains(&name) || name == "as" {
            return Err(BadValue::new(format!("invalid ulimit type: {name}")));
        }
        let parts: Vec<&str> = limits.split(':').collect();
        if parts.len() > 2 {
            return Err(BadValue::new(format!(
                "too many limit value arguments - {limits}, can only have up to two, `soft[:hard]`"
            )));
        }
        let number = |text: &str| {
            text.parse::<i64>().map_err(|_| {
                BadValue::new(format!(
                    "strconv.ParseInt: parsing {text:?}: invalid syntax"
                ))
            })
        };
        let soft = number(parts[0])?;
        let hard = match parts.get(1) {
            Some(hard) => number(hard)?,
            None => soft,
        };
        if hard != -1 && (soft > hard || soft == -1) {
            return Err(if soft == -1 {
                BadValue::new(format!(
                    "ulimit soft limit must be less than or equal to hard limit: soft: -1 (unlimited), hard: {hard}"
                ))
            } else {
                BadValue::new(format!(
                    "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
                ))
            });
        }
        Ok(Self {
            name: name.to_owned(),
            soft,
            hard,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_a_soft_and_a_hard_part() {
        let limit: Ulimit = "nofile=1024:2048".parse().unwrap();
        assert_eq!((limit.soft, limit.hard), (1024, 2048));
        let limit: Ulimit = "core=-1".parse().unwrap();
        assert_eq!((limit.soft, limit.hard), (-1, -1));
        let cases = [
            ("nofile", "invalid ulimit argument: nofile"),
            ("foo=1", "invalid ulimit type: foo"),
            (
                "nofile=1:2:3",
                "too many limit value arguments - 1:2:3, can only have up to two, `soft[:hard]`",
            ),
            (
                "nofile=2:1",
                "ulimit soft limit must be less than or equal to hard limit: 2 > 1",
            ),
            (
                "nofile=x",
                "strconv.ParseInt: parsing \"x\": invalid syntax",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(text.parse::<Ulimit>().unwrap_err().to_string(), message);
        }
    }
}
