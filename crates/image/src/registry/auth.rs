//! Credentials, challenges and tokens (distribution `docs/spec/auth/token.md`, RFC 9110 §11).

use std::{
    collections::HashMap,
    fmt,
    sync::Mutex,
    time::{Duration, Instant},
};

use base64::{
    Engine as _,
    engine::{
        GeneralPurpose, GeneralPurposeConfig,
        general_purpose::{self, STANDARD},
    },
};
use http::{HeaderMap, HeaderValue, header};
use serde::Deserialize;

use crate::locks::lock;

/// What Go's client sends may be padded or not.
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
);
/// Lifetime of a token whose issuer names none, by the token specification.
const TOKEN_LIFETIME: Duration = Duration::from_mins(1);
/// A token is not kept for longer, whatever its issuer says.
const MAX_TOKEN_LIFETIME: Duration = Duration::from_hours(24);
/// A token this close to its end is renewed.
const TOKEN_MARGIN: Duration = Duration::from_secs(10);

/// The header is not what `X-Registry-Auth` should be. Docker takes such a one as empty.
#[derive(Debug, thiserror::Error)]
pub enum ParseAuthError {
    #[error("registry credentials are not base64url")]
    Encoding(#[from] base64::DecodeError),
    #[error("registry credentials are not the expected JSON")]
    Json(#[from] serde_json::Error),
}

/// Credentials for one registry, as Docker's `AuthConfig`.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RegistryAuth {
    pub username: String,
    pub password: String,
    /// An OAuth refresh token, given in place of a password.
    #[serde(rename = "identitytoken")]
    pub identity_token: String,
    /// A bearer token to send as it is.
    #[serde(rename = "registrytoken")]
    pub registry_token: String,
    #[serde(rename = "serveraddress")]
    pub server_address: String,
    /// `username:password` in base64, as in Docker's configuration file.
    auth: String,
}

impl RegistryAuth {
    pub fn basic(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            username: username.into(),
            password: password.into(),
            ..Self::default()
        }
    }

    /// Parses the header `X-Registry-Auth`. Empty credentials are `None`.
    pub fn from_header(value: &str) -> Result<Option<Self>, ParseAuthError> {
        let value = value.trim();
        if value.is_empty() {
            return Ok(None);
        }
        let json = match URL_SAFE.decode(value) {
            Ok(json) => json,
            // Some SDKs send the other alphabet.
            Err(error) => general_purpose::STANDARD.decode(value).map_err(|_| error)?,
        };
        let mut auth: Self = serde_json::from_slice(&json)?;
        if auth.username.is_empty()
            && let Some((username, password)) = STANDARD.decode(&auth.auth).ok().and_then(|bytes| {
                let text = String::from_utf8(bytes).ok()?;
                let (username, password) = text.split_once(':')?;
                Some((username.to_owned(), password.to_owned()))
            })
        {
            (auth.username, auth.password) = (username, password);
        }
        Ok((!auth.is_empty()).then_some(auth))
    }

    fn is_empty(&self) -> bool {
        self.username.is_empty() && self.identity_token.is_empty() && self.registry_token.is_empty()
    }

    pub(super) fn basic_header(&self) -> Option<HeaderValue> {
        if self.username.is_empty() {
            return None;
        }
        let text = STANDARD.encode(format!("{}:{}", self.username, self.password));
        secret(&format!("Basic {text}"))
    }

    pub(super) fn registry_token_header(&self) -> Option<HeaderValue> {
        if self.registry_token.is_empty() {
            return None;
        }
        secret(&format!("Bearer {}", self.registry_token))
    }

    /// Tells users apart in the token cache without keeping their secrets in its keys.
    fn cache_key(&self) -> String {
        let all = format!(
            "{}\0{}\0{}",
            self.username, self.password, self.identity_token
        );
        crate::Digest::of(all.as_bytes()).hex().to_owned()
    }
}

/// Secrets stay out of logs.
impl fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryAuth")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What a 401 asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

impl Challenge {
    /// The best challenge of an answer: a token, else a password.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let all: Vec<Self> = headers
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| Self::parse(value.to_str().ok()?))
            .collect();
        let bearer = all
            .iter()
            .find(|challenge| matches!(challenge, Self::Bearer { .. }));
        bearer.or_else(|| all.first()).cloned()
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let parameters = parameters(rest);
        let get = |key: &str| {
            parameters
                .iter()
                .find(|(k, _)| k == key)
                .map(|(_, v)| v.clone())
        };
        Some(Self::Bearer {
            realm: get("realm")?,
            service: get("service"),
        })
    }
}

/// `key="value", key=value`; commas within quotes belong to the value.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while let Some((key, after)) = rest.split_once('=') {
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        found.push((key.trim().to_ascii_lowercase(), value.trim().to_owned()));
        rest = next.trim_start_matches([' ', ',']);
    }
    found
}

/// The answer of a token server. Docker's has `token`, OAuth's `access_token`.
#[derive(Deserialize)]
pub(super) struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl TokenAnswer {
    pub(super) fn header(&self) -> Option<HeaderValue> {
        let token = self.token.as_ref().or(self.access_token.as_ref())?;
        secret(&format!("Bearer {token}"))
    }

    fn lifetime(&self) -> Duration {
        self.expires_in.map_or(TOKEN_LIFETIME, Duration::from_secs)
    }
}

/// Tokens that are still good, by endpoint, scope and user.
#[derive(Default)]
pub(super) struct TokenCache(Mutex<HashMap<TokenKey, (HeaderValue, Instant)>>);

/// Endpoint, scope and user.
type TokenKey = (String, String, String);

impl TokenCache {
    pub(super) fn get(
        &self,
        endpoint: &str,
        scope: &str,
        auth: Option<&RegistryAuth>,
    ) -> Option<HeaderValue> {
        let map = lock(&self.0);
        let (token, until) = map.get(&Self::key(endpoint, scope, auth))?;
        (Instant::now() + TOKEN_MARGIN < *until).then(|| token.clone())
    }

    pub(super) fn put(
        &self,
        endpoint: &str,
        scope: &str,
        auth: Option<&RegistryAuth>,
        answer: &TokenAnswer,
        token: HeaderValue,
    ) {
        let now = Instant::now();
        let mut map = lock(&self.0);
        map.retain(|_, (_, until)| *until > now);
        map.insert(
            Self::key(endpoint, scope, auth),
            (token, now + answer.lifetime().min(MAX_TOKEN_LIFETIME)),
        );
    }

    fn key(endpoint: &str, scope: &str, auth: Option<&RegistryAuth>) -> TokenKey {
        let user = auth.map(RegistryAuth::cache_key).unwrap_or_default();
        (endpoint.to_owned(), scope.to_owned(), user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_in_either_alphabet_are_read() {
        let json = br#"{"username":"u","password":"p?>~","serveraddress":"x"}"#;
        for text in [
            general_purpose::URL_SAFE.encode(json),
            general_purpose::URL_SAFE_NO_PAD.encode(json),
            STANDARD.encode(json),
        ] {
            let auth = RegistryAuth::from_header(&text).unwrap().unwrap();
            assert_eq!(
                (auth.username.as_str(), auth.password.as_str()),
                ("u", "p?>~")
            );
            assert!(!format!("{auth:?}").contains("p?>~"));
        }
        assert_eq!(RegistryAuth::from_header("").unwrap(), None);
        assert_eq!(
            RegistryAuth::from_header(&STANDARD.encode("{}")).unwrap(),
            None
        );
        assert!(RegistryAuth::from_header("%").is_err());
        let packed = STANDARD.encode(format!(r#"{{"auth":"{}"}}"#, STANDARD.encode("a:b:c")));
        assert_eq!(
            RegistryAuth::from_header(&packed)
                .unwrap()
                .unwrap()
                .password,
            "b:c"
        );
    }

    #[test]
    fn a_token_said_to_live_for_ever_is_kept_for_a_while() {
        let json = format!(r#"{{"token":"t","expires_in":{}}}"#, u64::MAX);
        let answer: TokenAnswer = serde_json::from_str(&json).unwrap();
        let cache = TokenCache::default();
        let token = answer.header().unwrap();
        cache.put("e", "s", None, &answer, token.clone());
        assert_eq!(cache.get("e", "s", None), Some(token));
    }

    #[test]
    fn challenges_are_read() {
        let text = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a:pull,push""#;
        assert_eq!(
            Challenge::parse(text),
            Some(Challenge::Bearer {
                realm: "https://auth.docker.io/token".into(),
                service: Some("registry.docker.io".into())
            })
        );
        assert_eq!(
            Challenge::parse(r#"basic realm="x""#),
            Some(Challenge::Basic)
        );
        assert_eq!(Challenge::parse("Bearer service=x"), None);
        assert_eq!(Challenge::parse("Negotiate"), None);
    }
}
