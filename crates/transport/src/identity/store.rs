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
        source: Box<Self>,
    },
}

pub(super) fn save(credentials: &Credentials, dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    if let Some(parent) = dir.canonicalize()?.parent() {
        sync(parent)?;
    }
    let name = format!("{SET}{:016x}", rand::random::<u64>());
    let set = dir.join(&name);
    let written = write_set(credentials, &set)
        // The set must be reachable on disk before anything names it.
        .and_then(|()| sync(dir))
        .and_then(|()| point(dir, CURRENT, &name));
    if let Err(error) = written {
        // Nothing names it, and it holds a key.
        drop(fs::remove_dir_all(&set));
        return Err(error);
    }
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
    loop {
        let name = match fs::read_link(&current) {
            Ok(name) => name,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(CredentialsError::Read {
                    path: current,
                    source,
                });
            }
        };
        let loaded = load_set(&dir.join(&name));
        // A set that is replaced while it is read is swept away: then there is a newer one.
        let replaced = || fs::read_link(&current).is_ok_and(|now| now != name);
        match loaded {
            Err(CredentialsError::Read { .. }) if replaced() => {}
            loaded => return loaded.map(Some),
        }
    }
}

fn load_set(set: &Path) -> Result<Credentials, CredentialsError> {
    let key = read(set, KEY)?;
    let key = PrivatePkcs8KeyDer::from_pem_slice(&key)
        .ok()
        .and_then(|der| NodeKey::from_pkcs8(der.secret_pkcs8_der()).ok())
        .ok_or_else(|| damaged(set, KEY, "P-256 private key in PKCS #8"))?;
    let certificate = |name| {
        let text = read(set, name)?;
        let der: Result<CertificateDer<'_>, pem::Error> = CertificateDer::from_pem_slice(&text);
        der.map(|der| der.to_vec())
            .map_err(|_| damaged(set, name, "certificate"))
    };
    Credentials::new(key, certificate(CERTIFICATE)?, certificate(ROOT)?).map_err(|source| {
        CredentialsError::Unfit {
            dir: set.to_owned(),
            source: Box::new(source),
        }
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

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::PermissionsExt,
        process::{Command, Stdio},
        time::{Duration, Instant},
    };

    use rand::RngExt;
    use shoal_types::spec::Role;

    use super::*;
    use crate::testing::{Swarm, node};

    /// Tells the process that the crash test starts where to save.
    const SAVE_IN: &str = "SHOAL_TEST_SAVE_CREDENTIALS_IN";

    #[test]
    fn what_was_saved_is_loaded_and_nothing_is_found_where_nothing_was_saved() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().join("made/if/need/be");
        assert!(Credentials::load(&dir).expect("no error").is_none());
        let saved = Swarm::new(1).credentials(7, Role::Manager);
        saved.save(&dir).expect("saved");
        let loaded = Credentials::load(&dir).expect("loads").expect("is there");
        assert_eq!(loaded.identity(), saved.identity());
        assert_eq!(loaded.certificate(), saved.certificate());
        assert_eq!(loaded.root_certificate(), saved.root_certificate());
        assert_eq!(loaded.0.key.pkcs8(), saved.0.key.pkcs8());
        assert_eq!(loaded.validity(), saved.validity());
    }

    #[test]
    fn the_key_is_for_its_owner_alone_and_old_sets_do_not_stay() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("certificates");
        let swarm = Swarm::new(1);
        for n in 1..=3 {
            swarm
                .credentials(n, Role::Worker)
                .save(&path)
                .expect("saved");
        }
        let mode = |path: &Path| fs::metadata(path).expect("is there").permissions().mode() & 0o777;
        assert_eq!(mode(&path.join(KEY)), 0o600);
        assert_eq!(mode(&path.join(CURRENT)), 0o700);
        assert_eq!(mode(&path), 0o700);
        let mut names: Vec<String> = fs::read_dir(&path)
            .expect("listed")
            .map(|entry| {
                entry
                    .expect("entry")
                    .file_name()
                    .into_string()
                    .expect("text")
            })
            .filter(|name| !name.starts_with(SET))
            .collect();
        names.sort();
        assert_eq!(names, [ROOT, CURRENT, CERTIFICATE, KEY]);
        assert_eq!(fs::read_dir(&path).expect("listed").count(), 5);
        for file in [ROOT, CERTIFICATE, KEY] {
            let text = fs::read_to_string(path.join(file)).expect("text");
            assert!(text.starts_with("-----BEGIN ") && text.lines().all(|line| line.len() <= 64));
        }
    }

    #[test]
    fn what_a_crash_leaves_is_ignored_and_swept_by_the_next_save() {
        let dir = tempfile::tempdir().expect("a directory");
        let swarm = Swarm::new(1);
        swarm
            .credentials(1, Role::Worker)
            .save(dir.path())
            .expect("saved");
        let half = dir.path().join("set-0123");
        fs::create_dir(&half).expect("made");
        fs::write(half.join(KEY), "-----BEGIN PRIV").expect("written");
        symlink("set-0123", dir.path().join("set-4567.link")).expect("linked");
        let loaded = Credentials::load(dir.path())
            .expect("loads")
            .expect("is there");
        assert_eq!(loaded.identity().node, node(1));
        swarm
            .credentials(2, Role::Worker)
            .save(dir.path())
            .expect("saved");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 5);
    }

    #[test]
    fn a_save_that_fails_leaves_nothing_of_its_own() {
        let dir = tempfile::tempdir().expect("a directory");
        let credentials = Swarm::new(1).credentials(1, Role::Worker);
        // No link can take the place of a directory.
        fs::create_dir(dir.path().join(CURRENT)).expect("made");
        credentials.save(dir.path()).expect_err("must fail");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
        let file = dir.path().join("file");
        fs::write(&file, "").expect("written");
        credentials.save(&file).expect_err("must fail");
    }

    #[test]
    fn damaged_or_mixed_files_are_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let (one, other) = (Swarm::new(1), Swarm::new(2));
        let saved = one.credentials(1, Role::Worker);
        let stranger = other.credentials(1, Role::Worker);
        let change = |file: &str, text: &str| {
            saved.save(dir.path()).expect("saved");
            fs::write(dir.path().join(file), text).expect("written");
            Credentials::load(dir.path()).expect_err("must not load")
        };
        let pem = |der| armour("CERTIFICATE", der);
        let key = armour("PRIVATE KEY", stranger.0.key.pkcs8());
        for (file, text, part) in [
            (KEY, "", "node.key holds no usable P-256 private key"),
            (CERTIFICATE, "x", "node.crt holds no usable certificate"),
            (ROOT, "", "ca.crt holds no usable certificate"),
        ] {
            let error = change(file, text).to_string();
            assert!(
                error.contains(part) && error.contains("join again"),
                "{error}"
            );
        }
        for (file, text, expected) in [
            (KEY, key, "not the certificate's"),
            (
                CERTIFICATE,
                pem(stranger.certificate()),
                "not the certificate's",
            ),
            (
                ROOT,
                pem(stranger.root_certificate()),
                "not signed by the root",
            ),
            (CERTIFICATE, pem(saved.root_certificate()), "no OU"),
        ] {
            let error = change(file, &text);
            let source = std::error::Error::source(&error).expect("has a source");
            assert!(source.to_string().contains(expected), "{source}");
        }
        saved.save(dir.path()).expect("saved");
        fs::remove_file(dir.path().join(KEY)).expect("removed the link only");
        assert!(Credentials::load(dir.path()).expect("loads").is_some());
        fs::remove_file(dir.path().join(CURRENT).join(KEY)).expect("removed");
        assert!(matches!(
            Credentials::load(dir.path()),
            Err(CredentialsError::Read { .. })
        ));
    }

    #[test]
    fn a_reader_sees_the_old_set_or_the_new_one_while_they_change() {
        let dir = tempfile::tempdir().expect("a directory");
        let sets = [Swarm::new(1), Swarm::new(2)].map(|swarm| swarm.credentials(1, Role::Worker));
        sets[0].save(dir.path()).expect("saved");
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for n in 0..200 {
                    sets[n % 2].save(dir.path()).expect("saved");
                }
            });
            while !writer.is_finished() {
                let loaded = Credentials::load(dir.path());
                assert!(loaded.expect("never a mixture").is_some());
                // As often as can be: a moment without a link would be short.
                for _ in 0..200 {
                    fs::read_link(dir.path().join(CURRENT)).expect("always there");
                }
            }
        });
    }

    #[test]
    fn a_killed_process_leaves_the_old_set_or_the_new_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut found = 0;
        for _ in 0..12 {
            let mut child = Command::new(std::env::current_exe().expect("this program"))
                .args([
                    "--exact",
                    "--ignored",
                    "identity::store::tests::saves_forever",
                ])
                .env(SAVE_IN, dir.path())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("started");
            let before = fs::read_link(dir.path().join(CURRENT)).ok();
            let started = Instant::now();
            while fs::read_link(dir.path().join(CURRENT)).ok() == before {
                assert!(
                    started.elapsed() < Duration::from_secs(20),
                    "nothing is saved"
                );
                std::thread::yield_now();
            }
            // Any point of any of the steps.
            std::thread::sleep(Duration::from_micros(rand::rng().random_range(0..8000)));
            child.kill().expect("killed");
            child.wait().expect("ended");
            let loaded = Credentials::load(dir.path()).expect("never a mixture");
            found += usize::from(loaded.is_some());
        }
        assert_eq!(found, 12);
    }

    #[test]
    #[ignore = "never ends; the crash test starts and kills it"]
    fn saves_forever() {
        let Some(dir) = std::env::var_os(SAVE_IN) else {
            return;
        };
        let sets = [Swarm::new(1), Swarm::new(2)].map(|swarm| swarm.credentials(1, Role::Worker));
        for set in sets.iter().cycle() {
            set.save(Path::new(&dir)).expect("saved");
        }
    }
}
