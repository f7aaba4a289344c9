//! Images made on the spot: no test reaches a registry on the network.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// A root filesystem with Debian's static busybox and its applets, as a tar file in `directory`.
pub fn busybox_tar(directory: &Path) -> Result<PathBuf> {
    let root = directory.join("rootfs");
    for sub in ["bin", "etc", "tmp", "root", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(sub))?;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|p| Path::new(p).exists());
    let busybox = busybox.context("busybox is missing: apt-get install busybox-static")?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    let applets = Command::new(busybox).arg("--list").output()?;
    for applet in String::from_utf8(applets.stdout)?
        .lines()
        .filter(|a| *a != "busybox")
    {
        let link = root.join("bin").join(applet);
        if !link.exists() {
            std::os::unix::fs::symlink("busybox", link)?;
        }
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33:www:/tmp:/bin/sh\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\nwww:x:33:\n")?;
    let tar = directory.join("busybox.tar");
    run(Command::new("tar")
        .arg("-C")
        .arg(&root)
        .arg("-cf")
        .arg(&tar)
        .arg("."))?;
    Ok(tar)
}

/// A root filesystem of nothing but `source`, a C program, as `/program`; as a tar file in `directory`.
pub fn program_tar(directory: &Path, source: &Path) -> Result<PathBuf> {
    let root = directory.join("program-rootfs");
    fs::create_dir_all(root.join("tmp"))?;
    run(Command::new("cc")
        .args(["-static", "-O1", "-Wall", "-o"])
        .arg(root.join("program"))
        .arg(source))?;
    let tar = directory.join("program.tar");
    run(Command::new("tar")
        .arg("-C")
        .arg(&root)
        .arg("-cf")
        .arg(&tar)
        .arg("."))?;
    Ok(tar)
}

/// The same as `docker save` would write it: one layer, named `name`.
pub fn docker_archive(directory: &Path, name: &str) -> Result<PathBuf> {
    let layer = busybox_tar(directory)?;
    let digest = Command::new("sha256sum").arg(&layer).output()?;
    let digest = String::from_utf8(digest.stdout)?;
    let digest = digest
        .split_whitespace()
        .next()
        .context("sha256sum prints a digest")?;
    let save = directory.join("save");
    fs::create_dir_all(&save)?;
    fs::copy(&layer, save.join("layer.tar"))?;
    let config = serde_json::json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Cmd": ["/bin/sh"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    fs::write(save.join("config.json"), config.to_string())?;
    let manifest = serde_json::json!([
        { "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }
    ]);
    fs::write(save.join("manifest.json"), manifest.to_string())?;
    let tar = directory.join("save.tar");
    run(Command::new("tar")
        .arg("-C")
        .arg(&save)
        .arg("-cf")
        .arg(&tar)
        .arg("."))?;
    Ok(tar)
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("start {command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}
