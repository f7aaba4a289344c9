//! Join tokens, in Docker's shape: `SWMTKN-1-<digest>-<secret>`.
//!
//! The digest tells a node which root certificate to trust before it has seen one; the secret tells
//! the cluster that the node may join, and as what. Both are base 36, padded with zeros.

use std::{fmt, str::FromStr};

const PREFIX: &str = "SWMTKN";
const VERSION: &str = "1";
/// 36^50 > 2^256.
const DIGEST_DIGITS: usize = 50;
/// 36^25 > 2^128.
const SECRET_DIGITS: usize = 25;

/// What `docker swarm join --token` takes.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the root certificate's DER.
    pub digest: [u8; 32],
    pub secret: [u8; 16],
}

/// The text is not a join token. The text itself is not repeated: it may hold a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseTokenError {
    #[error(
        "invalid join token: expected SWMTKN-1-<digest>-<secret>, as `docker swarm join-token` prints it"
    )]
    Shape,
    #[error("invalid join token: this release reads version 1 only")]
    Version,
    #[error("invalid join token: its {part} must be {digits} characters of 0-9 and a-z")]
    Part { part: &'static str, digits: usize },
}

impl FromStr for JoinToken {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let mut parts = text.trim().split('-');
        if parts.next() != Some(PREFIX) {
            return Err(ParseTokenError::Shape);
        }
        let (Some(version), Some(digest), Some(secret)) =
            (parts.next(), parts.next(), parts.next())
        else {
            return Err(ParseTokenError::Shape);
        };
        if version != VERSION {
            return Err(ParseTokenError::Version);
        }
        if parts.next().is_some() {
            return Err(ParseTokenError::Shape);
        }
        Ok(Self {
            digest: from_base36(digest, DIGEST_DIGITS).ok_or(ParseTokenError::Part {
                part: "digest",
                digits: DIGEST_DIGITS,
            })?,
            secret: from_base36(secret, SECRET_DIGITS).ok_or(ParseTokenError::Part {
                part: "secret",
                digits: SECRET_DIGITS,
            })?,
        })
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{PREFIX}-{VERSION}-{}-{}",
            to_base36(self.digest, DIGEST_DIGITS),
            to_base36(self.secret, SECRET_DIGITS)
        )
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("digest", &hex::encode(self.digest))
            .finish_non_exhaustive()
    }
}

/// Whether two secrets are the same, in a time that does not depend on where they differ.
pub fn same_secret(a: &[u8; 16], b: &[u8; 16]) -> bool {
    let differences = a.iter().zip(b).fold(0, |seen, (a, b)| seen | (a ^ b));
    // Hides the value from the optimiser, which could otherwise stop at the first difference.
    std::hint::black_box(differences) == 0
}

/// The number that `bytes` are, big-endian, in `digits` digits.
fn to_base36<const N: usize>(mut bytes: [u8; N], digits: usize) -> String {
    let mut text = vec![0; digits];
    for digit in text.iter_mut().rev() {
        let mut remainder = 0u32;
        for byte in &mut bytes {
            let value = (remainder << 8) | u32::from(*byte);
            *byte = u8::try_from(value / 36).expect("remainder < 36, so the quotient fits a byte");
            remainder = value % 36;
        }
        *digit = char::from_digit(remainder, 36).map_or(b'0', |c| c as u8);
    }
    text.into_iter().map(char::from).collect()
}

/// The inverse; `None` for another length, another digit, or a number of more than `N` bytes.
fn from_base36<const N: usize>(text: &str, digits: usize) -> Option<[u8; N]> {
    if text.len() != digits {
        return None;
    }
    let mut bytes = [0; N];
    for c in text.chars() {
        if c.is_ascii_uppercase() {
            return None;
        }
        let mut carry = c.to_digit(36)?;
        for byte in bytes.iter_mut().rev() {
            let value = u32::from(*byte) * 36 + carry;
            let [_, _, high, low] = value.to_be_bytes();
            *byte = low;
            carry = u32::from(high);
        }
        if carry != 0 {
            return None;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_tokens_print_and_parse() {
        let zero = JoinToken {
            digest: [0; 32],
            secret: [0; 16],
        };
        assert_eq!(
            zero.to_string(),
            format!("SWMTKN-1-{}-{}", "0".repeat(50), "0".repeat(25))
        );
        // 2^256 - 1 and 2^128 - 1, by another implementation of base 36.
        let all = JoinToken {
            digest: [255; 32],
            secret: [255; 16],
        };
        let text = "SWMTKN-1-6dp5qcb22im238nr3wvp0ic7q99w035jmy2iw7i6n43d37jtof-\
                    f5lxx1zz5pnorynqglhzmsp33";
        assert_eq!(all.to_string(), text);
        assert_eq!(text.parse(), Ok(all.clone()));
        assert_eq!(format!(" {text}\n").parse(), Ok(all));
    }

    #[test]
    fn what_is_not_a_token_is_refused_with_dockers_words_and_not_repeated() {
        let digest = "0".repeat(50);
        let secret = "0".repeat(25);
        let cases = [
            (String::new(), ParseTokenError::Shape),
            ("SWMTKN".to_owned(), ParseTokenError::Shape),
            (format!("SWMTKN-1-{digest}"), ParseTokenError::Shape),
            (
                format!("SWMKEY-1-{digest}-{secret}"),
                ParseTokenError::Shape,
            ),
            (
                format!("SWMTKN-1-{digest}-{secret}-x"),
                ParseTokenError::Shape,
            ),
            (
                format!("SWMTKN-2-1-{digest}-{secret}"),
                ParseTokenError::Version,
            ),
            (
                format!("SWMTKN-1-{digest}0-{secret}"),
                ParseTokenError::Part {
                    part: "digest",
                    digits: 50,
                },
            ),
            (
                // More than 2^256.
                format!("SWMTKN-1-{}-{secret}", "z".repeat(50)),
                ParseTokenError::Part {
                    part: "digest",
                    digits: 50,
                },
            ),
            (
                format!("SWMTKN-1-{digest}-{}", "A".repeat(25)),
                ParseTokenError::Part {
                    part: "secret",
                    digits: 25,
                },
            ),
            (
                format!("SWMTKN-1-{digest}-{}", "é".repeat(12) + "0"),
                ParseTokenError::Part {
                    part: "secret",
                    digits: 25,
                },
            ),
        ];
        for (text, expected) in cases {
            let error = text.parse::<JoinToken>().expect_err(&text);
            assert_eq!(error, expected, "{text}");
            assert!(error.to_string().starts_with("invalid join token"));
        }
    }

    #[test]
    fn debug_does_not_show_the_secret() {
        let token = JoinToken {
            digest: [1; 32],
            secret: [0xab; 16],
        };
        let shown = format!("{token:?}");
        assert!(!shown.contains("171") && !shown.contains("abab"), "{shown}");
    }

    proptest! {
        #[test]
        fn every_token_parses_back(digest: [u8; 32], secret: [u8; 16]) {
            let token = JoinToken { digest, secret };
            let text = token.to_string();
            prop_assert_eq!(text.len(), 9 + 50 + 1 + 25);
            prop_assert_eq!(text.parse(), Ok(token));
        }

        #[test]
        fn foreign_text_never_panics(text in ".{0,100}") {
            let _ = text.parse::<JoinToken>();
            let _ = format!("SWMTKN-1-{text}").parse::<JoinToken>();
        }

        #[test]
        fn secrets_are_the_same_only_when_equal(a: [u8; 16], at in 0usize..16, bit in 0u8..8) {
            prop_assert!(same_secret(&a, &a));
            let mut b = a;
            b[at] ^= 1 << bit;
            prop_assert!(!same_secret(&a, &b));
        }
    }
}
