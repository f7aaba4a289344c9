//! The same files for all sides: as three layers for ours, as one plain directory for the OCI runtimes.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Plan;

/// What the program in the container is.
pub(super) const PROGRAM: &str = "/stamp";

pub(super) const HOSTNAME: &[u8] = b"bench\n";
pub(super) const HOSTS: &[u8] = b"127.0.0.1\tlocalhost\n";
pub(super) const RESOLV_CONF: &[u8] = b"nameserver 127.0.0.11\n";

/// Layers and bundles on disk.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) layers_dir: PathBuf,
    /// Names in `layers_dir`, the top one first.
    pub(super) layers: Vec<String>,
    /// One bundle for each container that may run at once: they differ in their cgroup.
    pub(super) bundles: Vec<PathBuf>,
}

impl Files {
    pub(super) fn make(plan: &Plan) -> Result<Self> {
        let layers_dir = plan.dir.join("layers");
        let layers = ["program", "etc", "base"].map(str::to_owned);
        base(&layers_dir.join("base"), &plan.busybox)?;
        etc(&layers_dir.join("etc"))?;
        program(&layers_dir.join("program"), &plan.stamp)?;

        let rootfs = plan.dir.join("rootfs");
        base(&rootfs, &plan.busybox)?;
        etc(&rootfs)?;
        program(&rootfs, &plan.stamp)?;
        let own = plan.dir.join("own");
        fs::create_dir(&own)?;
        for (name, content) in [
            ("hostname", HOSTNAME),
            ("hosts", HOSTS),
            ("resolv.conf", RESOLV_CONF),
        ] {
            fs::write(own.join(name), content)?;
        }

        let most = plan.parallel.iter().copied().max().unwrap_or(1);
        let bundles = (0..most).map(|slot| {
            let bundle = plan.dir.join(format!("bundle-{slot}"));
            let cgroup = format!("/{}/oci-{slot}", plan.cgroup);
            let config = config(&plan.config, &rootfs, &own, &cgroup)?;
            fs::create_dir(&bundle)?;
            fs::write(bundle.join("config.json"), serde_json::to_vec(&config)?)?;
            Ok(bundle)
        });
        Ok(Self {
            bundles: bundles.collect::<Result<_>>()?,
            layers_dir,
            layers: layers.into(),
        })
    }
}

fn base(root: &Path, busybox: &Path) -> Result<()> {
    for directory in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy(busybox, root.join("bin/busybox"))
        .with_context(|| format!("copy {}", busybox.display()))?;
    symlink("busybox", root.join("bin/sh")).context("link sh")
}

fn etc(root: &Path) -> Result<()> {
    fs::create_dir_all(root.join("etc"))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    for name in ["hostname", "hosts", "resolv.conf"] {
        fs::write(root.join("etc").join(name), "")?;
    }
    Ok(())
}

fn program(root: &Path, stamp: &Path) -> Result<()> {
    fs::create_dir_all(root)?;
    let target = root.join(PROGRAM.trim_start_matches('/'));
    fs::copy(stamp, target).with_context(|| format!("copy {}", stamp.display()))?;
    Ok(())
}

/// dockerd's own config with another program and plain files, without what only works beside dockerd.
fn config(dockerd: &Value, rootfs: &Path, own: &Path, cgroup: &str) -> Result<Value> {
    let mut config = dockerd.clone();
    config["process"]["args"] = json!([PROGRAM]);
    config["process"]["terminal"] = json!(false);
    config["root"] = json!({ "path": rootfs, "readonly": false });
    config["linux"]["cgroupsPath"] = json!(cgroup);
    if let Some(fields) = config.as_object_mut() {
        // They tell dockerd of the network namespace.
        fields.remove("hooks");
    }
    if let Some(process) = config["process"].as_object_mut() {
        // The machine's policy, if it has one, is not loaded for this program.
        process.remove("apparmorProfile");
    }
    let namespaces = config["linux"]["namespaces"].as_array_mut();
    for namespace in namespaces.context("dockerd's config has namespaces")? {
        if let Some(namespace) = namespace.as_object_mut() {
            namespace.remove("path");
        }
    }
    let mounts = config["mounts"].as_array_mut();
    for mount in mounts.context("dockerd's config has mounts")? {
        match mount["destination"].as_str().unwrap_or_default() {
            "/dev/shm" => {
                mount["type"] = json!("tmpfs");
                mount["source"] = json!("shm");
                mount["options"] =
                    json!(["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]);
            }
            file @ ("/etc/hostname" | "/etc/hosts" | "/etc/resolv.conf") => {
                mount["source"] = json!(own.join(file.trim_start_matches("/etc/")));
            }
            _ => {}
        }
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_keeps_the_security_and_loses_the_ties_to_dockerd() {
        let dockerd = json!({
            "process": { "args": ["sleep"], "apparmorProfile": "docker-default", "rlimits": [1] },
            "hooks": { "prestart": [{ "path": "/usr/bin/dockerd" }] },
            "mounts": [
                { "destination": "/etc/hosts", "type": "bind", "source": "/data/x/hosts", "options": ["rbind"] },
                { "destination": "/dev/shm", "type": "bind", "source": "/data/x/shm", "options": ["rbind"] },
                { "destination": "/proc", "type": "proc", "source": "proc" },
            ],
            "linux": {
                "seccomp": { "defaultAction": "SCMP_ACT_ERRNO" },
                "namespaces": [{ "type": "network", "path": "/run/x" }, { "type": "pid" }],
            },
        });
        let config =
            config(&dockerd, Path::new("/r"), Path::new("/own"), "/c/0").expect("a config");
        assert_eq!(
            config,
            json!({
                "process": { "args": ["/stamp"], "terminal": false, "rlimits": [1] },
                "root": { "path": "/r", "readonly": false },
                "mounts": [
                    { "destination": "/etc/hosts", "type": "bind", "source": "/own/hosts", "options": ["rbind"] },
                    {
                        "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                        "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"],
                    },
                    { "destination": "/proc", "type": "proc", "source": "proc" },
                ],
                "linux": {
                    "seccomp": { "defaultAction": "SCMP_ACT_ERRNO" },
                    "namespaces": [{ "type": "network" }, { "type": "pid" }],
                    "cgroupsPath": "/c/0",
                },
            })
        );
    }
}
