//! Containers that a new supervisor cannot adopt as it would like to.

mod support;

use std::path::PathBuf;

use shoal_runtime::Phase;
use support::{Node, alive, wait_for, within};

fn record(node: &Node, id: &str) -> PathBuf {
    let bundle = node.config.exec_root.join("containers").join(id);
    bundle.join("record.json")
}

async fn pid_of(node: &Node, id: &str) -> u32 {
    let state = node.runtime.state(id).await.expect("an answer");
    match state.expect("it exists").phase {
        Phase::Running(started) => started.pid,
        other => panic!("it runs, and is not {other:?}"),
    }
}

#[tokio::test]
async fn a_living_container_whose_record_cannot_be_read_lives_on_and_is_adopted_later() {
    let node = Node::start().await;
    let id = node.run(node.shell("exec sleep 1000")).await;
    let pid = pid_of(&node, &id).await;
    let path = record(&node, &id);
    let good = std::fs::read(&path).expect("a record");
    for bad in [&b"{"[..], b"", br#"{"version":4000000000}"#] {
        std::fs::write(&path, bad).expect("is written");
        let old = node.kill_supervisor().await;
        node.new_supervisor_than(old).await;
        assert_eq!(node.runtime.state(&id).await.expect("an answer"), None);
        assert!(alive(pid));
    }
    std::fs::write(&path, good).expect("is written");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while node.runtime.state(&id).await.expect("an answer").is_none() {
        assert!(std::time::Instant::now() < deadline, "it is not adopted");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(pid_of(&node, &id).await, pid);
    node.finish().await;
}

#[tokio::test]
async fn a_container_that_cannot_be_adopted_can_be_deleted() {
    let node = Node::start().await;
    let id = node.run(node.shell("exec sleep 1000")).await;
    let pid = pid_of(&node, &id).await;
    std::fs::write(record(&node, &id), "{").expect("is written");
    let old = node.kill_supervisor().await;
    node.new_supervisor_than(old).await;
    assert!(alive(pid));
    node.runtime.delete(&id).await.expect("is deleted");
    wait_for("its end", || !alive(pid)).await;
    node.finish().await;
}

#[tokio::test]
async fn a_record_of_an_earlier_version_is_understood() {
    let node = Node::start().await;
    let id = node.run(node.shell("exec sleep 1000")).await;
    let pid = pid_of(&node, &id).await;
    let path = record(&node, &id);
    let text = std::fs::read(&path).expect("a record");
    let mut fields: serde_json::Map<_, _> = serde_json::from_slice(&text).expect("JSON");
    for name in ["version", "made_state", "log", "exit"] {
        fields.remove(name).expect("a field");
    }
    std::fs::write(&path, serde_json::to_vec(&fields).expect("JSON")).expect("is written");
    let old = node.kill_supervisor().await;
    node.new_supervisor_than(old).await;
    assert_eq!(pid_of(&node, &id).await, pid);
    node.finish().await;
}

#[tokio::test]
async fn a_container_lives_on_when_its_log_cannot_be_opened() {
    let node = Node::start().await;
    let script = "while ! test -e /tmp/go; do usleep 1000; done; yes | head -c 200000; exit 8";
    let id = node.run(node.shell(script)).await;
    let pid = pid_of(&node, &id).await;
    let log = node.config.state_root.join("containers").join(&id);
    let log = log.join(format!("{id}-json.log"));
    std::fs::remove_file(&log).expect("is removed");
    // Nobody can write to a directory.
    std::fs::create_dir(&log).expect("a directory");
    let old = node.kill_supervisor().await;
    node.new_supervisor_than(old).await;
    assert_eq!(pid_of(&node, &id).await, pid);
    std::fs::write(format!("/proc/{pid}/root/tmp/go"), "").expect("the gate opens");
    assert_eq!(within(node.runtime.wait(&id)).await.expect("ends").code, 8);
    node.finish().await;
}
