//! What outlives whom: containers the supervisor and the daemon, output and exit statuses both.

mod support;

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;

use futures_util::StreamExt;
use shoal_runtime::{LogOptions, Phase, Runtime, Signal};
use support::{Node, alive, kill, wait_for, within};

#[tokio::test]
async fn a_supervisor_keeps_nothing_that_its_daemon_had_open() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    // As a shell or a test runner may hand it down: without close-on-exec.
    let inherited = rustix::io::dup(&writer).expect("a descriptor");
    let node = Node::start().await;
    drop((writer, inherited));
    node.run(node.shell("sleep 1000")).await;
    let pipe = std::fs::read_link(format!("/proc/self/fd/{}", reader.as_raw_fd()));
    let pipe = pipe.expect("a descriptor has a name");
    let supervisor = node.runtime.supervisor_pid().await.expect("it runs");
    let open = std::fs::read_dir(format!("/proc/{supervisor}/fd")).expect("its descriptors");
    let open: Vec<_> = open
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .collect();
    assert!(!open.is_empty() && !open.contains(&pipe), "{open:?}");
}

#[tokio::test]
async fn a_killed_supervisor_is_replaced_and_adopts_its_containers() {
    let node = Node::start().await;
    let running = node
        .run(node.shell("trap 'exit 33' TERM; echo ready; while :; do usleep 1000; done"))
        .await;
    node.wait_for_output(&running, "ready").await;
    let created = node.request(&["sh", "-c", "exit 5"]);
    let created_id = created.id.clone();
    node.runtime.create(created).await.expect("is created");
    let ended = node.run(node.shell("exit 3")).await;
    within(node.runtime.wait(&ended)).await.expect("ends");
    let waiting = tokio::spawn({
        let (runtime, id) = (node.runtime.clone(), running.clone());
        async move { runtime.wait(&id).await }
    });

    let old = node.kill_supervisor().await;
    let new = node.new_supervisor_than(old).await;
    assert_ne!(old, new);

    let runtime = &node.runtime;
    let phase = |id: String| async move {
        runtime
            .state(&id)
            .await
            .expect("an answer")
            .expect("adopted")
            .phase
    };
    assert!(matches!(phase(running.clone()).await, Phase::Running(_)));
    assert!(matches!(
        phase(created_id.clone()).await,
        Phase::Created { .. }
    ));
    assert!(matches!(phase(ended.clone()).await, Phase::Exited(status) if status.code == 3));

    node.runtime
        .start(&created_id)
        .await
        .expect("an adopted container starts");
    assert_eq!(
        within(node.runtime.wait(&created_id))
            .await
            .expect("ends")
            .code,
        5
    );
    node.runtime
        .signal(&running, Signal::TERM)
        .await
        .expect("is sent");
    let status = within(waiting).await.expect("no panic").expect("ends");
    assert_eq!((status.code, status.reason), (33, None));
    node.finish().await;
}

#[tokio::test]
async fn a_stopped_supervisor_costs_neither_status_nor_output() {
    let node = Node::start().await;
    let id = node
        .run(node.shell(
            "echo ready; while ! test -e /tmp/go; do usleep 1000; done; echo last words; exit 21",
        ))
        .await;
    node.wait_for_output(&id, "ready").await;
    let Phase::Running(started) = node
        .runtime
        .state(&id)
        .await
        .expect("an answer")
        .expect("it exists")
        .phase
    else {
        panic!("it runs");
    };
    let supervisor = node.runtime.supervisor_pid().await.expect("a supervisor");
    let stop =
        rustix::process::Pid::from_raw(i32::try_from(supervisor).expect("a pid")).expect("a pid");
    // Stopped first, so that it surely does not see the end; then killed.
    rustix::process::kill_process(stop, rustix::process::Signal::STOP).expect("is stopped");
    std::fs::write(format!("/proc/{}/root/tmp/go", started.pid), "").expect("the gate opens");
    wait_for("the container's end", || !alive(started.pid)).await;
    kill(supervisor);
    let status = within(node.runtime.wait(&id)).await.expect("a status");
    assert_eq!((status.code, status.reason), (21, None));
    assert_eq!(node.text(&id).await, "ready\nlast words\n");
    node.finish().await;
}

#[tokio::test]
async fn no_line_is_lost_or_doubled_when_supervisors_are_killed_under_load() {
    const LINES: usize = 30_000;
    let node = Node::start().await;
    let id = node.run(node.shell(&format!("seq 1 {LINES}"))).await;
    let follower = {
        let options = LogOptions {
            follow: true,
            stdout: true,
            ..LogOptions::default()
        };
        let stream = node.runtime.logs(&id, options);
        tokio::spawn(
            stream
                .map(|line| line.expect("a line").bytes)
                .collect::<Vec<_>>(),
        )
    };
    let mut killed = 0;
    while killed < 8 {
        let before = node.runtime.supervisor_pid().await;
        let state = node
            .runtime
            .state(&id)
            .await
            .expect("an answer")
            .expect("it exists");
        if matches!(state.phase, Phase::Exited(_)) {
            break;
        }
        if let Some(pid) = before {
            kill(pid);
            killed += 1;
            node.new_supervisor_than(pid).await;
        }
    }
    assert!(killed > 0, "the container was too fast");
    within(node.runtime.wait(&id)).await.expect("ends");
    let expected: Vec<String> = (1..=LINES).map(|number| format!("{number}\n")).collect();
    let logged: Vec<String> = node
        .lines(
            &id,
            LogOptions {
                stdout: true,
                ..LogOptions::default()
            },
        )
        .await
        .into_iter()
        .map(|line| String::from_utf8(line.bytes).expect("UTF-8"))
        .collect();
    assert!(
        logged == expected,
        "{} lines, {} distinct, after {killed} kills",
        logged.len(),
        logged.iter().collect::<BTreeSet<_>>().len()
    );
    let followed: Vec<String> = within(follower)
        .await
        .expect("no panic")
        .into_iter()
        .map(|bytes| String::from_utf8(bytes).expect("UTF-8"))
        .collect();
    assert!(
        followed == expected,
        "the follower saw {} lines",
        followed.len()
    );
    node.finish().await;
}

#[tokio::test]
async fn a_daemon_that_comes_back_finds_its_containers() {
    let node = Node::start().await;
    let id = node
        .run(node.shell("trap 'exit 4' TERM; echo ready; while :; do usleep 1000; done"))
        .await;
    node.wait_for_output(&id, "ready").await;
    let again = Runtime::open(node.config.clone()).await.expect("connects");
    assert_eq!(
        again.supervisor_pid().await,
        node.runtime.supervisor_pid().await
    );
    assert_eq!(again.list().await.expect("a list").len(), 1);
    again.signal(&id, Signal::TERM).await.expect("is sent");
    assert_eq!(within(again.wait(&id)).await.expect("ends").code, 4);
    drop(again);
    node.finish().await;
}

#[tokio::test]
async fn a_creation_cut_short_leaves_nothing_and_can_be_repeated() {
    let node = Node::start().await;
    for round in 0_u32..12 {
        let request = node.shell("exit 0");
        let id = request.id.clone();
        let supervisor = node.runtime.supervisor_pid().await.expect("a supervisor");
        let creating = tokio::spawn({
            let runtime = node.runtime.clone();
            async move { runtime.create(request).await }
        });
        // At another moment of the creation each round.
        let start = std::time::Instant::now();
        while start.elapsed() < std::time::Duration::from_micros(u64::from(round) * 300) {
            tokio::task::yield_now().await;
        }
        kill(supervisor);
        within(creating)
            .await
            .expect("no panic")
            .expect("is created by the next supervisor");
        node.runtime.start(&id).await.expect("starts");
        assert_eq!(within(node.runtime.wait(&id)).await.expect("ends").code, 0);
        node.runtime.delete(&id).await.expect("is deleted");
    }
    node.finish().await;
}

#[tokio::test]
async fn two_supervisors_cannot_share_a_root() {
    let node = Node::start().await;
    let output = std::process::Command::new(&node.config.supervisor_exe)
        .args(["supervisor", "--exec-root"])
        .arg(&node.config.exec_root)
        .arg("--state-root")
        .arg(&node.config.state_root)
        .args(["--cgroup-parent", &node.config.cgroup_parent])
        .output()
        .expect("runs");
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("another supervisor holds"), "{text}");
    assert!(
        node.runtime
            .list()
            .await
            .expect("the first one serves")
            .is_empty()
    );
    node.finish().await;
}

#[tokio::test]
async fn the_supervisor_is_in_a_session_of_its_own_and_is_small() {
    let node = Node::start().await;
    let pid = node.runtime.supervisor_pid().await.expect("a supervisor");
    let line = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a stat");
    let fields: Vec<&str> = line
        .rsplit_once(") ")
        .expect("a name")
        .1
        .split(' ')
        .collect();
    assert_eq!(fields[3], pid.to_string(), "session");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a status");
    assert!(status.contains("Threads:\t1\n"));
    let anonymous = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .expect("memory");
    let kib: u64 = anonymous
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .expect("a number");
    assert!(kib < 2048, "{kib} KiB");
    assert!(node.runtime.shutdown_supervisor().await.is_ok());
    wait_for("its end", || !alive(pid)).await;
}

#[tokio::test]
async fn an_upgraded_supervisor_stays_the_parent_and_loses_no_line() {
    const LINES: usize = 20_000;
    let node = Node::start().await;
    let waiting = node
        .run(node.shell("trap 'exit 12' TERM; printf begun; while :; do usleep 1000; done"))
        .await;
    let id = node
        .run(node.shell(&format!("seq 1 {LINES}; exit 6")))
        .await;
    let pid = node.runtime.supervisor_pid().await.expect("a supervisor");
    for _ in 0..5 {
        node.runtime
            .upgrade(&node.config.supervisor_exe)
            .await
            .expect("goes on");
        assert_eq!(node.runtime.supervisor_pid().await, Some(pid));
    }
    assert!(
        node.runtime
            .upgrade(std::path::Path::new("/no/such/exe"))
            .await
            .is_err()
    );
    assert_eq!(within(node.runtime.wait(&id)).await.expect("ends").code, 6);
    let lines = node
        .lines(
            &id,
            LogOptions {
                stdout: true,
                ..LogOptions::default()
            },
        )
        .await;
    let expected: Vec<Vec<u8>> = (1..=LINES)
        .map(|number| format!("{number}\n").into_bytes())
        .collect();
    assert!(lines.into_iter().map(|line| line.bytes).eq(expected));
    node.runtime
        .signal(&waiting, Signal::TERM)
        .await
        .expect("is sent");
    assert_eq!(
        within(node.runtime.wait(&waiting))
            .await
            .expect("ends")
            .code,
        12
    );
    assert_eq!(node.text(&waiting).await, "begun");
    node.finish().await;
}

#[tokio::test]
async fn an_end_that_nobody_saw_is_said_to_be_unknown() {
    let mut node = Node::start().await;
    let id = node
        .run(node.shell("while ! test -e /tmp/go; do usleep 1000; done; exit 21"))
        .await;
    let Phase::Running(started) = node
        .runtime
        .state(&id)
        .await
        .expect("an answer")
        .expect("it exists")
        .phase
    else {
        panic!("it runs");
    };
    let supervisor = node.runtime.supervisor_pid().await.expect("a supervisor");
    // The daemon goes too: only a handle to another node is left meanwhile.
    let other = Node::start().await;
    drop(std::mem::replace(&mut node.runtime, other.runtime.clone()));
    let process =
        rustix::process::Pid::from_raw(i32::try_from(supervisor).expect("a pid")).expect("a pid");
    rustix::process::kill_process(process, rustix::process::Signal::STOP).expect("is stopped");
    std::fs::write(format!("/proc/{}/root/tmp/go", started.pid), "").expect("the gate opens");
    wait_for("the container's end", || !alive(started.pid)).await;
    kill(supervisor);
    // Reaped by whoever inherited it, so that no pidfd can be had any more.
    let entry = std::path::PathBuf::from(format!("/proc/{}", started.pid));
    wait_for("its reaping", || !entry.exists()).await;
    wait_for("the supervisor's end", || !alive(supervisor)).await;
    node.runtime = Runtime::open(node.config.clone())
        .await
        .expect("a new supervisor");
    other.finish().await;
    let status = within(node.runtime.wait(&id)).await.expect("ends");
    assert_eq!(status.code, 255);
    assert!(status.reason.expect("a reason").contains("no supervisor"));
    node.finish().await;
}

fn executed_as(pid: u32) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).expect("its arguments");
    let first = words.split(|byte| *byte == 0).next().expect("a word");
    std::ffi::OsStr::from_bytes(first).into()
}

#[tokio::test]
async fn a_daemon_of_another_build_upgrades_the_supervisor_it_finds() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::start().await;
    let id = node
        .run(node.shell("trap 'exit 12' TERM; echo ready; while :; do usleep 1000; done"))
        .await;
    node.wait_for_output(&id, "ready").await;
    let pid = node.runtime.supervisor_pid().await.expect("a supervisor");
    let directory = tempfile::tempdir().expect("a temporary directory");

    let newer = directory.path().join("newer");
    std::fs::copy(&node.config.supervisor_exe, &newer).expect("a copy");
    let mut config = node.config.clone();
    config.supervisor_exe.clone_from(&newer);
    let daemon = Runtime::open(config.clone()).await.expect("connects");
    assert_eq!(daemon.supervisor_pid().await, Some(pid));
    assert_eq!(executed_as(pid), newer);
    // The same build again is left as it is.
    let link = directory.path().join("link");
    std::fs::hard_link(&newer, &link).expect("a link");
    config.supervisor_exe = link;
    Runtime::open(config.clone()).await.expect("connects");
    assert_eq!(executed_as(pid), newer);
    // One that cannot be executed leaves everything as it was.
    let broken = directory.path().join("broken");
    std::fs::write(&broken, "neither a program nor a script").expect("a file");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&broken, mode).expect("is executable");
    config.supervisor_exe = broken;
    let daemon = within(Runtime::open(config)).await.expect("connects");
    assert_eq!(executed_as(pid), newer);

    daemon.signal(&id, Signal::TERM).await.expect("is sent");
    assert_eq!(within(node.runtime.wait(&id)).await.expect("ends").code, 12);
    drop(daemon);
    node.finish().await;
}

#[tokio::test]
async fn what_is_left_of_containers_can_be_listed_read_and_deleted() {
    let node = Node::start().await;
    let living = node.run(node.shell("exec sleep 1000")).await;
    let id = node.run(node.shell("echo words; printf more >&2")).await;
    within(node.runtime.wait(&id)).await.expect("ends");
    assert_eq!(
        node.runtime.remains().await.expect("a list"),
        Vec::<String>::new()
    );
    let all = shoal_runtime::Keep {
        log: true,
        layer: true,
    };
    node.runtime
        .delete_keeping(&id, all)
        .await
        .expect("is deleted");
    let left = node.runtime.remains().await.expect("a list");
    assert_eq!(left, std::slice::from_ref(&id));
    let follow = LogOptions {
        follow: true,
        stdout: true,
        stderr: true,
        ..LogOptions::default()
    };
    for options in [
        follow,
        LogOptions {
            follow: false,
            ..follow
        },
    ] {
        let lines = node.lines(&id, options).await;
        let text: Vec<_> = lines.into_iter().map(|line| line.bytes).collect();
        assert!(text.contains(&b"words\n".to_vec()) && text.contains(&b"more".to_vec()));
    }
    node.runtime.delete(&id).await.expect("is deleted");
    assert!(node.runtime.remains().await.expect("a list").is_empty());
    let state = node.config.state_root.join("containers").join(&id);
    assert!(!state.exists());
    node.runtime.delete(&living).await.expect("is deleted");
    node.finish().await;
}
