//! `--mount type=bind|volume|tmpfs|image|cluster|npipe,source=…,target=…,…`.

use std::str::FromStr;

use serde_json::{Map, Value, json};

use super::{BadValue, Bytes, boolean, csv};

/// One mount, as the API's JSON, checked as far as Docker's client checks it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Mount(pub(crate) Value);

/// The groups of options, of which a mount may use the one of its type.
#[derive(Debug, Default)]
struct Draft {
    read_only: bool,
    bind: Option<Map<String, Value>>,
    volume: Option<Map<String, Value>>,
    image: Option<Map<String, Value>>,
    tmpfs: Option<Map<String, Value>>,
}

impl Draft {
    fn bind(&mut self) -> &mut Map<String, Value> {
        self.bind.get_or_insert_default()
    }

    fn volume(&mut self) -> &mut Map<String, Value> {
        self.volume.get_or_insert_with(|| {
            // Docker's client names a driver as soon as any volume option is given.
            Map::from_iter([("DriverConfig".to_owned(), json!({}))])
        })
    }
}

impl FromStr for Mount {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let mut draft = Draft::default();
        let mut kind = "volume".to_owned();
        let (mut source, mut target, mut consistency) =
            (String::new(), String::new(), String::new());

        for field in csv::fields(text)? {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key.to_lowercase(), value),
                None => match field.to_lowercase().as_str() {
                    "readonly" | "ro" | "volume-nocopy" | "bind-nonrecursive" => {
                        (field.to_lowercase(), "true")
                    }
                    _ => {
                        return Err(BadValue::new(format!(
                            "invalid field '{field}' must be a key=value pair"
                        )));
                    }
                },
            };
            let invalid = || BadValue::new(format!("invalid value for {key}: {value}"));
            match key.as_str() {
                "type" => kind = value.to_lowercase(),
                "source" | "src" => source = absolute_source(value),
                "target" | "dst" | "destination" => value.clone_into(&mut target),
                "readonly" | "ro" => draft.read_only = boolean(value).map_err(|_| invalid())?,
                "consistency" => consistency = value.to_lowercase(),
                "bind-propagation" => {
                    set(draft.bind(), "Propagation", value.to_lowercase());
                }
                "bind-nonrecursive" => {
                    let flag = boolean(value).map_err(|_| invalid())?;
                    set(draft.bind(), "NonRecursive", flag);
                }
                "bind-create-src" => {
                    let flag = boolean(value).map_err(|_| invalid())?;
                    set(draft.bind(), "CreateMountpoint", flag);
                }
                "bind-recursive" => match value {
                    "enabled" => {}
                    "disabled" => set(draft.bind(), "NonRecursive", true),
                    "writable" => set(draft.bind(), "ReadOnlyNonRecursive", true),
                    "readonly" => set(draft.bind(), "ReadOnlyForceRecursive", true),
                    _ => {
                        return Err(BadValue::new(format!(
                            "invalid value for {key}: {value} (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")"
                        )));
                    }
                },
                "volume-subpath" => set(draft.volume(), "Subpath", value),
                "volume-nocopy" => {
                    let flag = boolean(value).map_err(|_| invalid())?;
                    set(draft.volume(), "NoCopy", flag);
                }
                "volume-label" => set_pair(draft.volume(), "Labels", value),
                "volume-driver" => set(driver(draft.volume()), "Name", value),
                "volume-opt" => set_pair(driver(draft.volume()), "Options", value),
                "image-subpath" => set(draft.image.get_or_insert_default(), "Subpath", value),
                "tmpfs-size" => {
                    let Bytes(size) = value.parse().map_err(|_| invalid())?;
                    set(draft.tmpfs.get_or_insert_default(), "SizeBytes", size);
                }
                "tmpfs-mode" => {
                    let mode = u32::from_str_radix(value, 8).map_err(|_| invalid())?;
                    set(draft.tmpfs.get_or_insert_default(), "Mode", mode);
                }
                _ => {
                    return Err(BadValue::new(format!(
                        "unexpected key '{key}' in '{field}'"
                    )));
                }
            }
        }

        if kind.is_empty() {
            return Err(BadValue::new("type is required"));
        }
        if target.is_empty() {
            return Err(BadValue::new("target is required"));
        }
        check(&draft, &kind)?;

        let mut mount = Map::new();
        set(&mut mount, "Type", kind);
        set(&mut mount, "Source", source);
        set(&mut mount, "Target", target);
        set(&mut mount, "ReadOnly", draft.read_only);
        set(&mut mount, "Consistency", consistency);
        for (key, options) in [
            ("BindOptions", draft.bind),
            ("VolumeOptions", draft.volume),
            ("ImageOptions", draft.image),
            ("TmpfsOptions", draft.tmpfs),
        ] {
            if let Some(options) = options {
                mount.insert(key.into(), Value::Object(options));
            }
        }
        Ok(Self(Value::Object(mount)))
    }
}

fn check(draft: &Draft, kind: &str) -> Result<(), BadValue> {
    let groups = [
        (draft.volume.is_some(), "volume"),
        (draft.image.is_some(), "image"),
        (draft.bind.is_some(), "bind"),
        (draft.tmpfs.is_some(), "tmpfs"),
    ];
    for (used, group) in groups {
        if used && kind != group {
            return Err(BadValue::new(format!(
                "cannot mix '{group}-*' options with mount type '{kind}'"
            )));
        }
    }
    let Some(bind) = &draft.bind else {
        return Ok(());
    };
    for (option, word) in [
        ("ReadOnlyNonRecursive", "writable"),
        ("ReadOnlyForceRecursive", "readonly"),
    ] {
        if bind.contains_key(option) && !draft.read_only {
            return Err(BadValue::new(format!(
                "option 'bind-recursive={word}' requires 'readonly' to be specified in conjunction"
            )));
        }
    }
    if bind.contains_key("ReadOnlyForceRecursive")
        && bind.get("Propagation") != Some(&Value::from("rprivate"))
    {
        return Err(BadValue::new(
            "option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction",
        ));
    }
    Ok(())
}

/// A source such as `./data` is meant from where the command runs, and the daemon runs elsewhere.
fn absolute_source(source: &str) -> String {
    if source.starts_with('.')
        && let Ok(here) = std::env::current_dir()
    {
        return clean(&here.join(source));
    }
    source.to_owned()
}

/// Go's `filepath.Clean` for an absolute path.
fn clean(path: &std::path::Path) -> String {
    use std::path::Component;
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                parts.pop();
            }
            Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            _ => {}
        }
    }
    format!("/{}", parts.join("/"))
}

fn driver(volume: &mut Map<String, Value>) -> &mut Map<String, Value> {
    object(volume, "DriverConfig")
}

fn object<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    map.entry(key)
        .or_insert_with(|| json!({}))
        .as_object_mut()
        .expect("this key only ever holds an object")
}

/// Sets `key`, or leaves it out when the value is Go's zero value.
fn set(map: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    let value = value.into();
    let zero = matches!(&value, Value::Bool(false)) || value == 0 || value == "";
    if zero {
        map.remove(key);
    } else {
        map.insert(key.into(), value);
    }
}

fn set_pair(map: &mut Map<String, Value>, key: &str, pair: &str) {
    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
    if !name.is_empty() {
        object(map, key).insert(name.into(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(text: &str) -> Value {
        let Mount(value) = text.parse().unwrap();
        value
    }

    #[test]
    fn every_type_has_its_options() {
        assert_eq!(
            mount("type=bind,src=/a,dst=/b,ro,bind-propagation=rshared"),
            json!({"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": true,
                   "BindOptions": {"Propagation": "rshared"}})
        );
        assert_eq!(
            mount(
                "source=v,target=/d,volume-driver=local,volume-opt=type=nfs,\"volume-opt=o=addr=1,rw\",volume-label=a=b,volume-nocopy"
            ),
            json!({"Type": "volume", "Source": "v", "Target": "/d", "VolumeOptions": {
                "NoCopy": true, "Labels": {"a": "b"},
                "DriverConfig": {"Name": "local", "Options": {"type": "nfs", "o": "addr=1,rw"}}}})
        );
        assert_eq!(
            mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770"),
            json!({"Type": "tmpfs", "Target": "/t",
                   "TmpfsOptions": {"SizeBytes": 1_048_576, "Mode": 0o1770}})
        );
        assert_eq!(
            mount("type=bind,src=./x,dst=/b")["Source"],
            clean(&std::env::current_dir().unwrap().join("x"))
        );
    }

    #[test]
    fn bad_mounts_say_what_docker_says() {
        let cases = [
            ("type=bind,src=/a", "target is required"),
            ("type=,dst=/a", "type is required"),
            ("foo", "invalid field 'foo' must be a key=value pair"),
            ("dst=/a,foo=bar", "unexpected key 'foo' in 'foo=bar'"),
            ("dst=/a,ro=x", "invalid value for ro: x"),
            (
                "type=tmpfs,dst=/a,tmpfs-size=x",
                "invalid value for tmpfs-size: x",
            ),
            (
                "type=tmpfs,dst=/a,tmpfs-mode=9",
                "invalid value for tmpfs-mode: 9",
            ),
            (
                "type=bind,src=/a,dst=/b,volume-nocopy",
                "cannot mix 'volume-*' options with mount type 'bind'",
            ),
            (
                "type=bind,src=/a,dst=/b,bind-recursive=x",
                "invalid value for bind-recursive: x (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")",
            ),
            (
                "type=bind,src=/a,dst=/b,bind-recursive=writable",
                "option 'bind-recursive=writable' requires 'readonly' to be specified in conjunction",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(
                text.parse::<Mount>().unwrap_err().to_string(),
                message,
                "{text}"
            );
        }
    }
}
