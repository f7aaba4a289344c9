//! Image names as people write them (`alpine`) and as registries know them (`docker.io/library/alpine:latest`):
//! the rules of `distribution/reference`.

use std::fmt;

/// An image name; `None` from [`Reference::parse`] for what is no name (such as a bare id).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    /// As people write it: without `docker.io/` and `library/`.
    familiar: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        // A colon after the last slash begins a tag; one before belongs to the registry's port.
        let slash = name.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match name[slash..].find(':') {
            Some(at) => (&name[..slash + at], Some(&name[slash + at + 1..])),
            None => (name, None),
        };
        let (domain, path) = match name.split_once('/') {
            Some((first, rest))
                if first.contains(['.', ':'])
                    || first == "localhost"
                    || first.chars().any(char::is_uppercase) =>
            {
                (first, rest)
            }
            _ => ("docker.io", name),
        };
        let domain = if domain == "index.docker.io" {
            "docker.io"
        } else {
            domain
        };
        let path = if domain == "docker.io" {
            path.strip_prefix("library/")
                .filter(|rest| !rest.contains('/'))
                .unwrap_or(path)
        } else {
            path
        };
        let valid = valid_domain(domain)
            && path.split('/').all(valid_component)
            && tag.is_none_or(valid_tag)
            && digest.is_none_or(valid_digest)
            && name.len() <= 255;
        let familiar = if domain == "docker.io" {
            path.to_owned()
        } else {
            format!("{domain}/{path}")
        };
        valid.then(|| Self {
            familiar,
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }

    /// With `latest` when it has neither tag nor digest.
    pub(crate) fn with_default_tag(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".into());
        }
        self
    }

    /// With `digest`, unless it has one.
    pub(crate) fn with_digest(mut self, digest: &str) -> Self {
        self.digest.get_or_insert_with(|| digest.to_owned());
        self
    }

    /// For display: a name with a tag loses its digest.
    pub(crate) fn without_digest_if_tagged(mut self) -> Self {
        if self.tag.is_some() {
            self.digest = None;
        }
        self
    }

    pub(crate) fn name(&self) -> &str {
        &self.familiar
    }

    pub(crate) fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub(crate) fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    pub(crate) fn is_name_only(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }

    /// The key of this registry in a Docker configuration file.
    pub(crate) fn registry(&self) -> &str {
        match self.familiar.split_once('/') {
            Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
            _ => "https://index.docker.io/v1/",
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.familiar)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// An image's name for a table: the digest is left out when there is a tag.
pub(crate) fn shown(image: &str) -> String {
    match Reference::parse(image) {
        Some(reference) if reference.tag().is_some() => {
            reference.without_digest_if_tagged().to_string()
        }
        _ => image.to_owned(),
    }
}

fn valid_domain(domain: &str) -> bool {
    let (host, port) = domain.split_once(':').unwrap_or((domain, "0"));
    !host.is_empty()
        && port.bytes().all(|b| b.is_ascii_digit())
        && !port.is_empty()
        && host.split('.').all(|part| {
            !part.is_empty()
                && !part.starts_with('-')
                && !part.ends_with('-')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

/// Lower case letters and digits, separated by `.`, `_`, `__` or dashes.
fn valid_component(component: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends = matches!((bytes.first(), bytes.last()), (Some(&a), Some(&b)) if word(a) && word(b));
    ends && component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

fn valid_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&tag.len())
        && word(tag.as_bytes()[0])
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn valid_digest(digest: &str) -> bool {
    digest.split_once(':').is_some_and(|(algorithm, hex)| {
        !algorithm.is_empty()
            && hex.len() >= 32
            && (algorithm != "sha256" || hex.len() == 64)
            && hex.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_familiar_and_tagged() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let cases = [
            ("alpine", "alpine:latest"),
            ("docker.io/library/alpine", "alpine:latest"),
            ("index.docker.io/me/app:1", "me/app:1"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("ghcr.io/me/app:v1", "ghcr.io/me/app:v1"),
            ("localhost/app", "localhost/app:latest"),
        ];
        for (text, full) in cases {
            let reference = Reference::parse(text).unwrap().with_default_tag();
            assert_eq!(reference.to_string(), full);
        }
        let pinned = format!("alpine@{digest}");
        assert_eq!(
            Reference::parse(&pinned)
                .unwrap()
                .with_default_tag()
                .to_string(),
            pinned
        );
        assert_eq!(
            Reference::parse("a:1")
                .unwrap()
                .with_digest(&digest)
                .to_string(),
            format!("a:1@{digest}")
        );
        assert_eq!(shown(&format!("alpine:3@{digest}")), "alpine:3");
        assert_eq!(shown(&pinned), pinned);
    }

    #[test]
    fn what_is_no_name_is_left_alone() {
        for text in [
            "",
            "Alpine",
            "a//b",
            "a:",
            "a@sha256:1",
            "-a",
            &"a".repeat(64),
            "a b",
            "é",
        ] {
            assert_eq!(Reference::parse(text), None, "{text}");
        }
    }
}
