//! How the parts of a file are read, laid over each other, and shown.

use std::{collections::BTreeMap, str::FromStr};

use super::node::{Data, Entry, Fault, Node};
use crate::opts::{Bytes, GoDuration};

/// A part of a Compose file.
pub(super) trait Field: Sized + Default + PartialEq {
    fn read(node: &Node) -> Result<Self, Fault>;

    /// Lays what a later file says over this. Empty values say nothing, so that they take nothing away.
    fn merge(&mut self, over: Self) {
        if over != Self::default() {
            *self = over;
        }
    }

    fn write(&self) -> Node;
}

/// Reads a text that stands for something else.
pub(super) fn parse<T: FromStr>(node: &Node, expected: &str) -> Result<T, Fault>
where
    T::Err: std::fmt::Display,
{
    let text = node
        .as_text()
        .ok_or_else(|| node.fault(format!("must be a {expected}")))?;
    text.parse()
        .map_err(|error| node.fault(format!("is not valid: {error}")))
}

impl Field for String {
    fn read(node: &Node) -> Result<Self, Fault> {
        parse(node, "string")
    }

    fn write(&self) -> Node {
        Node::text(self)
    }
}

impl Field for bool {
    fn read(node: &Node) -> Result<Self, Fault> {
        let no = || node.fault("must be a boolean");
        match &node.data {
            Data::Bool(value) => Ok(*value),
            Data::Substituted(text) => match text.to_lowercase().as_str() {
                "y" | "yes" | "true" | "on" => Ok(true),
                "n" | "no" | "false" | "off" => Ok(false),
                _ => Err(no()),
            },
            _ => Err(no()),
        }
    }

    fn write(&self) -> Node {
        Data::Bool(*self).into()
    }
}

impl Field for i64 {
    fn read(node: &Node) -> Result<Self, Fault> {
        let no = || node.fault("must be a integer");
        match &node.data {
            Data::Int(value) => Ok(*value),
            Data::Substituted(text) => text.parse().map_err(|_| no()),
            _ => Err(no()),
        }
    }

    fn write(&self) -> Node {
        Data::Int(*self).into()
    }
}

impl Field for u64 {
    fn read(node: &Node) -> Result<Self, Fault> {
        let value = i64::read(node)?;
        Self::try_from(value).map_err(|_| node.fault("must not be below zero"))
    }

    fn write(&self) -> Node {
        Data::Int(i64::try_from(*self).unwrap_or(i64::MAX)).into()
    }
}

impl Field for u32 {
    fn read(node: &Node) -> Result<Self, Fault> {
        let value = i64::read(node)?;
        Self::try_from(value).map_err(|_| node.fault("is out of range"))
    }

    fn write(&self) -> Node {
        Data::Int((*self).into()).into()
    }
}

impl Field for f32 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a ratio is stored with 32 bits"
    )]
    fn read(node: &Node) -> Result<Self, Fault> {
        let no = || node.fault("must be a number");
        match &node.data {
            Data::Int(value) => Ok(value.to_string().parse().map_err(|_| no())?),
            Data::Float(value) => Ok(*value as Self),
            Data::Substituted(text) => text.parse().map_err(|_| no()),
            _ => Err(no()),
        }
    }

    fn write(&self) -> Node {
        // Its own shortest digits, which are fewer than those of the same value with 64 bits.
        Data::Float(self.to_string().parse().unwrap_or_default()).into()
    }
}

impl Field for GoDuration {
    fn read(node: &Node) -> Result<Self, Fault> {
        let text = node.as_text().unwrap_or_default();
        text.parse()
            .map_err(|_| node.fault("Does not match format 'duration'"))
    }

    fn write(&self) -> Node {
        Node::text(self.to_string())
    }
}

impl Field for Bytes {
    fn read(node: &Node) -> Result<Self, Fault> {
        parse(node, "string")
    }

    fn write(&self) -> Node {
        Node::text(self.0.to_string())
    }
}

/// What may be given empty; `null` is as good as nothing.
impl<T: Field> Field for Option<T> {
    fn read(node: &Node) -> Result<Self, Fault> {
        match node.data {
            Data::Null => Ok(None),
            _ => T::read(node).map(Some),
        }
    }

    fn merge(&mut self, over: Self) {
        match (self.as_mut(), over) {
            (Some(base), Some(over)) => base.merge(over),
            (None, over) => *self = over,
            (Some(_), None) => {}
        }
    }

    fn write(&self) -> Node {
        self.as_ref().map(T::write).unwrap_or_default()
    }
}

/// A number whose zero says something: a later one counts, whatever it is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Count(pub(crate) u64);

impl Field for Count {
    fn read(node: &Node) -> Result<Self, Fault> {
        u64::read(node).map(Self)
    }

    fn merge(&mut self, over: Self) {
        *self = over;
    }

    fn write(&self) -> Node {
        self.0.write()
    }
}

impl<T: Field> Field for Vec<T> {
    fn read(node: &Node) -> Result<Self, Fault> {
        let items = node.as_list()?.iter().enumerate();
        items
            .map(|(index, item)| T::read(item).map_err(|fault| fault.under(index)))
            .collect()
    }

    fn merge(&mut self, over: Self) {
        self.extend(over);
    }

    fn write(&self) -> Node {
        Data::List(self.iter().map(T::write).collect()).into()
    }
}

/// Names and what they stand for, of the characters that a name may have.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Named<T>(pub(crate) BTreeMap<String, T>);

impl<T: Field> Field for Named<T> {
    fn read(node: &Node) -> Result<Self, Fault> {
        let mut all = BTreeMap::new();
        for entry in node.as_map("mapping")? {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if entry.key.is_empty() || !entry.key.chars().all(allowed) {
                return Err(entry.unknown());
            }
            let value = T::read(&entry.value).map_err(|fault| fault.under(&entry.key))?;
            all.insert(entry.key.clone(), value);
        }
        Ok(Self(all))
    }

    fn merge(&mut self, over: Self) {
        for (name, value) in over.0 {
            match self.0.get_mut(&name) {
                Some(base) => base.merge(value),
                None => drop(self.0.insert(name, value)),
            }
        }
    }

    fn write(&self) -> Node {
        sorted(self.0.iter().map(|(name, value)| (name, value.write())))
    }
}

/// A mapping in the order that Docker shows one in.
pub(super) fn sorted<'a>(entries: impl Iterator<Item = (&'a String, Node)>) -> Node {
    let mut entries: Vec<(String, Node)> =
        entries.map(|(name, value)| (name.clone(), value)).collect();
    entries.sort_by(|(a, _), (b, _)| super::yaml::order(a, b));
    Node::map(entries)
}

/// What `x-…` keys hold: kept for `config`, and of no effect.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Extensions(pub(super) Vec<Entry>);

impl Extensions {
    pub(super) fn merge(&mut self, over: Self) {
        for entry in over.0 {
            self.0.retain(|old| old.key != entry.key);
            self.0.push(entry);
        }
    }

    /// Its entries with everything in them sorted, as Docker, which holds them in maps, shows them.
    pub(super) fn write(&self) -> Vec<(String, Node)> {
        match arranged(&Data::Map(self.0.clone()).into()).data {
            Data::Map(entries) => entries.into_iter().map(|e| (e.key, e.value)).collect(),
            _ => Vec::new(),
        }
    }
}

fn arranged(node: &Node) -> Node {
    match &node.data {
        Data::Map(entries) => sorted(
            entries
                .iter()
                .map(|entry| (&entry.key, arranged(&entry.value))),
        ),
        Data::List(items) => Data::List(items.iter().map(arranged).collect()).into(),
        data => data.clone().into(),
    }
}

impl Field for Node {
    fn read(node: &Node) -> Result<Self, Fault> {
        Ok(node.clone())
    }

    fn write(&self) -> Node {
        arranged(self)
    }
}

/// Mappings with known keys: each field with its key, in the order in which `config` shows them.
///
/// `nullable` ones may be given as `null`; in those with `extensions`, keys that begin with `x-` are kept; in
/// `open` ones, unknown keys have no effect.
macro_rules! sections {
    ($(
        $(#[$meta:meta])*
        $name:ident $(: $($option:ident)+)? {
            $( $(#[$field_meta:meta])* $field:ident: $ty:ty = $key:literal; )*
        }
    )+) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq)]
        pub(crate) struct $name {
            $( $(#[$field_meta])* pub(crate) $field: $ty, )*
            pub(crate) extensions: $crate::stack::compose::field::Extensions,
        }

        impl $crate::stack::compose::field::Field for $name {
            fn read(node: &Node) -> Result<Self, Fault> {
                let options: &[&str] = &[$($(stringify!($option)),+)?];
                let mut section = Self::default();
                let expected = if options.contains(&"nullable") {
                    if *node == (Node { line: node.line, ..Node::default() }) {
                        return Ok(section);
                    }
                    "mapping or null"
                } else {
                    "mapping"
                };
                for entry in node.as_map(expected)? {
                    match entry.key.as_str() {
                        $( $key => {
                            section.$field = <$ty>::read(&entry.value)
                                .map_err(|fault| fault.under($key))?;
                        } )*
                        key if key.starts_with("x-") && options.contains(&"extensions") => {
                            section.extensions.0.push(entry.clone());
                        }
                        _ if options.contains(&"open") => {}
                        _ => return Err(entry.unknown()),
                    }
                }
                Ok(section)
            }

            fn merge(&mut self, over: Self) {
                $( self.$field.merge(over.$field); )*
                self.extensions.merge(over.extensions);
            }

            fn write(&self) -> Node {
                let mut entries = Vec::new();
                $( if self.$field.ne(&<$ty>::default()) {
                    entries.push(($key.to_owned(), self.$field.write()));
                } )*
                entries.extend(self.extensions.write());
                Node::map(entries)
            }
        }
    )+};
}
pub(super) use sections;
