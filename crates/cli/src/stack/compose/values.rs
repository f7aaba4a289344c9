//! Fields that may be written in more than one way.

use std::collections::BTreeMap;

use super::{
    field::{Field, Named, sections, sorted},
    model::ServiceNetwork,
    node::{Data, Fault, Node},
};
use crate::{
    opts::{ShellWords, port},
    output,
};

/// A text, or several.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Texts(pub(crate) Vec<String>);

/// The words of a command: a text is split as a shell does.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Words(pub(crate) Vec<String>);

/// A health check's command: a text is run by a shell.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Test(pub(crate) Vec<String>);

fn string_or_list(node: &Node) -> Result<Option<Vec<String>>, Fault> {
    match &node.data {
        Data::List(_) => Vec::read(node).map(Some),
        _ if node.as_text().is_some() => Ok(None),
        _ => Err(node.fault("must be a string or list")),
    }
}

impl Field for Texts {
    fn read(node: &Node) -> Result<Self, Fault> {
        let list = string_or_list(node)?;
        Ok(Self(list.unwrap_or_else(|| {
            node.as_text().map(str::to_owned).into_iter().collect()
        })))
    }

    fn merge(&mut self, over: Self) {
        self.0.merge(over.0);
    }

    fn write(&self) -> Node {
        self.0.write()
    }
}

impl Field for Words {
    fn read(node: &Node) -> Result<Self, Fault> {
        let Some(words) = string_or_list(node)? else {
            return super::field::parse::<ShellWords>(node, "string or list")
                .map(|words| Self(words.0));
        };
        Ok(Self(words))
    }

    fn write(&self) -> Node {
        self.0.write()
    }
}

impl Field for Test {
    fn read(node: &Node) -> Result<Self, Fault> {
        let shell = || {
            let command = node.as_text().unwrap_or_default();
            vec!["CMD-SHELL".to_owned(), command.to_owned()]
        };
        Ok(Self(string_or_list(node)?.unwrap_or_else(shell)))
    }

    fn merge(&mut self, over: Self) {
        self.0.merge(over.0);
    }

    fn write(&self) -> Node {
        self.0.write()
    }
}

/// A text, a number, or nothing, as Go prints it.
fn scalar(node: &Node, expected: &str) -> Result<String, Fault> {
    node.printed()
        .ok_or_else(|| node.fault(format!("must be a {expected}")))
}

/// `KEY: VALUE` pairs, or a list of `KEY=VALUE`; `None` for a key alone.
fn pairs(node: &Node) -> Result<BTreeMap<String, Option<String>>, Fault> {
    let mut all = BTreeMap::new();
    if let Data::List(items) = &node.data {
        for (index, item) in items.iter().enumerate() {
            let text = String::read(item).map_err(|fault| fault.under(index))?;
            match text.split_once('=') {
                Some((key, value)) => all.insert(key.to_owned(), Some(value.to_owned())),
                None => all.insert(text, None),
            };
        }
        return Ok(all);
    }
    for entry in node.as_map("mapping or list")? {
        let value = scalar(&entry.value, "string, number or null")
            .map_err(|fault| fault.under(&entry.key))?;
        let given = entry.value.data != Data::Null;
        all.insert(entry.key.clone(), given.then_some(value));
    }
    Ok(all)
}

/// Variables; one without a value takes that of the client, if it has one.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Variables(pub(crate) BTreeMap<String, Option<String>>);

impl Field for Variables {
    fn read(node: &Node) -> Result<Self, Fault> {
        pairs(node).map(Self)
    }

    fn merge(&mut self, over: Self) {
        for (key, value) in over.0 {
            self.0.entry(key).or_default().merge(value);
        }
    }

    fn write(&self) -> Node {
        sorted(self.0.iter().map(|(key, value)| (key, value.write())))
    }
}

/// Labels and sysctls.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Pairs(pub(crate) BTreeMap<String, String>);

/// Options of drivers: always a mapping.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Options(pub(crate) BTreeMap<String, String>);

impl Field for Pairs {
    fn read(node: &Node) -> Result<Self, Fault> {
        let pairs = pairs(node)?.into_iter();
        Ok(Self(
            pairs
                .map(|(key, value)| (key, value.unwrap_or_default()))
                .collect(),
        ))
    }

    fn merge(&mut self, over: Self) {
        self.0.extend(over.0);
    }

    fn write(&self) -> Node {
        sorted(self.0.iter().map(|(key, value)| (key, value.write())))
    }
}

impl Field for Options {
    fn read(node: &Node) -> Result<Self, Fault> {
        let entries = node.as_map("mapping")?.iter();
        entries
            .map(|entry| {
                let value = scalar(&entry.value, "string or number")
                    .map_err(|fault| fault.under(&entry.key))?;
                Ok((entry.key.clone(), value))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn merge(&mut self, over: Self) {
        self.0.extend(over.0);
    }

    fn write(&self) -> Node {
        Pairs(self.0.clone()).write()
    }
}

/// A text or a number, of fields that have no effect.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Loose(pub(crate) String);

impl Field for Loose {
    fn read(node: &Node) -> Result<Self, Fault> {
        scalar(node, "string or number").map(Self)
    }

    fn write(&self) -> Node {
        self.0.write()
    }
}

/// Lines `HOST:IP`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Hosts(pub(crate) Vec<String>);

impl Field for Hosts {
    fn read(node: &Node) -> Result<Self, Fault> {
        let mut hosts: Vec<(String, String)> = Vec::new();
        if let Data::Map(entries) = &node.data {
            for entry in entries {
                let ip = scalar(&entry.value, "string, number or null")
                    .map_err(|fault| fault.under(&entry.key))?;
                hosts.push((entry.key.clone(), ip));
            }
            hosts.sort();
        } else {
            for line in Vec::<String>::read(node)? {
                let pair = line.split_once('=').or_else(|| line.split_once(':'));
                hosts.extend(pair.map(|(host, ip)| (host.to_owned(), ip.to_owned())));
            }
        }
        let bare = |ip: &str| {
            let inner = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
            inner.unwrap_or(ip).to_owned()
        };
        let lines = hosts
            .iter()
            .map(|(host, ip)| format!("{host}:{}", bare(ip)));
        Ok(Self(lines.collect()))
    }

    fn merge(&mut self, over: Self) {
        self.0.merge(over.0);
    }

    fn write(&self) -> Node {
        self.0.write()
    }
}

/// Whether an object is made outside of the stack; `external: {name: x}` is the older way to say its name.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct External {
    pub(crate) external: bool,
    pub(crate) name: String,
}

impl Field for External {
    fn read(node: &Node) -> Result<Self, Fault> {
        let Data::Map(entries) = &node.data else {
            let external = bool::read(node).map_err(|_| node.fault("must be a boolean or mapping"));
            return Ok(Self {
                external: external?,
                name: String::new(),
            });
        };
        let mut name = String::new();
        for entry in entries {
            if entry.key != "name" {
                return Err(entry.unknown());
            }
            name = String::read(&entry.value).map_err(|fault| fault.under("name"))?;
        }
        Ok(Self {
            external: true,
            name,
        })
    }

    fn write(&self) -> Node {
        self.external.write()
    }
}

sections! {
    /// One port of a service.
    Port {
        mode: String = "mode";
        target: u32 = "target";
        published: u32 = "published";
        protocol: String = "protocol";
    }

    /// A secret or config that a service uses.
    FileUse {
        source: String = "source";
        target: String = "target";
        uid: String = "uid";
        gid: String = "gid";
        mode: Option<u32> = "mode";
    }

    Mount {
        kind: String = "type";
        source: String = "source";
        target: String = "target";
        read_only: bool = "read_only";
        consistency: String = "consistency";
        bind: Option<BindOptions> = "bind";
        volume: Option<VolumeOptions> = "volume";
        image: Option<ImageOptions> = "image";
        tmpfs: Option<TmpfsOptions> = "tmpfs";
        cluster: Option<ClusterOptions> = "cluster";
    }

    BindOptions { propagation: String = "propagation"; }
    VolumeOptions {
        no_copy: bool = "nocopy";
        subpath: String = "subpath";
    }
    ImageOptions { subpath: String = "subpath"; }
    TmpfsOptions { size: u64 = "size"; }
    ClusterOptions {}

    UlimitRange {
        soft: Option<i64> = "soft";
        hard: Option<i64> = "hard";
    }
}

/// Elements that a later file replaces by their key; in a list that two files have, they are sorted by it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Keyed<T>(pub(crate) Vec<T>);

/// An element of a [`Keyed`] list. Some stand for several, some are written in short.
pub(crate) trait Element: Field {
    type Key: Ord;
    fn key(&self) -> Self::Key;
    /// The elements of one entry that is no mapping.
    fn short(node: &Node) -> Result<Vec<Self>, Fault>;
    fn check(&self, _node: &Node) -> Result<(), Fault> {
        Ok(())
    }
}

impl<T: Element> Field for Keyed<T> {
    fn read(node: &Node) -> Result<Self, Fault> {
        let mut all = Vec::new();
        for (index, item) in node.as_list()?.iter().enumerate() {
            let read = match &item.data {
                Data::Map(_) => T::read(item).and_then(|element| {
                    element.check(item)?;
                    Ok(vec![element])
                }),
                _ => T::short(item),
            };
            all.extend(read.map_err(|fault| fault.under(index))?);
        }
        Ok(Self(all))
    }

    fn merge(&mut self, over: Self) {
        if self.0.is_empty() {
            *self = over;
            return;
        }
        let both = std::mem::take(&mut self.0).into_iter().chain(over.0);
        let last: BTreeMap<T::Key, T> = both.map(|element| (element.key(), element)).collect();
        self.0 = last.into_values().collect();
    }

    fn write(&self) -> Node {
        self.0.write()
    }
}

impl Element for Port {
    /// Docker takes the published port alone, and so loses one of `53/tcp` and `53/udp`.
    type Key = (u32, u32, String);

    fn key(&self) -> Self::Key {
        let target = if self.published == 0 { self.target } else { 0 };
        (self.published, target, self.protocol.clone())
    }

    fn short(node: &Node) -> Result<Vec<Self>, Fault> {
        let number = match &node.data {
            Data::Int(number) => Some(number.to_string()),
            _ => None,
        };
        let text = number.as_deref().or_else(|| node.as_text());
        let text = text.ok_or_else(|| node.fault("must be a number, string or mapping"))?;
        let (ip, mut ports) =
            port::on_address(text).map_err(|_| node.fault("Does not match format 'ports'"))?;
        if !ip.is_empty() {
            output::note(format!(
                "WARNING: ignoring IP-address ({text}) service will listen on '0.0.0.0'"
            ));
        }
        ports.sort_by_key(|port| port.target.to_string());
        let port = |port: port::Port| Self {
            mode: port.mode.to_owned(),
            target: port.target.into(),
            published: port.published.into(),
            protocol: port.protocol,
            ..Self::default()
        };
        Ok(ports.into_iter().map(port).collect())
    }
}

impl Element for FileUse {
    type Key = String;

    fn key(&self) -> String {
        self.source.clone()
    }

    fn short(node: &Node) -> Result<Vec<Self>, Fault> {
        Ok(vec![Self {
            source: String::read(node).map_err(|_| node.fault("must be a string or mapping"))?,
            ..Self::default()
        }])
    }
}

impl Element for Mount {
    type Key = String;

    fn key(&self) -> String {
        self.target.clone()
    }

    /// `[SOURCE:]TARGET[:OPTIONS]`. A letter before a colon is a drive of Windows, as for Docker.
    fn short(node: &Node) -> Result<Vec<Self>, Fault> {
        let text = String::read(node).map_err(|_| node.fault("must be a string or mapping"))?;
        let bad = |why: &str| node.fault(format!("invalid spec: {text}: {why}"));
        let mut mount = Self {
            kind: "volume".to_owned(),
            ..Self::default()
        };
        if text.is_empty() {
            return Err(node.fault("invalid empty volume spec"));
        }
        if text.chars().count() <= 2 {
            mount.target = text;
            return Ok(vec![mount]);
        }
        let sections = sections_of(&text);
        if sections.iter().any(String::is_empty) {
            return Err(bad("empty section between colons"));
        }
        match sections.as_slice() {
            [target] => mount.target.clone_from(target),
            [source, target, options @ ..] if options.len() <= 1 => {
                mount.source.clone_from(source);
                mount.target.clone_from(target);
                for option in options.iter().flat_map(|options| options.split(',')) {
                    mount.set(option);
                }
            }
            _ => return Err(bad("too many colons")),
        }
        if is_path(&mount.source) {
            "bind".clone_into(&mut mount.kind);
        }
        Ok(vec![mount])
    }

    fn check(&self, node: &Node) -> Result<(), Fault> {
        if self.kind.is_empty() {
            return Err(node.fault("type is required"));
        }
        Ok(())
    }
}

impl Mount {
    fn set(&mut self, option: &str) {
        match option {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "nocopy" => {
                self.volume = Some(VolumeOptions {
                    no_copy: true,
                    ..VolumeOptions::default()
                });
            }
            "rprivate" | "private" | "rshared" | "shared" | "rslave" | "slave" => {
                self.bind = Some(BindOptions {
                    propagation: option.to_owned(),
                    ..BindOptions::default()
                });
            }
            // Docker takes any other word for an option of some other platform.
            _ => {}
        }
    }
}

/// The text between colons, but for those behind a single letter.
fn sections_of(text: &str) -> Vec<String> {
    let mut sections = vec![String::new()];
    for c in text.chars() {
        let section = sections.last_mut().expect("there is always one");
        let mut chars = section.chars();
        let is_drive = chars.next().is_some_and(char::is_alphabetic) && chars.next().is_none();
        if c == ':' && !is_drive {
            sections.push(String::new());
        } else {
            section.push(c);
        }
    }
    sections
}

fn is_path(source: &str) -> bool {
    let mut chars = source.chars();
    source.starts_with(['.', '/', '~'])
        || source.starts_with(r"\\")
        || (chars.next().is_some_and(char::is_alphabetic) && chars.next() == Some(':'))
}

/// The networks of a service, by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Attachments(pub(crate) BTreeMap<String, Option<ServiceNetwork>>);

impl Field for Attachments {
    fn read(node: &Node) -> Result<Self, Fault> {
        if let Data::List(_) = node.data {
            let names = Vec::<String>::read(node)?;
            return Ok(Self(names.into_iter().map(|name| (name, None)).collect()));
        }
        node.as_map("list or mapping")?;
        Named::read(node).map(|named| Self(named.0))
    }

    fn merge(&mut self, over: Self) {
        for (name, over) in over.0 {
            match (self.0.get_mut(&name), over) {
                (Some(Some(base)), Some(over)) => {
                    base.aliases = over.aliases;
                    base.ipv4_address.merge(over.ipv4_address);
                    base.ipv6_address.merge(over.ipv6_address);
                }
                (Some(Some(_)), None) => {}
                (_, over) => drop(self.0.insert(name, over)),
            }
        }
    }

    fn write(&self) -> Node {
        sorted(self.0.iter().map(|(name, network)| (name, network.write())))
    }
}

/// Soft and hard limit; a single number is both.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Ulimit {
    pub(crate) soft: i64,
    pub(crate) hard: i64,
    single: bool,
}

impl Field for Ulimit {
    fn read(node: &Node) -> Result<Self, Fault> {
        if !matches!(node.data, Data::Map(_)) {
            let limit = i64::read(node).map_err(|_| node.fault("must be a integer or mapping"))?;
            return Ok(Self {
                soft: limit,
                hard: limit,
                single: true,
            });
        }
        let range = UlimitRange::read(node)?;
        let given = |limit: Option<i64>, key: &str| {
            limit.ok_or_else(|| node.fault(format!("{key} is required")))
        };
        Ok(Self {
            soft: given(range.soft, "soft")?,
            hard: given(range.hard, "hard")?,
            single: false,
        })
    }

    fn merge(&mut self, over: Self) {
        *self = over;
    }

    fn write(&self) -> Node {
        if self.single {
            return self.soft.write();
        }
        Node::map([
            ("soft".to_owned(), self.soft.write()),
            ("hard".to_owned(), self.hard.write()),
        ])
    }
}
