//! Images made to do harm: nothing outside of them changes, and whoever brings them is told what is wrong.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{fs, path::Path, process::Command};

use cluster_tests::{Host, busybox_tar, wait_for};

/// An archive of entries of these names, in this order. `NAME -> TARGET` is a symbolic link, `NAME = TARGET`
/// a hard one, and anything else a file.
fn archive(host: &Host, entries: &[String]) -> String {
    let script = "import sys, tarfile, io\n\
        with tarfile.open(sys.argv[1], 'w') as tar:\n\
        \x20   for entry in sys.argv[2:]:\n\
        \x20       words = entry.split(' ')\n\
        \x20       info = tarfile.TarInfo(words[0])\n\
        \x20       if len(words) == 3:\n\
        \x20           info.type = tarfile.SYMTYPE if words[1] == '->' else tarfile.LNKTYPE\n\
        \x20           info.linkname = words[2]\n\
        \x20           tar.addfile(info)\n\
        \x20       else:\n\
        \x20           info.size = 4\n\
        \x20           tar.addfile(info, io.BytesIO(b'evil'))\n";
    let path = host.path("evil.tar");
    let made = Command::new("/usr/bin/python3")
        .args(["-c", script, &path])
        .args(entries)
        .status()
        .unwrap();
    assert!(made.success());
    path
}

#[test]
fn layers_that_reach_outside_are_refused_by_entry_and_leave_nothing() {
    let host = Host::local();
    let outside = host.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "mine").unwrap();
    let images = || files(&Path::new(&host.data_root()).join("image"));
    let before = images();
    let out = outside.display().to_string();
    let up = "../".repeat(20) + out.trim_start_matches('/');
    for (entries, words) in [
        (vec![format!("{up}/new")], "points outside the layer"),
        (
            vec![format!("a/../../{up}/new")],
            "points outside the layer",
        ),
        (
            vec![format!("l -> {out}"), "l/new".into()],
            "cannot be used",
        ),
        (
            vec![format!("l -> {up}"), "l/precious".into()],
            "cannot be used",
        ),
        (
            vec!["a -> b".into(), "b -> a".into(), "a/new".into()],
            "cannot be used",
        ),
        (
            vec![format!("stolen = {out}/precious")],
            "not in this layer",
        ),
        (
            vec![format!("stolen = {up}/precious")],
            "points outside the layer",
        ),
    ] {
        let path = archive(&host, &entries);
        for client in [Host::try_shoal, Host::try_docker] {
            let refused =
                client(&host, &["import", &path, "evil:1"]).refusal("import what reaches out");
            assert!(refused.contains(words), "{entries:?}: {refused}");
        }
    }
    assert_eq!(
        fs::read_to_string(outside.join("precious")).unwrap(),
        "mine"
    );
    assert_eq!(files(&outside).len(), 1, "nothing new");
    assert!(!host.shoal(&["images"]).contains("evil"));
    wait_for("nothing to be left", images, |now| *now == before);
}

/// Every path below `directory`.
fn files(directory: &Path) -> Vec<String> {
    let found = Command::new("find")
        .arg(directory)
        .args(["-type", "f"])
        .output()
        .unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    let mut files: Vec<String> = found.lines().map(str::to_owned).collect();
    files.sort();
    files
}

#[test]
fn devices_of_an_image_open_nothing() {
    let host = Host::local();
    busybox_tar(host.dir()).unwrap();
    let root = host.dir().join("rootfs");
    // The first disk there is, and the kernel's memory.
    let disks = fs::read_to_string("/proc/partitions").unwrap();
    let disk: Vec<&str> = disks
        .lines()
        .nth(2)
        .unwrap_or("8 0")
        .split_whitespace()
        .collect();
    for (name, kind, major, minor) in [("disk", "b", disk[0], disk[1]), ("mem", "c", "1", "1")] {
        let node = root.join(name);
        let made = Command::new("mknod")
            .arg(node)
            .args(["-m", "666", kind, major, minor])
            .status();
        assert!(made.unwrap().success());
    }
    let tar = host.path("devices.tar");
    let packed = Command::new("tar")
        .arg("-C")
        .arg(&root)
        .args(["-cf", &tar, "."])
        .status();
    assert!(packed.unwrap().success());
    host.shoal(&["import", &tar, "devices"]);
    let script = "ls -l /disk /mem; head -c 1 /disk && echo read; head -c 1 /mem && echo read; echo END; \
                  sleep 1000";
    let head = [
        "service", "create", "--detach", "--name", "thief", "devices",
    ];
    host.shoal(&[&head[..], &["sh", "-c", script]].concat());
    let log = wait_for(
        "the thief to have tried",
        || host.shoal(&["service", "logs", "--raw", "thief"]),
        |log| log.contains("END"),
    );
    let log = log
        + &host
            .try_shoal(&["service", "logs", "--raw", "thief"])
            .stderr;
    assert_eq!(log.matches("peration not permitted").count(), 2, "{log}");
    assert!(!log.contains("read\n"), "{log}");
}
