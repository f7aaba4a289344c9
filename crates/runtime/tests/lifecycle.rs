//! Creating, starting, waiting, deleting; and that nothing is left.

mod support;

use shoal_runtime::{CreateError, OperationError, Phase, Signal, StartError};
use support::{Node, alive, wait_for, within};

#[tokio::test]
async fn a_container_runs_and_its_exit_code_is_kept() {
    let node = Node::start().await;
    let request = node.shell("echo out; echo err >&2; exit 42");
    let id = request.id.clone();
    let sandbox = node.runtime.create(request).await.expect("is created");
    assert!(alive(sandbox.pid));
    let state = node
        .runtime
        .state(&id)
        .await
        .expect("a state")
        .expect("it exists");
    assert_eq!(state.phase, Phase::Created { pid: sandbox.pid });
    let started = node.runtime.start(&id).await.expect("starts");
    assert_eq!(started.pid, sandbox.pid);
    let status = within(node.runtime.wait(&id)).await.expect("ends");
    assert_eq!(
        (status.code, status.oom_killed, &status.reason),
        (42, false, &None)
    );
    assert_eq!(within(node.runtime.wait(&id)).await.expect("again"), status);
    let state = node
        .runtime
        .state(&id)
        .await
        .expect("a state")
        .expect("it exists");
    assert_eq!(state.phase, Phase::Exited(status));
    let mut text: Vec<String> = node.text(&id).await.lines().map(str::to_owned).collect();
    text.sort();
    assert_eq!(text, ["err", "out"]);
    node.finish().await;
}

#[tokio::test]
async fn operations_are_idempotent() {
    let node = Node::start().await;
    let request = node.request(&["sleep", "1000"]);
    let id = request.id.clone();
    let first = node
        .runtime
        .create(request.clone())
        .await
        .expect("is created");
    let second = node
        .runtime
        .create(request.clone())
        .await
        .expect("is there");
    assert_eq!(first.pid, second.pid);
    let one = node.runtime.start(&id).await.expect("starts");
    assert_eq!(node.runtime.start(&id).await.expect("runs"), one);
    node.runtime.kill(&id).await.expect("is killed");
    assert_eq!(
        within(node.runtime.wait(&id)).await.expect("ends").code,
        137
    );
    node.runtime.kill(&id).await.expect("is killed already");
    assert!(matches!(
        node.runtime.create(request).await,
        Err(CreateError::State(_))
    ));
    node.runtime.delete(&id).await.expect("is deleted");
    node.runtime.delete(&id).await.expect("is deleted already");
    assert!(matches!(
        node.runtime.wait(&id).await,
        Err(OperationError::NotFound(_))
    ));
    assert_eq!(node.runtime.state(&id).await.expect("an answer"), None);
    node.finish().await;
}

#[tokio::test]
async fn signals_reach_the_program() {
    let node = Node::start().await;
    let id = node
        .run(node.shell("trap 'echo got; exit 7' TERM; echo ready; while :; do sleep 0.01; done"))
        .await;
    node.wait_for_output(&id, "ready").await;
    node.runtime
        .signal(&id, Signal::TERM)
        .await
        .expect("is sent");
    assert_eq!(within(node.runtime.wait(&id)).await.expect("ends").code, 7);
    assert!(node.text(&id).await.contains("got"));
    assert!(matches!(
        node.runtime.signal(&id, Signal::TERM).await,
        Err(OperationError::State(_))
    ));
    node.finish().await;
}

#[tokio::test]
async fn programs_that_cannot_be_executed_are_refused_in_dockers_words() {
    let node = Node::start().await;
    for (program, text, code) in [
        (
            "foo",
            r#"exec: "foo": executable file not found in $PATH"#,
            127,
        ),
        (
            "/no/such",
            r#"exec: "/no/such": stat /no/such: no such file or directory"#,
            127,
        ),
        (
            "/etc/passwd",
            r#"exec: "/etc/passwd": permission denied"#,
            126,
        ),
        ("/etc", r#"exec: "/etc": is a directory"#, 126),
    ] {
        for init in [false, true] {
            let mut request = node.request(&[program]);
            request.init = init;
            let id = request.id.clone();
            node.runtime.create(request).await.expect("is created");
            match node.runtime.start(&id).await {
                Err(StartError::Exec { message, exit_code }) => {
                    assert_eq!((message.as_str(), exit_code), (text, code));
                }
                other => panic!("{program}: {other:?}"),
            }
            assert_eq!(
                within(node.runtime.wait(&id))
                    .await
                    .expect("has ended")
                    .code,
                code
            );
            node.runtime.delete(&id).await.expect("is deleted");
        }
    }
    node.finish().await;
}

#[tokio::test]
async fn a_container_that_cannot_be_made_leaves_nothing() {
    let node = Node::start().await;
    let before = node.traces();
    let mut no_layer = node.request(&["true"]);
    no_layer.rootfs.lower = vec!["missing".to_owned()];
    let mut no_user = node.request(&["true"]);
    no_user.user = "nobody-here".to_owned();
    let mut no_source = node.request(&["true"]);
    add_mount(&mut no_source, "/no/such/source", "/data", &["bind"]);
    let mut bad_limit = node.request(&["true"]);
    let linux = bad_limit.spec.linux_mut().as_mut().expect("linux");
    let resources = linux.resources_mut().as_mut().expect("resources");
    let mut cpu = oci_spec::runtime::LinuxCpu::default();
    cpu.set_cpus(Some("4000-5000".to_owned()));
    resources.set_cpu(Some(cpu));
    for (request, text) in [
        (no_layer, "overlay"),
        (
            no_user,
            "unable to find user nobody-here: no matching entries in passwd file",
        ),
        (no_source, "/no/such/source"),
        (bad_limit, "cpuset"),
    ] {
        let id = request.id.clone();
        let error = node
            .runtime
            .create(request)
            .await
            .expect_err("cannot be made")
            .to_string();
        assert!(error.contains(text), "{error:?} does not mention {text:?}");
        assert_eq!(node.runtime.state(&id).await.expect("an answer"), None);
    }
    assert_eq!(node.traces(), before);
    node.finish().await;
}

#[tokio::test]
async fn init_reaps_orphans_and_forwards_signals() {
    let node = Node::start().await;
    let mut request = node.shell(
        "(sleep 0.01 & ) ; trap 'exit 9' TERM; echo pid $$; echo ready; while :; do sleep 0.01; done",
    );
    request.init = true;
    let id = node.run(request).await;
    node.wait_for_output(&id, "ready").await;
    assert!(!node.text(&id).await.contains("pid 1\n"));
    node.runtime
        .signal(&id, Signal::TERM)
        .await
        .expect("is sent");
    assert_eq!(within(node.runtime.wait(&id)).await.expect("ends").code, 9);
    node.finish().await;
}

#[tokio::test]
async fn a_paused_container_stands_still_and_goes_on() {
    let node = Node::start().await;
    let id = node
        .run(node.shell("while :; do echo tick; usleep 1000; done"))
        .await;
    node.wait_for_output(&id, "tick").await;
    node.runtime.pause(&id).await.expect("pauses");
    let events = support::cgroup_roots()
        .into_iter()
        .map(|root| {
            root.join(&node.config.cgroup_parent)
                .join(&id)
                .join("cgroup.events")
        })
        .find(|path| path.exists())
        .expect("a v2 group");
    wait_for("frozen", || {
        std::fs::read_to_string(&events).is_ok_and(|text| text.contains("frozen 1"))
    })
    .await;
    node.runtime.unpause(&id).await.expect("goes on");
    let before = node.text(&id).await.len();
    let longer = "tick\n".repeat(before / 5 + 20);
    node.wait_for_output(&id, &longer).await;
    node.runtime.pause(&id).await.expect("pauses");
    node.runtime
        .delete(&id)
        .await
        .expect("a paused container can be deleted");
    node.finish().await;
}

#[tokio::test]
async fn a_hundred_containers_come_and_go_in_parallel() {
    let node = Node::start().await;
    let jobs = (0..100).map(|number| {
        let request = node.shell(&format!("echo {number}; exit {}", number % 50));
        let runtime = node.runtime.clone();
        tokio::spawn(async move {
            let id = request.id.clone();
            runtime.create(request).await.expect("is created");
            runtime.start(&id).await.expect("starts");
            let status = runtime.wait(&id).await.expect("ends");
            assert_eq!(status.code, number % 50);
            runtime.delete(&id).await.expect("is deleted");
        })
    });
    for job in jobs.collect::<Vec<_>>() {
        within(job).await.expect("no panic");
    }
    node.finish().await;
}

#[tokio::test]
async fn the_writable_layer_and_the_log_can_be_kept() {
    let node = Node::start().await;
    let request = node.shell("test -e /made && echo again; touch /made; echo first");
    let id = node.run(request.clone()).await;
    within(node.runtime.wait(&id)).await.expect("ends");
    let keep = shoal_runtime::Keep {
        log: true,
        layer: true,
    };
    node.runtime
        .delete_keeping(&id, keep)
        .await
        .expect("is deleted");
    node.run(request).await;
    within(node.runtime.wait(&id)).await.expect("ends");
    assert_eq!(node.text(&id).await, "first\nagain\nfirst\n");
    node.finish().await;
}

fn add_mount(
    request: &mut shoal_runtime::CreateRequest,
    source: &str,
    target: &str,
    options: &[&str],
) {
    let mount = oci_spec::runtime::MountBuilder::default()
        .destination(target)
        .typ("bind")
        .source(source)
        .options(
            options
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>(),
        )
        .build()
        .expect("a mount");
    request
        .spec
        .mounts_mut()
        .as_mut()
        .expect("mounts")
        .push(mount);
}
