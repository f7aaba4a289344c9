//! Reading JSON as Go's `encoding/json` does.
//!
//! Three habits of Go differ from serde's, and clients rely on each: keys match in any case, `null`
//! leaves a field as it was, and a document may be followed by more. [`Lenient`] stands between
//! `serde_json::Value` and the derived code and gives the first two to every type; the third is for the
//! caller, since only the one who has the body knows whether more may follow.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{
    Serialize,
    de::{
        DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess,
        SeqAccess, VariantAccess, Visitor, value::StrDeserializer,
    },
    forward_to_deserialize_any,
};
use serde_json::{Map, Value};

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("invalid JSON: {0}")]
    Syntax(#[source] serde_json::Error),
    #[error("unexpected content after JSON")]
    Trailing,
    /// `path` leads to the field, in Docker's names.
    #[error("invalid JSON: {path}: {source}")]
    Field {
        path: String,
        source: serde_json::Error,
    },
}

/// Reads one document with nothing behind it.
pub fn from_slice<T: DeserializeOwned>(body: &[u8]) -> Result<T, ReadError> {
    let mut documents = serde_json::Deserializer::from_slice(body).into_iter::<Value>();
    let value = match documents.next() {
        None => Value::Null,
        Some(value) => value.map_err(ReadError::Syntax)?,
    };
    let rest = &body[documents.byte_offset()..];
    if !rest.iter().all(u8::is_ascii_whitespace) {
        return Err(ReadError::Trailing);
    }
    from_value(value)
}

/// Reads a document that is already parsed.
pub fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, ReadError> {
    serde_path_to_error::deserialize(Lenient(value)).map_err(|error| ReadError::Field {
        path: error.path().to_string(),
        source: error.into_inner(),
    })
}

/// Writes a document as Docker does: no HTML escapes, and a line feed at the end.
pub fn to_bytes<T: Serialize + ?Sized>(value: &T) -> Bytes {
    let mut out = BytesMut::with_capacity(256).writer();
    serde_json::to_writer(&mut out, value)
        .expect("wire types have text keys and memory never refuses a write");
    out.get_mut().put_u8(b'\n');
    out.into_inner().freeze()
}

/// A value that deserializes with Go's leniency.
struct Lenient(Value);

impl<'de> Deserializer<'de> for Lenient {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Array(items) => visitor.visit_seq(Items(items.into_iter())),
            Value::Object(fields) => visitor.visit_map(Fields::new(fields, None)),
            other => other.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Object(map) => visitor.visit_map(Fields::new(map, Some(fields))),
            Value::Null => visitor.visit_map(Fields::new(Map::new(), Some(fields))),
            other => other.deserialize_any(visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Null => visitor.visit_map(Fields::new(Map::new(), None)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Null => visitor.visit_seq(Items(Vec::new().into_iter())),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::String(name) => visitor.visit_enum(Variant(name)),
            other => other.deserialize_any(visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct tuple tuple_struct identifier ignored_any
    }
}

struct Items(std::vec::IntoIter<Value>);

impl<'de> SeqAccess<'de> for Items {
    type Error = serde_json::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Self::Error> {
        let item = self.0.next();
        item.map(|item| seed.deserialize(Lenient(item))).transpose()
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

/// The entries of an object. For a struct, `known` has the names of its fields.
struct Fields {
    entries: serde_json::map::IntoIter,
    known: Option<&'static [&'static str]>,
    /// Fields of `known` that came already: of `Name` and `name`, the first one counts.
    seen: Vec<&'static str>,
    value: Option<Value>,
}

impl Fields {
    fn new(map: Map<String, Value>, known: Option<&'static [&'static str]>) -> Self {
        Self {
            entries: map.into_iter(),
            known,
            seen: Vec::new(),
            value: None,
        }
    }
}

impl<'de> MapAccess<'de> for Fields {
    type Error = serde_json::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Self::Error> {
        for (key, value) in self.entries.by_ref() {
            let Some(known) = self.known else {
                // A map's null value is Go's empty string.
                let value = if value.is_null() {
                    Value::String(String::new())
                } else {
                    value
                };
                self.value = Some(value);
                return seed.deserialize(key.into_deserializer()).map(Some);
            };
            let name = known.iter().find(|name| name.eq_ignore_ascii_case(&key));
            let Some(name) = name.filter(|name| !value.is_null() && !self.seen.contains(name))
            else {
                continue;
            };
            self.seen.push(name);
            self.value = Some(value);
            let key: StrDeserializer<'_, Self::Error> = (*name).into_deserializer();
            return seed.deserialize(key).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, Self::Error> {
        let value = self
            .value
            .take()
            .expect("a value is asked for after its key");
        seed.deserialize(Lenient(value))
    }
}

/// An enum without data, by name.
struct Variant(String);

impl<'de> EnumAccess<'de> for Variant {
    type Error = serde_json::Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Self), Self::Error> {
        let name: StrDeserializer<'_, Self::Error> = self.0.as_str().into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant {
    type Error = serde_json::Error;

    fn unit_variant(self) -> Result<(), Self::Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Self::Error> {
        Err(serde::de::Error::custom("expected a name"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Self::Error> {
        Err(serde::de::Error::custom("expected a name"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Self::Error> {
        Err(serde::de::Error::custom("expected a name"))
    }
}

/// A float as Go writes it: whole numbers without a fraction.
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature is serde's"
)]
pub(super) fn go_float<S: serde::Serializer>(
    value: &f32,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    if *value == 0.0 {
        serializer.serialize_u8(0)
    } else if (*value - 1.0).abs() < f32::EPSILON {
        serializer.serialize_u8(1)
    } else {
        serializer.serialize_f32(*value)
    }
}

/// Binary data as Go's `[]byte`: base64 with padding, `null` or absent when empty.
pub(super) mod base64_bytes {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(data: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(data))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD
            .decode(text.as_bytes())
            .map_err(|error| de::Error::custom(format_args!("not base64: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{NodeSpec, ServiceSpec};

    #[test]
    fn keys_match_in_any_case_and_null_leaves_the_default() {
        let spec: NodeSpec =
            from_slice(br#"{"name":"n","LABELS":{"Key":"v","other":null},"ROLE":null,"x":1}"#)
                .unwrap();
        assert_eq!(spec.name, "n");
        assert_eq!(spec.labels["Key"], "v");
        assert_eq!(spec.labels["other"], "");
        assert_eq!(spec.role, "");
        assert_eq!(
            from_slice::<NodeSpec>(b"null").unwrap(),
            NodeSpec::default()
        );
        assert_eq!(from_slice::<NodeSpec>(b"").unwrap(), NodeSpec::default());
    }

    #[test]
    fn a_wrong_field_is_named_by_its_path() {
        let body = br#"{"TaskTemplate":{"ContainerSpec":{"Mounts":[{},{"ReadOnly":"yes"}]}}}"#;
        let error = from_slice::<ServiceSpec>(body).unwrap_err().to_string();
        assert!(
            error.starts_with("invalid JSON: TaskTemplate.ContainerSpec.Mounts[1].ReadOnly: "),
            "{error}"
        );
    }

    #[test]
    fn content_after_the_document_is_refused() {
        assert!(matches!(
            from_slice::<NodeSpec>(b"{} {}"),
            Err(ReadError::Trailing)
        ));
        assert!(matches!(
            from_slice::<NodeSpec>(b"{} x"),
            Err(ReadError::Trailing)
        ));
        assert!(from_slice::<NodeSpec>(b"{}\n ").is_ok());
        assert!(matches!(
            from_slice::<NodeSpec>(b"{"),
            Err(ReadError::Syntax(_))
        ));
    }
}
