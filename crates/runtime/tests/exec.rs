//! Processes run in running containers: where they are, what they may, and that nothing of them is left.

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use shoal_runtime::{ExecError, ExecOutcome, ExecSpec, OperationError, Phase};
use support::{DEFAULT_CAPABILITIES, Node, alive, pids, wait_for, within};

const SLEEPER: &str = "echo ready; while :; do sleep 1000; done";

fn command(args: &[&str]) -> ExecSpec {
    ExecSpec {
        args: args.iter().map(|word| (*word).to_owned()).collect(),
        timeout: Some(Duration::from_secs(15)),
        output_limit: 4096,
        ..ExecSpec::default()
    }
}

fn shell(script: &str) -> ExecSpec {
    command(&["sh", "-c", script])
}

async fn exec(node: &Node, id: &str, spec: ExecSpec) -> (i32, String) {
    let outcome = within(node.runtime.exec(id, spec)).await.expect("runs");
    let text = String::from_utf8(outcome.output).expect("UTF-8");
    assert!(!outcome.timed_out, "{text}");
    (outcome.status, text)
}

/// The host's processes whose command line holds `word`.
fn processes_with(word: &str) -> BTreeSet<u32> {
    let has = |pid: &u32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(word) && alive(*pid)
    };
    pids().into_iter().filter(has).collect()
}

async fn pid_of(node: &Node, id: &str) -> u32 {
    let state = node.runtime.state(id).await.expect("an answer");
    let Phase::Running(started) = state.expect("it exists").phase else {
        panic!("it runs");
    };
    started.pid
}

#[tokio::test]
async fn it_is_in_the_containers_namespaces_root_and_cgroup() {
    let node = Node::start().await;
    let id = node.run(node.shell(SLEEPER)).await;
    let first = pid_of(&node, &id).await;
    let links = "for n in pid net ipc mnt uts cgroup; do readlink /proc/self/ns/$n; done";
    let (code, text) = exec(&node, &id, shell(links)).await;
    let expected: Vec<String> = ["pid", "net", "ipc", "mnt", "uts", "cgroup"]
        .iter()
        .map(|name| {
            let link = std::fs::read_link(format!("/proc/{first}/ns/{name}")).expect("a link");
            format!("{}\n", link.display())
        })
        .collect();
    let expected = expected.concat();
    assert_eq!((code, text), (0, expected));
    let (_, text) = exec(
        &node,
        &id,
        shell("hostname; pwd; ls /; echo $$; cat /proc/1/comm; cat /etc/hostname"),
    )
    .await;
    assert!(text.starts_with("box\n/\n"), "{text}");
    assert!(
        text.contains("sh\nbox\n"),
        "process 1 is the container's: {text}"
    );
    let host = std::fs::read_to_string(format!("/proc/{first}/cgroup")).expect("its cgroups");
    let (mut theirs, mut ours) = (BTreeSet::new(), BTreeSet::new());
    let outcome = tokio::spawn({
        let (runtime, id) = (node.runtime.clone(), id.clone());
        async move { runtime.exec(&id, command(&["sleep", "987651"])).await }
    });
    wait_for("the process", || !processes_with("987651").is_empty()).await;
    let pid = *processes_with("987651").first().expect("it runs");
    let own = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its cgroups");
    for (text, set) in [(&host, &mut theirs), (&own, &mut ours)] {
        set.extend(
            text.lines()
                .filter(|line| line.contains(&id))
                .map(str::to_owned),
        );
    }
    assert!(!theirs.is_empty());
    for line in &theirs {
        assert!(
            ours.iter().any(|other| other.starts_with(line.as_str())),
            "{line} is not among {ours:?}"
        );
    }
    node.runtime.kill(&id).await.expect("is killed");
    let ended = within(outcome)
        .await
        .expect("no panic")
        .expect("an outcome");
    assert_eq!(ended.status, 137);
    within(node.runtime.wait(&id)).await.expect("ends");
    node.finish().await;
}

#[tokio::test]
async fn it_has_the_containers_environment_user_and_directory_or_its_own() {
    let node = Node::start().await;
    let mut request = node.shell(SLEEPER);
    request.user = "app".to_owned();
    let process = request.spec.process_mut().as_mut().expect("a process");
    process.set_env(Some(vec![
        "PATH=/bin".to_owned(),
        "A=1".to_owned(),
        "B=2".to_owned(),
    ]));
    process.set_cwd("/tmp".into());
    let id = node.run(request).await;
    let script = "id -u; id -g; id -G; echo $A$B$HOME; pwd; echo out >/dev/stdout";
    let (_, text) = exec(&node, &id, shell(script)).await;
    assert_eq!(text, "1000\n1001\n1001 2000\n12/home/app\n/tmp\nout\n");
    let own = ExecSpec {
        env: vec!["B=3".to_owned(), "C=x y".to_owned()],
        user: Some("root:extra".to_owned()),
        cwd: Some("/etc".to_owned()),
        ..shell("id -u; id -g; echo $A$B$C; pwd")
    };
    assert_eq!(exec(&node, &id, own).await.1, "0\n2000\n13x y\n/etc\n");
    node.finish().await;
}

#[tokio::test]
async fn it_is_confined_as_the_container() {
    let node = Node::start().await;
    let mut request = node.shell(SLEEPER);
    let process = request.spec.process_mut().as_mut().expect("a process");
    process.set_no_new_privileges(Some(true));
    let id = node.run(request).await;
    let first = pid_of(&node, &id).await;
    let of = |text: &str| -> Vec<String> {
        let names = ["Cap", "NoNewPrivs", "Seccomp", "Groups", "Uid", "Gid"];
        let known = |line: &&str| names.iter().any(|name| line.starts_with(name));
        text.lines().filter(known).map(str::to_owned).collect()
    };
    let theirs = std::fs::read_to_string(format!("/proc/{first}/status")).expect("a status");
    let (_, ours) = exec(&node, &id, command(&["cat", "/proc/self/status"])).await;
    assert_eq!(of(&ours), of(&theirs));
    assert!(
        ours.contains(&format!("CapBnd:\t{DEFAULT_CAPABILITIES:016x}")),
        "{ours}"
    );
    assert!(ours.contains("Seccomp:\t2"), "{ours}");
    let limits = |text: &str| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    let theirs = std::fs::read_to_string(format!("/proc/{first}/limits")).expect("limits");
    let (_, ours) = exec(&node, &id, command(&["cat", "/proc/self/limits"])).await;
    assert_eq!(limits(&ours), limits(&theirs));
    // Refused by the filter, and by the missing capability.
    assert_ne!(
        exec(&node, &id, shell("mount -t tmpfs x /tmp 2>&1"))
            .await
            .0,
        0
    );
    assert_ne!(exec(&node, &id, shell("unshare -m true 2>&1")).await.0, 0);
    let (_, open) = exec(&node, &id, shell("ls /proc/self/fd")).await;
    assert_eq!(open, "0\n1\n2\n3\n", "nothing of the supervisor's is open");
    node.finish().await;
}

#[tokio::test]
async fn status_and_the_beginning_of_the_output_are_kept() {
    let node = Node::start().await;
    let id = node.run(node.shell(SLEEPER)).await;
    let text = exec(&node, &id, shell("echo out; echo err >&2; exit 7")).await;
    assert_eq!(text, (7, "out\nerr\n".to_owned()));
    assert_eq!(exec(&node, &id, shell("kill -9 $$")).await.0, 137);
    let many = within(node.runtime.exec(&id, shell("seq 1 200000"))).await;
    let many = many.expect("runs");
    assert_eq!(
        (many.status, many.output.len(), many.truncated),
        (0, 4096, true)
    );
    assert!(many.output.starts_with(b"1\n2\n3\n"));
    for (spec, code, words) in [
        (
            command(&["nothing"]),
            127,
            "exec: \"nothing\": executable file not found in $PATH",
        ),
        (
            command(&["/etc/passwd"]),
            126,
            "exec: \"/etc/passwd\": permission denied",
        ),
    ] {
        let error = within(node.runtime.exec(&id, spec))
            .await
            .expect_err("cannot run");
        let ExecError::Start { message, exit_code } = &error else {
            panic!("{error:?}");
        };
        assert_eq!((message.as_str(), *exit_code), (words, code));
    }
    let nobody = ExecSpec {
        user: Some("nobody".to_owned()),
        ..shell("true")
    };
    let error = within(node.runtime.exec(&id, nobody))
        .await
        .expect_err("no such user");
    assert!(
        error.to_string().contains("unable to find user nobody"),
        "{error}"
    );
    let error = node
        .runtime
        .exec(&id, command(&[]))
        .await
        .expect_err("no command");
    assert!(matches!(error, ExecError::Invalid(_)), "{error:?}");
    node.finish().await;
}

#[tokio::test]
async fn containers_that_do_not_run_have_no_processes() {
    let node = Node::start().await;
    let created = node.shell(SLEEPER);
    let id = created.id.clone();
    node.runtime.create(created).await.expect("is created");
    let error = node
        .runtime
        .exec(&id, shell("true"))
        .await
        .expect_err("is not running");
    assert!(
        matches!(error, ExecError::Operation(OperationError::State(_))),
        "{error:?}"
    );
    let error = node.runtime.exec(&support::fresh_id(), shell("true")).await;
    let error = error.expect_err("there is none");
    assert!(
        matches!(error, ExecError::Operation(OperationError::NotFound(_))),
        "{error:?}"
    );
    node.finish().await;
}

#[tokio::test]
async fn after_its_time_all_of_it_is_killed() {
    let node = Node::start().await;
    let id = node.run(node.shell(SLEEPER)).await;
    let script = "echo begun; trap '' TERM; (sleep 987652 &) ; setsid sleep 987652 & while :; do sleep 987652; done";
    let spec = ExecSpec {
        timeout: Some(Duration::from_millis(300)),
        ..shell(script)
    };
    let began = Instant::now();
    let outcome = within(node.runtime.exec(&id, spec))
        .await
        .expect("an outcome");
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(
        outcome,
        ExecOutcome {
            status: 137,
            output: b"begun\n".to_vec(),
            truncated: false,
            timed_out: true
        }
    );
    assert_eq!(processes_with("987652"), BTreeSet::new());
    // What is left in the background ends with the process that started it.
    assert_eq!(
        exec(&node, &id, shell("sleep 987653 & echo done")).await.1,
        "done\n"
    );
    assert_eq!(processes_with("987653"), BTreeSet::new());
    assert!(alive(pid_of(&node, &id).await), "the container goes on");
    node.finish().await;
}

#[tokio::test]
async fn a_supervisors_death_or_upgrade_ends_it_and_not_the_container() {
    let node = Node::start().await;
    let id = node.run(node.shell(SLEEPER)).await;
    let first = pid_of(&node, &id).await;
    let begin = |word: &'static str| {
        let (runtime, id) = (node.runtime.clone(), id.clone());
        tokio::spawn(async move {
            let script = format!("(setsid sleep {word} &); sleep {word}");
            runtime.exec(&id, shell(&script)).await
        })
    };
    let killed = begin("987654");
    wait_for("both processes", || {
        processes_with("sleep\0987654").len() == 2
    })
    .await;
    let old = node.kill_supervisor().await;
    node.new_supervisor_than(old).await;
    let error = within(killed)
        .await
        .expect("no panic")
        .expect_err("is lost");
    assert!(matches!(error, ExecError::Interrupted), "{error:?}");
    wait_for("their end", || processes_with("987654").is_empty()).await;

    let upgraded = begin("987655");
    wait_for("both processes", || {
        processes_with("sleep\0987655").len() == 2
    })
    .await;
    let exe = node.config.supervisor_exe.clone();
    within(node.runtime.upgrade(&exe)).await.expect("upgrades");
    let error = within(upgraded)
        .await
        .expect("no panic")
        .expect_err("is lost");
    assert!(matches!(error, ExecError::Interrupted), "{error:?}");
    assert_eq!(processes_with("987655"), BTreeSet::new());

    // The container can still be asked, and ends as it should: no zombie holds its pid namespace.
    assert!(alive(first));
    assert_eq!(exec(&node, &id, shell("echo still")).await.1, "still\n");
    node.runtime.kill(&id).await.expect("is killed");
    assert_eq!(
        within(node.runtime.wait(&id)).await.expect("ends").code,
        137
    );
    node.finish().await;
}

#[tokio::test]
async fn it_ends_with_the_daemon_that_asked_for_it() {
    let node = Node::start().await;
    let id = node.run(node.shell(SLEEPER)).await;
    let other = shoal_runtime::Runtime::open(node.config.clone())
        .await
        .expect("opens");
    let (runtime, asked) = (other.clone(), id.clone());
    let lost =
        tokio::spawn(async move { runtime.exec(&asked, command(&["sleep", "987656"])).await });
    wait_for("the process", || !processes_with("987656").is_empty()).await;
    lost.abort();
    let _ = lost.await;
    drop(other);
    wait_for("its end", || processes_with("987656").is_empty()).await;
    node.finish().await;
}

#[tokio::test]
async fn many_at_once_leave_nothing_and_do_not_disturb_new_containers() {
    let node = Node::start().await;
    let id = node.run(node.shell(SLEEPER)).await;
    let supervisor = node.runtime.supervisor_pid().await.expect("it runs");
    // Without those of sandboxes that wait: their process, its report, their plan and what wakes them.
    let descriptors = || {
        let entries = std::fs::read_dir(format!("/proc/{supervisor}/fd"));
        let count = entries.expect("its descriptors").count();
        count.saturating_sub(4 * node.sandboxes().len())
    };
    let before = (descriptors(), node.traces());
    let mut all = tokio::task::JoinSet::new();
    for number in 0..40 {
        let (runtime, id) = (node.runtime.clone(), id.clone());
        all.spawn(async move {
            let script = format!("echo {number}; exit {number}");
            let outcome = runtime.exec(&id, shell(&script)).await.expect("runs");
            assert_eq!(outcome.status, number);
            assert_eq!(outcome.output, format!("{number}\n").into_bytes());
        });
    }
    // The supervisor's other children are in pid namespaces of their own all the while.
    let (status, text) = node.output(node.shell("echo $$")).await;
    assert_eq!((status.code, text.as_str()), (0, "1\n"));
    while let Some(result) = within(all.join_next()).await {
        result.expect("no panic");
    }
    wait_for("as many descriptors as before", || {
        descriptors() == before.0
    })
    .await;
    assert_eq!(node.traces(), before.1);
    node.finish().await;
}
