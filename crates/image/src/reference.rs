//! Image references as Docker writes them: `[domain/]path[:tag][@digest]`.
//!
//! The grammar is that of the distribution project (`reference/regexp.go`), the normalisation
//! that of Docker (`reference/normalize.go`): a name without a domain is on Docker Hub, and one
//! component on Docker Hub is in `library/`.

use std::fmt;

use crate::digest::Digest;

/// Where names without a domain live.
pub(crate) const HUB: &str = "docker.io";
pub(crate) const HUB_LEGACY: &str = "index.docker.io";
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// `NameTotalLengthMax` of distribution/reference.
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// The text is not a reference. Messages are Docker's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseReferenceError {
    #[error("invalid reference format: {0:?}")]
    Format(String),
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    #[error("repository name must not be more than {NAME_MAX} characters")]
    TooLong,
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    LooksLikeId(String),
    #[error("invalid reference format: tag {0:?}")]
    Tag(String),
    #[error("invalid reference format")]
    Digest(#[source] crate::digest::ParseDigestError),
}

/// A normalised reference: always with a domain and a full path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses and normalises; adds no tag.
    pub fn parse(text: &str) -> Result<Self, ParseReferenceError> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(digest.parse().map_err(ParseReferenceError::Digest)?),
            ),
            None => (text, None),
        };
        // A colon after the last slash starts a tag; one before it belongs to the domain's port.
        let after_slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest[after_slash..].find(':') {
            Some(colon) => {
                let at = after_slash + colon;
                (&rest[..at], Some(&rest[at + 1..]))
            }
            None => (rest, None),
        };
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        let is_hex_id = name.len() == 64
            && name
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if is_hex_id {
            return Err(ParseReferenceError::LooksLikeId(name.to_owned()));
        }
        let (domain, path) = split_domain(name);
        if !is_domain(&domain) {
            return Err(ParseReferenceError::Format(text.to_owned()));
        }
        if !is_path(&path) {
            return Err(if is_path(&path.to_ascii_lowercase()) {
                ParseReferenceError::Uppercase(path)
            } else {
                ParseReferenceError::Format(text.to_owned())
            });
        }
        if domain.len() + 1 + path.len() > NAME_MAX {
            return Err(ParseReferenceError::TooLong);
        }
        Ok(Self {
            domain,
            path,
            tag: tag.map(str::to_owned),
            digest,
        })
    }

    /// The registry's host, with its port if it names one; `docker.io` for Docker Hub.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within its registry, such as `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `latest`, unless a tag or a digest is named.
    #[must_use]
    pub fn with_default_tag(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    /// Domain and path, such as `docker.io/library/busybox`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The name as people write it, such as `busybox`.
    pub fn familiar_name(&self) -> String {
        if self.domain != HUB {
            return self.name();
        }
        match self.path.strip_prefix(OFFICIAL) {
            Some(official) if !official.contains('/') => official.to_owned(),
            _ => self.path.clone(),
        }
    }

    /// The whole reference as people write it, such as `busybox:latest`.
    pub fn familiar(&self) -> String {
        self.suffixed(self.familiar_name())
    }

    /// The key of a tag in the index; `None` without a tag.
    pub(crate) fn tag_key(&self) -> Option<String> {
        self.tag
            .as_ref()
            .map(|tag| format!("{}:{tag}", self.name()))
    }

    /// The key of a digest in the index.
    pub(crate) fn digest_key(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }

    fn suffixed(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(digest.as_str());
        }
        text
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.suffixed(self.name()))
    }
}

/// Turns a key of the index back into what people write.
pub(crate) fn familiar_key(key: &str) -> String {
    Reference::parse(key).map_or_else(|_| key.to_owned(), |reference| reference.familiar())
}

fn split_domain(name: &str) -> (String, String) {
    let (domain, path) = match name.split_once('/') {
        // Docker's rule: the first component is a domain if it could not be a path component.
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (HUB, name),
    };
    let domain = if domain == HUB_LEGACY { HUB } else { domain };
    let path = if domain == HUB && !path.contains('/') {
        format!("{OFFICIAL}{path}")
    } else {
        path.to_owned()
    };
    (domain.to_owned(), path)
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = if let Some(rest) = domain.strip_prefix('[') {
        let Some((address, after)) = rest.split_once(']') else {
            return false;
        };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match after.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if after.is_empty() => (None, None),
            None => return false,
        }
    } else {
        match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        }
    };
    let label = |label: &str| {
        let alnum = |b: u8| b.is_ascii_alphanumeric();
        let bytes = label.as_bytes();
        matches!((bytes.first(), bytes.last()), (Some(&a), Some(&z)) if alnum(a) && alnum(z))
            && bytes.iter().all(|&b| alnum(b) || b == b'-')
    };
    host.is_none_or(|host| host.split('.').all(label))
        && port.is_none_or(|port| {
            port.parse::<u16>().is_ok() && port.bytes().all(|b| b.is_ascii_digit())
        })
}

fn is_path(path: &str) -> bool {
    path.split('/').all(is_path_component)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let word = |b: u8| b.is_ascii_digit() || b.is_ascii_lowercase();
    let bytes = component.as_bytes();
    if !matches!((bytes.first(), bytes.last()), (Some(&a), Some(&z)) if word(a) && word(z)) {
        return false;
    }
    bytes.split(|&b| word(b)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&b| b == b'-')
    })
}

fn check_tag(tag: &str) -> Result<(), ParseReferenceError> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let ok = tag.len() <= TAG_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if ok {
        Ok(())
    } else {
        Err(ParseReferenceError::Tag(tag.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> String {
        Reference::parse(text)
            .unwrap()
            .with_default_tag()
            .to_string()
    }

    #[test]
    fn names_are_normalised_as_docker_does() {
        let hex = "a".repeat(64);
        for (text, want, familiar) in [
            (
                "busybox",
                "docker.io/library/busybox:latest",
                "busybox:latest",
            ),
            (
                "shoal/hello",
                "docker.io/shoal/hello:latest",
                "shoal/hello:latest",
            ),
            (
                "index.docker.io/busybox:1",
                "docker.io/library/busybox:1",
                "busybox:1",
            ),
            ("localhost/a", "localhost/a:latest", "localhost/a:latest"),
            (
                "localhost:5000/a/b:v1",
                "localhost:5000/a/b:v1",
                "localhost:5000/a/b:v1",
            ),
            ("[::1]:5000/a:v1", "[::1]:5000/a:v1", "[::1]:5000/a:v1"),
            (
                "quay.io/x/y_z__a--b.c:T",
                "quay.io/x/y_z__a--b.c:T",
                "quay.io/x/y_z__a--b.c:T",
            ),
        ] {
            assert_eq!(canonical(text), want);
            assert_eq!(
                Reference::parse(text)
                    .unwrap()
                    .with_default_tag()
                    .familiar(),
                familiar
            );
        }
        let pinned = Reference::parse(&format!("busybox:1@sha256:{hex}")).unwrap();
        assert_eq!(pinned.tag(), Some("1"));
        assert_eq!(pinned.familiar(), format!("busybox:1@sha256:{hex}"));
        assert_eq!(pinned.clone().with_default_tag(), pinned);
    }

    #[test]
    fn bad_references_are_refused_with_dockers_words() {
        assert!(
            Reference::parse("Busybox")
                .unwrap_err()
                .to_string()
                .contains("must be lowercase")
        );
        assert!(
            Reference::parse(&"a".repeat(64))
                .unwrap_err()
                .to_string()
                .contains("64-byte")
        );
        for text in [
            "", ":", "a:", "a//b", "/a", "a/", "a b", "-a", "a_", "a..b", "a/../b", "a___b", "a@b",
        ] {
            let error = Reference::parse(text).unwrap_err().to_string();
            assert!(
                error.starts_with("invalid reference format"),
                "{text:?}: {error}"
            );
        }
        assert!(Reference::parse(&format!("a:{}", "t".repeat(129))).is_err());
        assert_eq!(
            Reference::parse("a/".repeat(130).trim_end_matches('/')),
            Err(ParseReferenceError::TooLong)
        );
        assert!(Reference::parse("host.io:99999/a").is_err());
        assert!(Reference::parse("[zz]:1/a").is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,80}") {
            let _ = Reference::parse(&text);
        }

        #[test]
        fn what_parses_prints_and_parses_again(
            text in "([a-z0-9]{1,5}(\\.[a-z]{2,3})?(:[1-9][0-9]{1,3})?/)?[a-z0-9]{1,6}([._-][a-z0-9]{1,4})?(/[a-z0-9]{1,6})?(:[A-Za-z0-9_][a-z.-]{0,5})?"
        ) {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(&Reference::parse(&reference.to_string()).unwrap(), &reference);
                prop_assert_eq!(&Reference::parse(&reference.familiar()).unwrap(), &reference);
            }
        }
    }
}
