//! Credentials on disk.
//!
//! ```text
//! dir/current -> set-4f1c…      the only thing that ever changes, by rename
//! dir/set-4f1c…/{node.crt,node.key,ca.crt}
//! dir/{node.crt,node.key,ca.crt} -> current/…
//! ```
//!
//! A set is complete and on disk before `current` names it, and is never written to again. Readers
//! resolve `current` once, so they too see one set.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink},
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use rustls_pki_types::{
    CertificateDer, PrivatePkcs8KeyDer,
    pem::{self, PemObject},
};

use super::{CertificateError, Credentials, NodeKey};

const CURRENT: &str = "current";
const SET: &str = "set-";
const CERTIFICATE: &str = "node.crt";
const KEY: &str = "node.key";
const ROOT: &str = "ca.crt";

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("the private key is not the certificate's")]
    OtherKey,
    #[error("the certificate is not signed by the root certificate")]
    OtherRoot,
    #[error("read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{path} holds no usable {what}; leave the swarm and join again to replace the node's \
         certificates"
    )]
    Damaged { path: PathBuf, what: &'static str },
    #[error("the credentials in {dir}")]
    Unfit {
        dir: PathBuf,
        #[source]
        source: Box<CredentialsError>,
    },
}

pub(super) fn save(credentials: &Credentials, dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    let name = format!("{SET}{:016x}", rand::random::<u64>());
    let set = dir.join(&name);
    write_set(credentials, &set)?;
    // The set must be reachable on disk before anything names it.
    sync(dir)?;
    point(dir, CURRENT, &name)?;
    for file in [CERTIFICATE, KEY, ROOT] {
        let target = format!("{CURRENT}/{file}");
        if fs::read_link(dir.join(file)).is_ok_and(|to| to == Path::new(&target)) {
            continue;
        }
        point(dir, file, &target)?;
    }
    sync(dir)?;
    sweep(dir, &name);
    Ok(())
}

fn write_set(credentials: &Credentials, set: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(set)?;
    let write = |name: &str, label: &str, mode: u32, der: &[u8]| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(set.join(name))?;
        file.write_all(armour(label, der).as_bytes())?;
        file.sync_all()
    };
    write(KEY, "PRIVATE KEY", 0o600, credentials.0.key.pkcs8())?;
    write(CERTIFICATE, "CERTIFICATE", 0o644, credentials.certificate())?;
    write(ROOT, "CERTIFICATE", 0o644, credentials.root_certificate())?;
    sync(set)
}

/// Makes `dir/name` a link to `target`, in one step whatever was there.
fn point(dir: &Path, name: &str, target: &str) -> io::Result<()> {
    let new = dir.join(format!("{SET}{:016x}.link", rand::random::<u64>()));
    symlink(target, &new)?;
    fs::rename(&new, dir.join(name)).inspect_err(|_| drop(fs::remove_file(&new)))
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes the sets that `current` does not name: older ones, and what a crash left.
fn sweep(dir: &Path, keep: &str) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if !name.starts_with(SET) || name == keep {
            continue;
        }
        let removed = match entry.file_type() {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(entry.path()),
            _ => fs::remove_file(entry.path()),
        };
        if let Err(error) = removed {
            tracing::warn!(path = %entry.path().display(), %error, "old credentials stay behind");
        }
    }
}

pub(super) fn load(dir: &Path) -> Result<Option<Credentials>, CredentialsError> {
    let current = dir.join(CURRENT);
    let set = match fs::read_link(&current) {
        Ok(name) => dir.join(name),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(CredentialsError::Read {
                path: current,
                source,
            });
        }
    };
    let key = read(&set, KEY)?;
    let key = PrivatePkcs8KeyDer::from_pem_slice(&key)
        .ok()
        .and_then(|der| NodeKey::from_pkcs8(der.secret_pkcs8_der()).ok())
        .ok_or_else(|| damaged(&set, KEY, "P-256 private key in PKCS #8"))?;
    let certificate = |name| {
        let text = read(&set, name)?;
        let der: Result<CertificateDer<'_>, pem::Error> = CertificateDer::from_pem_slice(&text);
        der.map(|der| der.to_vec())
            .map_err(|_| damaged(&set, name, "certificate"))
    };
    Credentials::new(key, certificate(CERTIFICATE)?, certificate(ROOT)?)
        .map(Some)
        .map_err(|source| CredentialsError::Unfit {
            dir: dir.to_owned(),
            source: Box::new(source),
        })
}

fn read(set: &Path, name: &str) -> Result<Vec<u8>, CredentialsError> {
    let path = set.join(name);
    fs::read(&path).map_err(|source| CredentialsError::Read { path, source })
}

fn damaged(set: &Path, name: &str, what: &'static str) -> CredentialsError {
    CredentialsError::Damaged {
        path: set.join(name),
        what,
    }
}

/// RFC 7468.
fn armour(label: &str, der: &[u8]) -> String {
    let body = BASE64_STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        text.extend(line.iter().copied().map(char::from));
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}
