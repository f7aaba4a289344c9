//! `--secret` and `--config`: `NAME`, or `source=,target=,uid=,gid=,mode=`.

use std::str::FromStr;

use super::{BadValue, csv, uint};

/// A secret or config that a service sees as a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileReference {
    pub(crate) source: String,
    pub(crate) target: String,
    pub(crate) uid: String,
    pub(crate) gid: String,
    /// Permission bits.
    pub(crate) mode: u32,
}

impl FileReference {
    fn parse(text: &str, kind: &str) -> Result<Self, BadValue> {
        let mut reference = Self {
            source: String::new(),
            target: String::new(),
            uid: "0".into(),
            gid: "0".into(),
            mode: 0o444,
        };
        let fields = csv::fields(text)?;
        if let [name] = fields.as_slice()
            && !name.contains('=')
        {
            reference.source.clone_from(name);
            reference.target.clone_from(name);
            return Ok(reference);
        }
        for field in fields {
            let (key, value) = field
                .split_once('=')
                .filter(|(key, _)| !key.is_empty())
                .ok_or_else(|| {
                    BadValue::new(format!("invalid field '{field}' must be a key=value pair"))
                })?;
            match key.to_lowercase().as_str() {
                "source" | "src" => value.clone_into(&mut reference.source),
                "target" => value.clone_into(&mut reference.target),
                "uid" => value.clone_into(&mut reference.uid),
                "gid" => value.clone_into(&mut reference.gid),
                "mode" => {
                    reference.mode = uint(value)
                        .and_then(|mode| {
                            u32::try_from(mode).map_err(|_| {
                                BadValue::new(format!(
                                    "strconv.ParseUint: parsing {value:?}: value out of range"
                                ))
                            })
                        })
                        .map_err(|error| {
                            BadValue::new(format!("invalid mode specified: {error}"))
                        })?;
                }
                _ => {
                    return Err(BadValue::new(format!(
                        "invalid field in {kind} request: {key}"
                    )));
                }
            }
        }
        if reference.source.is_empty() {
            return Err(BadValue::new("source is required"));
        }
        if reference.target.is_empty() {
            reference.target.clone_from(&reference.source);
        }
        Ok(reference)
    }

    pub(crate) fn config(text: &str) -> Result<Self, BadValue> {
        Self::parse(text, "config")
    }

    pub(crate) fn secret(text: &str) -> Result<Self, BadValue> {
        Self::parse(text, "secret")
    }
}

impl FromStr for FileReference {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        Self::secret(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_name_a_file() {
        let short = FileReference::secret("db").unwrap();
        assert_eq!((short.target.as_str(), short.mode), ("db", 0o444));
        let long = FileReference::config("source=db,target=/etc/db,uid=1,gid=2,mode=0400").unwrap();
        assert_eq!(
            (
                long.source.as_str(),
                long.target.as_str(),
                long.uid.as_str(),
                long.gid.as_str()
            ),
            ("db", "/etc/db", "1", "2")
        );
        assert_eq!(long.mode, 0o400);
    }

    #[test]
    fn bad_references_say_what_docker_says() {
        let cases = [
            ("target=x", "source is required"),
            (
                "source=x,foo",
                "invalid field 'foo' must be a key=value pair",
            ),
            ("source=x,foo=y", "invalid field in secret request: foo"),
            (
                "source=x,mode=9z",
                "invalid mode specified: strconv.ParseUint: parsing \"9z\": invalid syntax",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(
                FileReference::secret(text).unwrap_err().to_string(),
                message
            );
        }
    }
}
