//! Logs as `shoal` and docker print them: followed, cut at either end, dated, and rotated.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use cluster_tests::{Host, busybox_tar, wait_for};

/// A host whose service `talk` has written `line 1` to `line 6`, and writes one more for each file that
/// [`Talk::say`] makes.
struct Talk {
    host: Host,
    container: String,
    pid: u32,
}

impl Talk {
    fn start() -> Self {
        let host = Host::local();
        let tar = busybox_tar(host.dir()).unwrap();
        host.shoal(&["import", tar.to_str().unwrap(), "busybox"]);
        // Lines that are read together have one time: a pause after each, long enough for a busy machine.
        let script = "trap 'exit 0' TERM; for i in 1 2 3 4 5 6; do echo line $i; sleep 0.3; done; \
                      while :; do for said in /tmp/say-*; do [ -e $said ] && cat $said && rm $said; done; \
                      sleep 0.02; done";
        let head = ["service", "create", "--detach", "--name", "talk", "busybox"];
        host.shoal(&[&head[..], &["sh", "-c", script]].concat());
        let pid = host.wait_running("talk", 1)[0];
        let container = host
            .shoal(&["ps", "--quiet", "--no-trunc"])
            .trim()
            .to_owned();
        let talk = Self {
            host,
            container,
            pid,
        };
        wait_for(
            "six lines",
            || talk.log("shoal", &["service", "logs", "--raw", "talk"]),
            |log| log.contains("line 6\n"),
        );
        talk
    }

    fn say(&self, line: &str) {
        let path = |name: &str| format!("/proc/{}/root/tmp/{name}", self.pid);
        std::fs::write(path("new"), format!("{line}\n")).unwrap();
        std::fs::rename(path("new"), path(&format!("say-{line}"))).unwrap();
    }

    #[track_caller]
    fn log(&self, program: &str, args: &[&str]) -> String {
        match program {
            "shoal" => self.host.shoal(args),
            _ => self.host.docker(args),
        }
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let path = if program == "shoal" {
            let mut path = std::env::current_exe().unwrap();
            path.pop();
            path.pop();
            path.join("shoal").to_string_lossy().into_owned()
        } else {
            program.to_owned()
        };
        let mut command = self.host.in_network(path);
        command.args(["--host", &self.host.socket()]).args(args);
        command
    }
}

#[test]
fn lines_are_cut_by_time_and_number_and_followed_by_both_clients() {
    let talk = Talk::start();
    let id = talk.container.as_str();
    let dated = talk.log("docker", &["logs", "--timestamps", id]);
    let times: Vec<&str> = dated
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(times.len(), 6, "{dated}");
    let all: Vec<String> = (1..=6).map(|i| format!("line {i}\n")).collect();
    for program in ["shoal", "docker"] {
        let container = |flags: &[&str]| talk.log(program, &[&["logs"], flags, &[id]].concat());
        let service = |flags: &[&str]| {
            talk.log(
                program,
                &[&["service", "logs", "--raw"], flags, &["talk"]].concat(),
            )
        };
        assert_eq!(container(&[]), all.concat());
        assert_eq!(container(&["--tail", "2"]), all[4..].concat());
        assert_eq!(container(&["--tail", "0"]), "");
        assert_eq!(container(&["--since", times[3]]), all[3..].concat());
        assert_eq!(container(&["--until", times[2]]), all[..3].concat());
        assert_eq!(
            container(&["--since", times[1], "--until", times[3]]),
            all[1..4].concat()
        );
        assert_eq!(container(&["--since", times[1], "--tail", "1"]), all[5]);
        assert_eq!(container(&["--since", "1h"]), all.concat());
        assert_eq!(container(&["--until", "1h"]), "");
        assert_eq!(service(&["--since", times[4]]), all[4..].concat());
        assert_eq!(service(&["--tail", "3"]), all[3..].concat());
        assert_eq!(container(&["--timestamps"]), dated);
    }

    for (program, args) in [
        (
            "shoal",
            [
                "service", "logs", "--raw", "--follow", "--tail", "1", "talk",
            ]
            .as_slice(),
        ),
        (
            "docker",
            &[
                "service", "logs", "--raw", "--follow", "--tail", "1", "talk",
            ],
        ),
        ("shoal", &["logs", "--follow", "--tail", "1", id]),
        ("docker", &["logs", "--follow", "--tail", "1", id]),
    ] {
        let mut command = talk.command(program, args);
        let mut follower = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
        lines.next().unwrap().unwrap();
        let said = format!("{program}-{}", args.len());
        talk.say(&said);
        // A test that hangs here is ended by its runner.
        assert_eq!(lines.next().unwrap().unwrap(), said);
        follower.kill().unwrap();
        follower.wait().unwrap();
    }
    // Whoever follows a container is done when it ends.
    let mut follower = talk.command("docker", &["logs", "--follow", "--tail", "1", id]);
    let follower = follower
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    talk.host.shoal(&["service", "scale", "--detach", "talk=0"]);
    let ended = follower.wait_with_output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
}

#[test]
fn long_logs_are_rotated_as_the_daemon_is_told_and_read_as_one() {
    let flags = ["--log-opt=max-size=8k", "--log-opt=max-file=3"];
    let host = Host::new().unwrap().with_args(&flags).into_local();
    let tar = busybox_tar(host.dir()).unwrap();
    host.shoal(&["import", tar.to_str().unwrap(), "busybox"]);
    // A pause after every hundred lines: what comes at once goes to one file.
    let script = "trap 'exit 0' TERM; i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; \
                  [ $((i % 100)) != 0 ] || sleep 0.05; done; while :; do sleep 0.1; done";
    let head = ["service", "create", "--detach", "--name", "talk", "busybox"];
    host.shoal(&[&head[..], &["sh", "-c", script]].concat());
    host.wait_running("talk", 1);
    let read = |program: &str| {
        let words = ["service", "logs", "--raw", "talk"];
        if program == "shoal" {
            host.shoal(&words)
        } else {
            host.docker(&words)
        }
    };
    let log = wait_for(
        "the last line",
        || read("shoal"),
        |log| log.contains("line 2000\n"),
    );
    assert_eq!(read("docker"), log);
    let kept: Vec<u32> = log
        .lines()
        .map(|line| line.strip_prefix("line ").unwrap().parse().unwrap())
        .collect();
    assert!(kept.windows(2).all(|pair| pair[1] == pair[0] + 1), "{log}");
    // Three files of about 8 KiB, of lines of some 75 bytes in Docker's JSON.
    assert!(
        kept.len() > 100 && kept.len() < 1000,
        "{} lines are kept",
        kept.len()
    );
}

/// What `service logs` shows of a service that wrote `line 1` to `line 2000`: how many of its newest lines.
fn kept_lines(host: &Host, service: &str) -> usize {
    let log = wait_for(
        "the last line",
        || host.docker(&["service", "logs", "--raw", service]),
        |log| log.contains("line 2000\n"),
    );
    let kept: Vec<u32> = log
        .lines()
        .map(|line| line.strip_prefix("line ").unwrap().parse().unwrap())
        .collect();
    assert!(kept.windows(2).all(|pair| pair[1] == pair[0] + 1), "{log}");
    kept.len()
}

#[test]
fn a_services_log_driver_and_options_are_for_its_containers() {
    let host = Host::local();
    let tar = busybox_tar(host.dir()).unwrap();
    host.shoal(&["import", tar.to_str().unwrap(), "busybox"]);
    let script = "trap 'exit 0' TERM; i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; \
                  [ $((i % 100)) != 0 ] || sleep 0.05; done; while :; do sleep 0.1; done";
    let create = |program: &str, name: &str, flags: &str| {
        let words = format!("service create --detach --name {name} {flags} busybox sh -c");
        let mut words: Vec<&str> = words.split_whitespace().collect();
        words.push(script);
        match program {
            "shoal" => host.try_shoal(&words),
            _ => host.try_docker(&words),
        }
    };
    let json = |name: &str| {
        let template = "{{json .Spec.TaskTemplate.LogDriver}}";
        host.docker(&["service", "inspect", "--format", template, name])
    };

    let small = "--log-driver json-file --log-opt max-size=8k --log-opt max-file=3";
    for program in ["shoal", "docker"] {
        create(program, program, small).success(program);
    }
    create("docker", "all", "--log-driver json-file").success("create");
    create("docker", "none", "--log-driver none").success("create");
    // Three files of about 8 kB, of lines of some 75 bytes in Docker's JSON.
    for name in ["shoal", "docker"] {
        let kept = kept_lines(&host, name);
        assert!(kept > 100 && kept < 1000, "{kept} lines are kept");
        let options = r#"{"Name":"json-file","Options":{"max-file":"3","max-size":"8k"}}"#;
        assert_eq!(json(name), format!("{options}\n"));
        let pretty = |text: String| {
            let from = text.find("Log Driver:").unwrap();
            text[from..].lines().take(5).collect::<Vec<_>>().join("\n")
        };
        let inspect = ["service", "inspect", "--pretty", name];
        let shown = pretty(host.docker(&inspect));
        assert!(shown.contains("max-size:       8k"), "{shown}");
        assert_eq!(pretty(host.shoal(&inspect)), shown);
    }
    assert_eq!(kept_lines(&host, "all"), 2000);

    // Every line has a time of its own, also of those that were written at once.
    let dated = host.docker(&["service", "logs", "--raw", "--timestamps", "all"]);
    let times: Vec<&str> = dated
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{dated}");
    let from = ["service", "logs", "--raw", "--since", times[1000], "all"];
    assert_eq!(host.docker(&from).lines().count(), 1000);
    assert_eq!(host.shoal(&from), host.docker(&from));

    host.wait_running("none", 1);
    let container = host.shoal(&["ps", "--quiet", "--filter", "name=none"]);
    for args in [
        &["service", "logs", "none"][..],
        &["logs", container.trim()],
    ] {
        for output in [host.try_shoal(args), host.try_docker(args)] {
            assert!(!output.status.success(), "{args:?}: {output:?}");
            let words = "configured logging driver does not support reading";
            assert!(output.stderr.contains(words), "{args:?}: {output:?}");
        }
    }
    let template = "{{.HostConfig.LogConfig.Type}}";
    let of_container = ["inspect", "--format", template, container.trim()];
    assert_eq!(host.docker(&of_container), "none\n");

    for (flags, words) in [
        (
            "--log-driver fluentd",
            "no log driver named 'fluentd' is registered",
        ),
        (
            "--log-driver local --log-opt colour=blue",
            "unknown log opt 'colour' for local log driver",
        ),
        (
            "--log-driver json-file --log-opt max-size=much",
            "max-size must be a positive number",
        ),
    ] {
        let refused = create("docker", "refused", flags);
        assert!(!refused.status.success(), "{flags}");
        assert!(refused.stderr.contains(words), "{refused:?}");
    }

    // Another driver is another task; what the one before wrote can still be read.
    let update = [
        "service",
        "update",
        "--detach",
        "--log-driver",
        "none",
        "all",
    ];
    host.docker(&update);
    assert_eq!(json("all"), "{\"Name\":\"none\"}\n");
    wait_for(
        "another task",
        || host.tasks("all").len(),
        |tasks| *tasks == 2,
    );
    host.wait_running("all", 1);
    assert_eq!(kept_lines(&host, "all"), 2000);
}
