//! A Compose file as a tree that knows its lines.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

/// A value of a file.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Node {
    /// Counted from 1; 0 for what is in no file.
    pub(super) line: usize,
    pub(super) data: Data,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum Data {
    #[default]
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// A text in which variables were replaced: it may stand for a number or a boolean.
    Substituted(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) line: usize,
    pub(super) key: String,
    pub(super) value: Node,
}

/// What is wrong with a value, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) line: usize,
    /// From the value up to the root.
    path: Vec<String>,
    message: String,
}

impl Fault {
    /// The same fault, seen from the mapping or list that has the value under `key`.
    pub(super) fn under(mut self, key: impl ToString) -> Self {
        self.path.push(key.to_string());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            return write!(f, "(root) {}", self.message);
        }
        let path: Vec<&str> = self.path.iter().rev().map(String::as_str).collect();
        write!(f, "{} {}", path.join("."), self.message)
    }
}

impl Node {
    /// Reads the one document of a file.
    pub(super) fn parse(yaml: &str) -> Result<Self, serde_saphyr::Error> {
        // `yes` is a text and `0440` a number, as in Docker.
        let options = serde_saphyr::options! { strict_booleans: true, legacy_octal_numbers: true };
        serde_saphyr::from_str_with_options(yaml, options)
    }

    pub(super) fn text(text: impl Into<String>) -> Self {
        Data::Text(text.into()).into()
    }

    pub(super) fn map(entries: impl IntoIterator<Item = (String, Self)>) -> Self {
        let entry = |(key, value)| Entry {
            line: 0,
            key,
            value,
        };
        Data::Map(entries.into_iter().map(entry).collect()).into()
    }

    /// The value under `key`, when this is a mapping that has one.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        self.entries()
            .iter()
            .find(|entry| entry.key == key)
            .map(|entry| &entry.value)
    }

    /// The entries of a mapping; none of anything else.
    pub(super) fn entries(&self) -> &[Entry] {
        match &self.data {
            Data::Map(entries) => entries,
            _ => &[],
        }
    }

    pub(super) fn fault(&self, message: impl Into<String>) -> Fault {
        Fault {
            line: self.line,
            path: Vec::new(),
            message: message.into(),
        }
    }

    pub(super) fn as_map(&self, expected: &str) -> Result<&[Entry], Fault> {
        match &self.data {
            Data::Map(entries) => Ok(entries),
            _ => Err(self.fault(format!("must be a {expected}"))),
        }
    }

    pub(super) fn as_list(&self) -> Result<&[Self], Fault> {
        match &self.data {
            Data::List(items) => Ok(items),
            _ => Err(self.fault("must be a list")),
        }
    }

    pub(super) fn as_text(&self) -> Option<&str> {
        match &self.data {
            Data::Text(text) | Data::Substituted(text) => Some(text),
            _ => None,
        }
    }

    /// A scalar as Go prints it; `None` for booleans, lists and mappings, which Compose takes nowhere as texts.
    pub(super) fn printed(&self) -> Option<String> {
        match &self.data {
            Data::Int(number) => Some(number.to_string()),
            Data::Float(number) => Some(float(*number)),
            Data::Null => Some(String::new()),
            _ => self.as_text().map(str::to_owned),
        }
    }
}

impl From<Data> for Node {
    fn from(data: Data) -> Self {
        Self { line: 0, data }
    }
}

impl Entry {
    /// A fault of the mapping: it may not have this key.
    pub(super) fn unknown(&self) -> Fault {
        Fault {
            line: self.line,
            path: Vec::new(),
            message: format!("Additional property {} is not allowed", self.key),
        }
    }
}

/// Go's `%v`: the shortest digits, with an exponent below -4 and from 6 on.
pub(super) fn float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let power: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&power) {
        return value.to_string();
    }
    let sign = if power < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", power.abs())
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Data>::deserialize(deserializer)?;
        Ok(Self {
            line: usize::try_from(spanned.referenced.line()).unwrap_or(usize::MAX),
            data: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DataVisitor)
    }
}

struct DataVisitor;

impl<'de> Visitor<'de> for DataVisitor {
    type Value = Data;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Data, E> {
        Ok(Data::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Data, E> {
        Ok(Data::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Data, E> {
        Ok(Data::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Data, E> {
        // Beyond what any field takes; its text is enough to say so.
        Ok(i64::try_from(value).map_or_else(|_| Data::Text(value.to_string()), Data::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Data, E> {
        Ok(Data::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Data, E> {
        Ok(Data::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Data, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Data::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Data, A::Error> {
        let mut map = Vec::new();
        while let Some((key, value)) = entries.next_entry::<Spanned<String>, Node>()? {
            map.push(Entry {
                line: usize::try_from(key.referenced.line()).unwrap_or(usize::MAX),
                key: key.value,
                value,
            });
        }
        Ok(Data::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_kind_and_their_line() {
        let node = Node::parse(
            "a: yes\nb: 0440\nc: 1.10\nd: ~\ne: 'no'\nbase: &x {k: 1}\nf:\n  <<: *x\n  g: [true, \"1\"]\n80: {}\n",
        )
        .unwrap();
        let data = |key: &str| node.get(key).unwrap().data.clone();
        assert_eq!(data("a"), Data::Text("yes".into()));
        assert_eq!(data("b"), Data::Int(0o440));
        assert_eq!(data("c"), Data::Float(1.1));
        assert_eq!(data("d"), Data::Null);
        assert_eq!(data("e"), Data::Text("no".into()));
        assert_eq!(data("80"), Data::Map(Vec::new()));
        let f = node.get("f").unwrap();
        assert_eq!(f.get("k").unwrap().data, Data::Int(1));
        let g = f.get("g").unwrap().as_list().unwrap();
        assert_eq!(g[0].data, Data::Bool(true));
        assert_eq!((g[1].line, g[1].as_text()), (9, Some("1")));
        assert!(Node::parse("a: 1\na: 2\n").is_err());
    }

    #[test]
    fn floats_print_as_in_go() {
        for (value, text) in [
            (1.1, "1.1"),
            (1e6, "1e+06"),
            (1_234_567.5, "1.2345675e+06"),
            (123_456.0, "123456"),
            (1e21, "1e+21"),
            (0.00001, "1e-05"),
            (0.0001, "0.0001"),
        ] {
            assert_eq!(float(value), text);
        }
    }
}
