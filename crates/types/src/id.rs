//! Identifiers and counters, one type per kind.

use std::{cmp::Ordering, fmt};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Length of an object id: 17 random bytes in base 36, as SwarmKit writes them.
const OBJECT_ID_LEN: usize = 25;

/// The text is not an id of the kind that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {kind}: expected {expected}")]
pub struct ParseIdError {
    kind: &'static str,
    expected: &'static str,
    text: String,
}

macro_rules! text_impls {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct FromText;
                impl de::Visitor<'_> for FromText {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("an id")
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(FromText)
            }
        }
    };
}

macro_rules! object_id {
    ($($(#[$doc:meta])* $name:ident => $kind:literal),+ $(,)?) => {$(
        $(#[$doc])*
        ///
        /// 25 characters of lowercase base 36, unique for the life of the cluster.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Text<OBJECT_ID_LEN>);

        impl $name {
            /// Writes 17 random bytes in Docker's shape. The caller owns the randomness, so that
            /// every manager that applies a command sees the same id.
            pub fn from_random(bytes: [u8; 17]) -> Self {
                Self(Text(base36(bytes)))
            }

            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }

            /// The ids that sort before and after every other, for range queries.
            pub const MIN: Self = Self(Text([b'0'; OBJECT_ID_LEN]));
            pub const MAX: Self = Self(Text([b'z'; OBJECT_ID_LEN]));
        }

        impl std::str::FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let digit = |b: u8| b.is_ascii_digit() || b.is_ascii_lowercase();
                Text::parse(text, digit).map(Self).ok_or_else(|| ParseIdError {
                    kind: $kind,
                    expected: "25 characters of 0-9 and a-z",
                    text: text.to_owned(),
                })
            }
        }

        text_impls!($name);
    )+};
}

/// ASCII text of a fixed length, kept in place so that ids are cheap to copy and compare.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Text<const N: usize>([u8; N]);

impl<const N: usize> Ord for Text<N> {
    /// The order of the text. Random ids nearly always differ in what fits a register, and the tables
    /// and indices of managers do little else than compare them.
    fn cmp(&self, other: &Self) -> Ordering {
        let head = |text: &Self| text.0.first_chunk().map(|head| u64::from_be_bytes(*head));
        head(self)
            .cmp(&head(other))
            .then_with(|| self.0.cmp(&other.0))
    }
}

impl<const N: usize> PartialOrd for Text<N> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<const N: usize> Text<N> {
    fn parse(text: &str, allowed: impl Fn(u8) -> bool) -> Option<Self> {
        let bytes: [u8; N] = text.as_bytes().try_into().ok()?;
        bytes
            .iter()
            .all(|&b| b.is_ascii() && allowed(b))
            .then_some(Self(bytes))
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("only ASCII is ever put in")
    }
}

object_id! {
    /// A swarm.
    ClusterId => "cluster id",
    /// A machine that joined the swarm.
    NodeId => "node id",
    /// What the user asked for.
    ServiceId => "service id",
    /// One attempt to run one replica.
    TaskId => "task id",
    /// A cluster network.
    NetworkId => "network id",
    /// A secret.
    SecretId => "secret id",
    /// A config.
    ConfigId => "config id",
    /// A cluster volume.
    VolumeId => "volume id",
}

/// A container on one node: 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(Text<64>);

impl ContainerId {
    /// Writes 32 random bytes in Docker's shape.
    pub fn from_random(bytes: [u8; 32]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 64];
        for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        Self(Text(text))
    }

    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The first twelve digits, as Docker prints an id and names a host.
    pub fn short(&self) -> &str {
        &self.as_str()[..12]
    }
}

impl std::str::FromStr for ContainerId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        Text::parse(text, digit)
            .map(Self)
            .ok_or_else(|| ParseIdError {
                kind: "container id",
                expected: "64 hexadecimal digits",
                text: text.to_owned(),
            })
    }
}

text_impls!(ContainerId);

macro_rules! counter {
    ($($(#[$doc:meta])* $name:ident($inner:ty)),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )+};
}

counter! {
    /// A manager's identity in the Raft group. Never used twice, even after the node is removed.
    RaftId(u64),
    /// The Raft index of the commit that last wrote an object. A write that names an older one fails.
    Version(u64),
    /// A replica's position in its service, from 1. It outlives the tasks that fill it.
    Slot(u64),
    /// Numbers the assignment sets sent to one node. An agent refuses a set older than the one it has.
    Generation(u64),
}

/// The value of `bytes` in base 36, padded with zeros to [`OBJECT_ID_LEN`] digits.
fn base36(mut bytes: [u8; 17]) -> [u8; OBJECT_ID_LEN] {
    // 36^25 is just under 2^130; keeping 129 bits makes every value fit.
    bytes[0] &= 1;
    let mut digits = [b'0'; OBJECT_ID_LEN];
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0u32;
        for byte in &mut bytes {
            let value = (remainder << 8) | u32::from(*byte);
            *byte = u8::try_from(value / 36).expect("remainder < 36, so the quotient fits a byte");
            remainder = value % 36;
        }
        let remainder = u8::try_from(remainder).expect("a remainder of 36 fits a byte");
        *digit = if remainder < 10 {
            b'0' + remainder
        } else {
            b'a' + remainder - 10
        };
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_ids_have_dockers_shape_and_parse_back() {
        for fill in [0u8, 1, 0x7f, 0xff] {
            let id = TaskId::from_random([fill; 17]);
            assert_eq!(id.as_str().len(), OBJECT_ID_LEN);
            assert_eq!(id.as_str().parse::<TaskId>(), Ok(id));
        }
        assert_eq!(TaskId::from_random([0; 17]).as_str(), "0".repeat(25));
        let mut one = [0; 17];
        one[16] = 35;
        assert_eq!(
            TaskId::from_random(one).as_str(),
            format!("{}z", "0".repeat(24))
        );
    }

    #[test]
    fn ids_sort_as_their_text() {
        let id = |text: &str| format!("{text:0<25}").parse::<TaskId>().expect("an id");
        let ids = [
            "0",
            "1",
            "12345678",
            "123456789",
            "12345678a",
            "a",
            "zzzzzzzzz",
        ]
        .map(id);
        for (a, b) in ids.iter().flat_map(|a| ids.iter().map(move |b| (a, b))) {
            assert_eq!(a.cmp(b), a.as_str().cmp(b.as_str()), "{a} {b}");
        }
    }

    #[test]
    fn base36_keeps_every_one_of_the_129_bits() {
        let mut high = [0; 17];
        high[0] = 1;
        let value = base36(high)
            .into_iter()
            .map(|b| {
                u32::from(if b.is_ascii_digit() {
                    b - b'0'
                } else {
                    b - b'a' + 10
                })
            })
            .fold([0u8; 17], |mut acc, digit| {
                let mut carry = digit;
                for byte in acc.iter_mut().rev() {
                    let v = u32::from(*byte) * 36 + carry;
                    *byte = (v & 0xff) as u8;
                    carry = v >> 8;
                }
                assert_eq!(carry, 0);
                acc
            });
        assert_eq!(value, high);
    }

    #[test]
    fn ids_of_another_shape_are_refused() {
        assert!("".parse::<NodeId>().is_err());
        assert!("A123456789012345678901234".parse::<NodeId>().is_err());
        let error = "web".parse::<ServiceId>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"web\" is not a service id: expected 25 characters of 0-9 and a-z"
        );
        assert!("g".repeat(64).parse::<ContainerId>().is_err());
        assert!("0a".repeat(32).parse::<ContainerId>().is_ok());
    }
}
