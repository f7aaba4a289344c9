//! Where everything of a node and of one container lies.

use std::path::{Path, PathBuf};

/// The two roots of a daemon.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    pub(crate) exec_root: PathBuf,
    pub(crate) state_root: PathBuf,
}

impl Paths {
    pub(crate) fn socket(&self) -> PathBuf {
        self.exec_root.join("supervisor.sock")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.exec_root.join("supervisor.lock")
    }

    pub(crate) fn supervisor_log(&self) -> PathBuf {
        self.state_root.join("supervisor.log")
    }

    /// The batch of output being written, and the bytes of it; see `supervisor::journal`.
    pub(crate) fn journal(&self) -> PathBuf {
        self.exec_root.join("journal")
    }

    pub(crate) fn spool(&self) -> PathBuf {
        self.exec_root.join("spool")
    }

    pub(crate) fn bundles(&self) -> PathBuf {
        self.exec_root.join("containers")
    }

    /// Sandboxes that wait for a container; see `supervisor::pool`.
    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.exec_root.join("warm")
    }

    /// A sandbox, as the container it may become: it has a bundle and no state yet.
    pub(crate) fn sandbox(&self, name: &str) -> ContainerPaths {
        ContainerPaths {
            bundle: self.sandboxes().join(name),
            state: self.states().join(name),
            id: name.to_owned(),
        }
    }

    pub(crate) fn states(&self) -> PathBuf {
        self.state_root.join("containers")
    }

    /// Directories on their way out; what is left here after a crash is removed at the next start.
    pub(crate) fn trash(&self) -> PathBuf {
        self.state_root.join("removing")
    }

    pub(crate) fn container(&self, id: &str) -> ContainerPaths {
        ContainerPaths {
            bundle: self.bundles().join(id),
            state: self.states().join(id),
            id: id.to_owned(),
        }
    }
}

/// The directories of one container: the bundle lives as long as the container, the state as long as its data.
#[derive(Clone, Debug)]
pub(crate) struct ContainerPaths {
    pub(crate) bundle: PathBuf,
    pub(crate) state: PathBuf,
    id: String,
}

impl ContainerPaths {
    pub(crate) fn record(&self) -> PathBuf {
        self.bundle.join("record.json")
    }

    /// What later processes of the container have of its first one; see `plan::Confinement`.
    pub(crate) fn confinement(&self) -> PathBuf {
        self.bundle.join("confinement.json")
    }

    /// Here stands the name of the container's cgroups when it is not the id; see [`Self::group`].
    pub(crate) fn group_name(&self) -> PathBuf {
        self.bundle.join("group")
    }

    /// How the container's cgroups are called. Those of a sandbox cannot be renamed when a container moves in.
    pub(crate) fn group(&self) -> String {
        std::fs::read_to_string(self.group_name()).unwrap_or_else(|_| self.id.clone())
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.bundle.join("rootfs")
    }

    /// The FIFO a container's stream goes through.
    pub(crate) fn fifo(&self, stream: crate::Stream) -> PathBuf {
        self.bundle.join(stream.name())
    }

    /// One byte here releases a created container.
    pub(crate) fn start_fifo(&self) -> PathBuf {
        self.bundle.join("start")
    }

    /// Through this one the container's process says that it is ready, or why it is not.
    pub(crate) fn report_fifo(&self) -> PathBuf {
        self.bundle.join("report")
    }

    /// Where the container's own files are mounted while it is being made, in its mount namespace alone.
    pub(crate) fn files(&self) -> PathBuf {
        self.bundle.join("files")
    }

    /// The line of a stream that has no end yet.
    pub(crate) fn partial_line(&self, stream: crate::Stream) -> PathBuf {
        self.bundle.join(format!("{}.partial", stream.name()))
    }

    /// The container's own files of `/etc`. It may append to them, so they are where its layer is, and fill no tmpfs of the
    /// host's.
    pub(crate) fn etc(&self) -> PathBuf {
        self.state.join("etc")
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.state.join("upper")
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.state.join("work")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.state.join(format!("{}-json.log", self.id))
    }
}

/// The `n`-th older file of a log; 0 is the log itself.
pub(crate) fn rotated(log: &Path, n: u32) -> PathBuf {
    if n == 0 {
        return log.to_path_buf();
    }
    let mut name = log.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}
