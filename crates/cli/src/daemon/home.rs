//! The directories of one daemon, who holds them, and what is remembered in them.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::DirBuilderExt,
            net::{SocketAddr as UnixAddr, UnixDatagram},
        },
    },
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use shoal_manager::{DataKey, KeyError};
use shoal_transport::identity::{Credentials, CredentialsError};
use shoal_types::{NodeId, RaftId, wire::ManagerPeer};

use super::address::{self, AddressError, CLUSTER_PORT};

/// Letters of an instance's name. Six of 36 make two daemons on one host differ, and leave room in
/// the 15 bytes of an interface's name.
const INSTANCE_LEN: usize = 6;

const RAFT_KEY: &str = "raft.key";

#[derive(Debug, thiserror::Error)]
pub(crate) enum HomeError {
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the data directory {path} is in use by the daemon with pid {pid}; \
         give this one another --data-root and --exec-root"
    )]
    InUse { path: PathBuf, pid: String },
    #[error(
        "the data directory {path} is a copy of one that another daemon on this machine uses (both are instance \
         {instance}), whose containers and networks this one would take for its own; start it without the file \
         {path}/instance, which gives it a name of its own"
    )]
    Copy { path: PathBuf, instance: String },
    #[error("the key of the swarm's state in {path} cannot be used")]
    Key {
        path: PathBuf,
        #[source]
        source: KeyError,
    },
    #[error("the node's certificate in {path} cannot be used")]
    Credentials {
        path: PathBuf,
        #[source]
        source: CredentialsError,
    },
    #[error("{path} is damaged ({source}); restore it, or move it away to start without a swarm")]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error(
        "{path} belongs to a node that {what}, which --null-runtime is not for; start it without, or on another --data-root"
    )]
    NoLoadGenerator { path: PathBuf, what: &'static str },
}

/// The directories of a daemon, held until it is dropped.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) data: PathBuf,
    pub(crate) exec: PathBuf,
    /// Names this daemon's objects in the kernel, and stays for the life of the data directory.
    pub(crate) instance: String,
    _lock: Flock<File>,
    _claim: UnixDatagram,
}

/// Which swarm the node belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Membership {
    pub(crate) node: NodeId,
    /// Its manager half, when it has one.
    pub(crate) raft: Option<u64>,
    /// Where the cluster port listens when the node is a manager; `None` in local mode.
    #[serde(default)]
    pub(crate) listen: Option<SocketAddr>,
    /// Address or interface that others are told; empty: chosen from the routes.
    #[serde(default)]
    pub(crate) advertise: String,
    /// The same for traffic between containers; empty: as `advertise`.
    #[serde(default)]
    pub(crate) data_path: String,
    /// Where managers were last known to be.
    #[serde(default)]
    pub(crate) managers: Vec<ManagerPeer>,
}

impl Membership {
    /// What the cluster port listens on. Where the node is known by an address of IPv6, all addresses of
    /// IPv4, which Docker's command line asks for by default, are those of IPv6 too.
    pub(crate) fn listening(&self) -> Option<SocketAddr> {
        let listen = self.listen?;
        let is_any = listen.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let is_v6 = is_any && self.advertised().is_ok_and(|addr| addr.is_ipv6());
        let any_v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, listen.port()));
        Some(if is_v6 { any_v6 } else { listen })
    }

    /// The address that other nodes see this one at.
    pub(crate) fn advertised(&self) -> Result<SocketAddr, AddressError> {
        let port = self.listen.map_or(CLUSTER_PORT, |addr| addr.port());
        let others = self.managers.iter();
        let others = others.filter(|manager| manager.node != self.node);
        let toward = others.map(|manager| manager.addr.as_str());
        address::resolve("--advertise-addr", &self.advertise, port, toward)
    }

    /// Where other nodes send the traffic of cluster networks.
    pub(crate) fn data_addr(&self) -> Result<IpAddr, AddressError> {
        if self.data_path.is_empty() {
            return Ok(self.advertised()?.ip());
        }
        Ok(address::resolve("--data-path-addr", &self.data_path, CLUSTER_PORT, [])?.ip())
    }

    pub(crate) fn raft(&self) -> Option<RaftId> {
        self.raft.map(RaftId)
    }
}

impl Home {
    /// Makes the directories, and takes them for this process.
    pub(crate) fn open(data: &Path, exec: &Path) -> Result<Self, HomeError> {
        for directory in [data, exec] {
            private_directory(directory)?;
        }
        let lock = lock(&data.join("lock"))?;
        let instance = instance(&data.join("instance"))?;
        let claim = claim(data, &instance)?;
        Ok(Self {
            data: data.to_owned(),
            exec: exec.to_owned(),
            instance,
            _lock: lock,
            _claim: claim,
        })
    }

    /// Like [`Home::open`], for a data directory that exists; `None` when there is none.
    pub(crate) fn open_existing(data: &Path, exec: &Path) -> Result<Option<Self>, HomeError> {
        if data.join("instance").exists() {
            Self::open(data, exec).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Fails unless the node is one whose tasks may run in memory only: no manager, and without containers.
    pub(crate) fn check_null_runtime(&self) -> Result<(), HomeError> {
        let refuse = |what| {
            let path = self.data.clone();
            Err(HomeError::NoLoadGenerator { path, what })
        };
        if self.membership()?.is_some_and(|m| m.raft.is_some()) {
            return refuse("is a manager");
        }
        // Where the runtime keeps what is left of a container: its log, its writable layer.
        let mut kept = fs::read_dir(self.data.join("containers/containers"));
        if kept.as_mut().is_ok_and(|kept| kept.next().is_some()) {
            return refuse("has containers");
        }
        Ok(())
    }

    pub(crate) fn cgroup_parent(&self) -> String {
        format!("shoal-{}", self.instance)
    }

    /// A directory below the data root, made if need be.
    pub(crate) fn directory(&self, name: &str) -> Result<PathBuf, HomeError> {
        let path = self.data.join(name);
        private_directory(&path)?;
        Ok(path)
    }

    fn membership_path(&self) -> PathBuf {
        self.data.join("swarm").join("membership.json")
    }

    pub(crate) fn membership(&self) -> Result<Option<Membership>, HomeError> {
        let path = self.membership_path();
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| HomeError::Damaged { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(HomeError::Io {
                action: "read",
                path,
                source,
            }),
        }
    }

    /// Remembers the membership, on the disk when this returns.
    pub(crate) fn remember(&self, membership: &Membership) -> Result<(), HomeError> {
        let path = self.membership_path();
        let directory = self.directory("swarm")?;
        let io = |action| {
            let path = path.clone();
            move |source| HomeError::Io {
                action,
                path,
                source,
            }
        };
        let bytes = serde_json::to_vec_pretty(membership).map_err(|source| HomeError::Damaged {
            path: path.clone(),
            source,
        })?;
        let temporary = path.with_extension("new");
        let mut file = File::create(&temporary).map_err(io("write"))?;
        file.write_all(&bytes).map_err(io("write"))?;
        file.sync_all().map_err(io("flush"))?;
        fs::rename(&temporary, &path).map_err(io("rename"))?;
        File::open(&directory)
            .and_then(|d| d.sync_all())
            .map_err(io("flush the directory of"))
    }

    /// The node's certificate and key; `None` when it has none.
    pub(crate) fn credentials(&self) -> Result<Option<Credentials>, HomeError> {
        let path = self.certificates();
        Credentials::load(&path).map_err(|source| HomeError::Credentials { path, source })
    }

    /// On the disk when this returns.
    pub(crate) fn save_credentials(&self, credentials: &Credentials) -> Result<(), HomeError> {
        self.directory("swarm")?;
        let path = self.certificates();
        let saved = credentials.save(&path);
        saved.map_err(|source| HomeError::Io {
            action: "write the node's certificate to",
            path,
            source,
        })
    }

    fn certificates(&self) -> PathBuf {
        self.data.join("swarm").join("certificates")
    }

    /// What the replicated state on this node is sealed under.
    pub(crate) fn raft_key(&self) -> Result<DataKey, HomeError> {
        let path = self.directory("swarm")?.join(RAFT_KEY);
        DataKey::load_or_create(&path).map_err(|source| HomeError::Key { path, source })
    }

    /// Forgets the manager half: the replicated state on this node goes, and the key to it.
    pub(crate) fn forget_raft(&self) -> Result<(), HomeError> {
        remove_tree(&self.data.join("swarm").join("raft"))?;
        let path = self.data.join("swarm").join(RAFT_KEY);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(HomeError::Io {
                action: "remove",
                path,
                source,
            }),
            _ => Ok(()),
        }
    }

    /// Forgets the swarm: its state on this node goes.
    pub(crate) fn forget_swarm(&self) -> Result<(), HomeError> {
        remove_tree(&self.data.join("swarm"))
    }
}

/// Removes a directory and all below it; one that is not there is fine.
pub(crate) fn remove_tree(path: &Path) -> Result<(), HomeError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(HomeError::Io {
            action: "remove",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// A directory that only root may enter below: it holds other users' files under their own uids.
fn private_directory(path: &Path) -> Result<(), HomeError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path)
        .map_err(|source| HomeError::Io {
            action: "make directory",
            path: path.to_owned(),
            source,
        })
}

fn lock(path: &Path) -> Result<Flock<File>, HomeError> {
    let io = |action| {
        move |source| HomeError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    };
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(io("open"))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut file) => {
            file.set_len(0).map_err(io("write"))?;
            file.rewind().map_err(io("write"))?;
            write!(file, "{}", std::process::id()).map_err(io("write"))?;
            Ok(file)
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            // Only for the message: whoever holds the lock wrote its pid here.
            let _ = file.read_to_string(&mut pid);
            let path = path.parent().unwrap_or(path).to_owned();
            Err(HomeError::InUse { path, pid })
        }
        Err((_, errno)) => Err(io("lock")(errno.into())),
    }
}

/// Takes the instance's name for this process: an abstract address (unix(7)), which the kernel frees when the
/// process ends, however it does.
fn claim(data: &Path, instance: &str) -> Result<UnixDatagram, HomeError> {
    let addr = UnixAddr::from_abstract_name(format!("shoal-{instance}"));
    let claimed = addr.and_then(|addr| UnixDatagram::bind_addr(&addr));
    claimed.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => HomeError::Copy {
            path: data.to_owned(),
            instance: instance.to_owned(),
        },
        _ => HomeError::Io {
            action: "take the instance's name for",
            path: data.to_owned(),
            source,
        },
    })
}

fn instance(path: &Path) -> Result<String, HomeError> {
    let io = |action| {
        move |source| HomeError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    };
    match fs::read_to_string(path) {
        Ok(name) if name.trim().len() == INSTANCE_LEN => return Ok(name.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(io("read")(source)),
    }
    let name: String = (0..INSTANCE_LEN)
        .map(|_| char::from_digit(rand::random_range(0..36), 36).expect("a digit of base 36"))
        .collect();
    fs::write(path, &name).map_err(io("write"))?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_and_told_who_holds_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (data, exec) = (dir.path().join("d"), dir.path().join("e"));
        let home = Home::open(&data, &exec).unwrap();
        let error = Home::open(&data, &exec).expect_err("in use");
        assert!(
            error.to_string().contains(&std::process::id().to_string()),
            "{error}"
        );
        let instance = home.instance.clone();
        let (copy, other) = (dir.path().join("copy"), dir.path().join("other"));
        fs::create_dir(&copy).unwrap();
        fs::copy(data.join("instance"), copy.join("instance")).unwrap();
        let error = Home::open(&copy, &other).expect_err("a copy");
        assert!(error.to_string().contains(&instance), "{error}");
        fs::remove_file(copy.join("instance")).unwrap();
        assert_ne!(Home::open(&copy, &other).unwrap().instance, instance);
        drop(home);
        assert_eq!(Home::open(&data, &exec).unwrap().instance, instance);
    }

    #[test]
    fn a_node_with_containers_or_a_manager_is_no_load_generator() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&dir.path().join("d"), &dir.path().join("e")).unwrap();
        home.check_null_runtime().unwrap();
        let manager = Membership {
            node: NodeId::from_random([1; 17]),
            raft: Some(7),
            listen: None,
            advertise: String::new(),
            data_path: String::new(),
            managers: Vec::new(),
        };
        home.remember(&manager).unwrap();
        let said = home.check_null_runtime().unwrap_err().to_string();
        assert!(said.contains("is a manager"), "{said}");
        let worker = Membership {
            raft: None,
            ..manager
        };
        home.remember(&worker).unwrap();
        home.check_null_runtime().unwrap();
        fs::create_dir_all(home.data.join("containers/containers/a")).unwrap();
        let said = home.check_null_runtime().unwrap_err().to_string();
        assert!(said.contains("has containers"), "{said}");
    }

    #[test]
    fn membership_is_remembered_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&dir.path().join("d"), &dir.path().join("e")).unwrap();
        assert_eq!(home.membership().unwrap(), None);
        let membership = Membership {
            node: NodeId::from_random([1; 17]),
            raft: Some(7),
            listen: None,
            advertise: "eth0".to_owned(),
            data_path: String::new(),
            managers: Vec::new(),
        };
        home.remember(&membership).unwrap();
        assert_eq!(home.membership().unwrap(), Some(membership));
        fs::write(home.membership_path(), "{").unwrap();
        assert!(matches!(home.membership(), Err(HomeError::Damaged { .. })));
        home.forget_swarm().unwrap();
        home.forget_swarm().unwrap();
        assert_eq!(home.membership().unwrap(), None);
    }
}
