//! Query parameters, with Docker's idea of a boolean.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use http::request::Parts;
use shoal_types::{Timestamp, Version};

use super::{
    error::{ApiError, ApiResult},
    filters::Filters,
};

/// The parameters of a request, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default()))
    }
}

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (unescape(key), unescape(value))
        });
        Self(pairs.collect())
    }

    /// Empty when absent.
    pub(crate) fn text(&self, key: &str) -> &str {
        let found = self.0.iter().find(|(k, _)| k == key);
        found.map_or("", |(_, value)| value.as_str())
    }

    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(k, _)| k == key)
    }

    /// Everything but these few words is true (moby `daemon/server/httputils/form.go`).
    pub(crate) fn flag(&self, key: &str) -> bool {
        let value = self.text(key).trim().to_ascii_lowercase();
        !matches!(value.as_str(), "" | "0" | "no" | "false" | "none")
    }

    pub(crate) fn filters(&self, known: &[&str]) -> ApiResult<Filters> {
        Filters::parse(self.text("filters"), known)
    }

    /// The version that an update was made from.
    pub(crate) fn version(&self, kind: &str) -> ApiResult<Version> {
        let text = self.text("version");
        text.parse().map(Version).map_err(|_| {
            ApiError::bad_request(format!(
                "invalid {kind} version '{text}': a number is needed"
            ))
        })
    }

    /// Seconds since the epoch with up to nine digits of fraction, or RFC 3339; `None` when absent.
    pub(crate) fn time(&self, key: &str) -> ApiResult<Option<Timestamp>> {
        let text = self.text(key);
        if text.is_empty() || text == "0" {
            return Ok(None);
        }
        let invalid = || ApiError::bad_request(format!("invalid value for \"{key}\": {text:?}"));
        moment(text).map(Some).ok_or_else(invalid)
    }
}

/// Seconds since the epoch with up to nine digits of fraction, or RFC 3339.
pub(crate) fn moment(text: &str) -> Option<Timestamp> {
    if let Ok(time) = text.parse::<crate::wire::Time>() {
        return time.0;
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = fraction.bytes().all(|b| b.is_ascii_digit()) && fraction.len() <= 9;
    if !digits {
        return None;
    }
    let seconds: i64 = seconds.parse().ok()?;
    let nanos: u32 = format!("{fraction:0<9}").parse().ok()?;
    Some(Timestamp::from_unix(seconds, nanos))
}

/// Percent and plus decoding; what is not an escape stays as it is.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).expect("two hexadecimal digits"));
                at += 3;
            }
            (b'+', ..) => {
                out.push(b' ');
                at += 1;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_booleans_are_dockers() {
        let query = Query::parse("a=1&b=%7B%22x%22%7D+y&c&d=False&changes=1&changes=2&e=%zz");
        assert!(query.flag("a") && !query.flag("c") && !query.flag("d") && !query.flag("nope"));
        assert_eq!(query.text("b"), "{\"x\"} y");
        assert_eq!(query.all("changes").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(query.text("e"), "%zz");
    }

    #[test]
    fn times_are_seconds_with_a_fraction_or_rfc_3339() {
        let time = |text: &str| Query::parse(&format!("since={text}")).time("since");
        assert_eq!(
            time("12.5"),
            Ok(Some(Timestamp::from_unix(12, 500_000_000)))
        );
        assert_eq!(
            time("1970-01-01T00:00:12Z"),
            Ok(Some(Timestamp::from_unix(12, 0)))
        );
        assert_eq!(time(""), Ok(None));
        assert_eq!(time("0"), Ok(None));
        assert!(time("soon").is_err());
        assert!(time("1.x").is_err());
    }
}
