//! Reading what containers wrote.

mod support;

use futures_util::StreamExt;
use jiff::Timestamp;
use shoal_runtime::{LogConfig, LogOptions, Stream};
use support::{Node, within};

const BOTH: LogOptions = LogOptions {
    follow: false,
    since: None,
    until: None,
    tail: None,
    stdout: true,
    stderr: true,
};

#[tokio::test]
async fn streams_tail_and_times_select_lines() {
    let node = Node::start().await;
    let id = node
        .run(node.shell("seq 1 5; usleep 20000; echo err >&2; printf partial"))
        .await;
    within(node.runtime.wait(&id)).await.expect("ends");
    let texts = |lines: Vec<shoal_runtime::LogLine>| -> Vec<String> {
        lines
            .into_iter()
            .map(|line| String::from_utf8(line.bytes).expect("UTF-8"))
            .collect()
    };
    let all = node.lines(&id, BOTH).await;
    assert_eq!(all.len(), 7);
    let stderr = all
        .iter()
        .find(|line| line.stream == Stream::Stderr)
        .expect("stderr")
        .clone();
    assert_eq!(stderr.bytes, b"err\n");
    assert_eq!(
        texts(
            node.lines(
                &id,
                LogOptions {
                    tail: Some(2),
                    stderr: false,
                    ..BOTH
                }
            )
            .await
        ),
        ["5\n", "partial"]
    );
    assert_eq!(
        texts(
            node.lines(
                &id,
                LogOptions {
                    stdout: false,
                    ..BOTH
                }
            )
            .await
        ),
        ["err\n"]
    );
    assert_eq!(
        node.lines(
            &id,
            LogOptions {
                tail: Some(0),
                ..BOTH
            }
        )
        .await,
        []
    );
    let since = node
        .lines(
            &id,
            LogOptions {
                since: Some(stderr.at),
                ..BOTH
            },
        )
        .await;
    assert!(since.len() <= 2 && !texts(since).contains(&"1\n".to_owned()));
    let until = all[0].at;
    assert!(
        texts(
            node.lines(
                &id,
                LogOptions {
                    until: Some(until),
                    ..BOTH
                }
            )
            .await
        )
        .contains(&"1\n".to_owned())
    );
    let past = Timestamp::from_second(1).expect("a time");
    assert_eq!(
        node.lines(
            &id,
            LogOptions {
                until: Some(past),
                ..BOTH
            }
        )
        .await,
        []
    );
    let file = node
        .config
        .state_root
        .join(format!("containers/{id}/{id}-json.log"));
    let text = std::fs::read_to_string(file).expect("a log");
    assert!(
        text.starts_with(r#"{"log":"1\n","stream":"stdout","time":"2"#),
        "{text}"
    );
    node.finish().await;
}

#[tokio::test]
async fn a_follower_sees_lines_as_they_come_and_ends_with_the_container() {
    let node = Node::start().await;
    let id = node
        .run(node.shell("echo one; while ! test -e /tmp/go; do usleep 1000; done; echo two"))
        .await;
    let mut stream = Box::pin(node.runtime.logs(
        &id,
        LogOptions {
            follow: true,
            ..BOTH
        },
    ));
    let first = within(stream.next())
        .await
        .expect("a line")
        .expect("readable");
    assert_eq!(first.bytes, b"one\n");
    let shoal_runtime::Phase::Running(started) = node
        .runtime
        .state(&id)
        .await
        .expect("an answer")
        .expect("it exists")
        .phase
    else {
        panic!("it runs");
    };
    std::fs::write(format!("/proc/{}/root/tmp/go", started.pid), "").expect("the gate opens");
    let second = within(stream.next())
        .await
        .expect("a line")
        .expect("readable");
    assert_eq!(second.bytes, b"two\n");
    assert!(within(stream.next()).await.is_none());
    node.finish().await;
}

#[tokio::test]
async fn a_follower_reads_through_rotations() {
    let node = Node::start().await;
    let mut request =
        node.shell("for i in $(seq 1 40); do seq $((i*1000)) $((i*1000+199)); usleep 2000; done");
    request.log = LogConfig {
        max_size: Some(64 * 1024),
        max_files: 200,
        ..LogConfig::default()
    };
    let id = node.run(request).await;
    let stream = node.runtime.logs(
        &id,
        LogOptions {
            follow: true,
            ..BOTH
        },
    );
    let followed: Vec<Vec<u8>> =
        within(stream.map(|line| line.expect("a line").bytes).collect()).await;
    let expected: Vec<Vec<u8>> = (1..=40)
        .flat_map(|i| (i * 1000..i * 1000 + 200).map(|n| format!("{n}\n").into_bytes()))
        .collect();
    assert!(
        followed == expected,
        "{} of {} lines",
        followed.len(),
        expected.len()
    );
    let files = std::fs::read_dir(node.config.state_root.join("containers").join(&id))
        .expect("a directory");
    assert!(
        files
            .filter(|entry| entry
                .as_ref()
                .is_ok_and(|e| e.file_name().to_string_lossy().contains("-json.log.")))
            .count()
            >= 4
    );
    node.finish().await;
}

#[tokio::test]
async fn rotation_keeps_only_so_many_files() {
    let node = Node::start().await;
    let mut request = node.shell("for i in $(seq 1 20); do seq 1 500; usleep 1000; done; echo end");
    request.log = LogConfig {
        max_size: Some(8 * 1024),
        max_files: 3,
        ..LogConfig::default()
    };
    let id = node.run(request).await;
    within(node.runtime.wait(&id)).await.expect("ends");
    let files = std::fs::read_dir(node.config.state_root.join("containers").join(&id))
        .expect("a directory");
    let logs = files.filter(|entry| {
        entry
            .as_ref()
            .is_ok_and(|e| e.file_name().to_string_lossy().contains("-json.log"))
    });
    assert_eq!(logs.count(), 3);
    let last = node
        .lines(
            &id,
            LogOptions {
                tail: Some(1),
                ..BOTH
            },
        )
        .await;
    assert_eq!(last[0].bytes, b"end\n");
    node.finish().await;
}

#[tokio::test]
async fn lines_that_are_written_at_once_have_times_that_grow() {
    let node = Node::start().await;
    let id = node.run(node.shell("seq 1 500; seq 501 1000 >&2")).await;
    within(node.runtime.wait(&id)).await.expect("ends");
    let lines = node.lines(&id, BOTH).await;
    assert_eq!(lines.len(), 1000);
    assert!(lines.windows(2).all(|pair| pair[0].at < pair[1].at));
    let middle = LogOptions {
        since: Some(lines[300].at),
        until: Some(lines[302].at),
        ..BOTH
    };
    assert_eq!(node.lines(&id, middle).await, lines[300..=302]);
    node.finish().await;
}

#[tokio::test]
async fn output_that_nobody_wants_is_read_and_not_kept() {
    let node = Node::start().await;
    // More than a pipe holds: it would never end if nobody read.
    let mut request = node.shell("seq 1 100000; seq 1 100000 >&2; exit 3");
    request.log.discard = true;
    let id = node.run(request).await;
    assert_eq!(within(node.runtime.wait(&id)).await.expect("ends").code, 3);
    assert_eq!(node.lines(&id, BOTH).await, []);
    let files = std::fs::read_dir(node.config.state_root.join("containers").join(&id));
    let logs = files.expect("a directory").filter(|entry| {
        let name = entry.as_ref().expect("an entry").file_name();
        name.to_string_lossy().contains(".log")
    });
    assert_eq!(logs.count(), 0);
    node.finish().await;
}

#[tokio::test]
async fn long_lines_and_odd_bytes_arrive() {
    let node = Node::start().await;
    let id = node
        .run(node.shell("head -c 40000 /dev/zero | tr '\\0' x; echo; printf '\"\\\\\\t\\n'"))
        .await;
    within(node.runtime.wait(&id)).await.expect("ends");
    let lines = node.lines(&id, BOTH).await;
    let lengths: Vec<usize> = lines.iter().map(|line| line.bytes.len()).collect();
    assert_eq!(lengths[..3], [16384, 16384, 40001 - 2 * 16384]);
    assert_eq!(lines[3].bytes, b"\"\\\t\n");
    node.finish().await;
}

#[tokio::test]
async fn a_container_ends_though_somebody_else_writes_to_its_output_without_end() {
    use std::io::Write;
    let node = Node::start().await;
    let id = node
        .run(node.shell("while ! test -e /tmp/go; do usleep 1000; done; exit 3"))
        .await;
    let bundle = node.config.exec_root.join("containers").join(&id);
    let fifo = std::fs::OpenOptions::new()
        .write(true)
        .open(bundle.join("stdout"));
    let mut fifo = fifo.expect("can be opened");
    let writer = std::thread::spawn(move || {
        let lines = b"x\n".repeat(16 * 1024);
        // Until nobody can read it any more.
        while fifo.write_all(&lines).is_ok() {}
    });
    let state = node.runtime.state(&id).await.expect("an answer");
    let shoal_runtime::Phase::Running(started) = state.expect("it exists").phase else {
        panic!("it runs");
    };
    std::fs::write(format!("/proc/{}/root/tmp/go", started.pid), "").expect("the gate opens");
    assert_eq!(within(node.runtime.wait(&id)).await.expect("ends").code, 3);
    writer.join().expect("ends");
    node.finish().await;
}
