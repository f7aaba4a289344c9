//! The built-in web server, run from its layer in an otherwise empty root.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use common::TestStore;
use shoal_image::HELLO_REFERENCE;

struct Server {
    child: Child,
    output: BufReader<ChildStdout>,
    port: u16,
    _store: TestStore,
}

impl Server {
    async fn start() -> Self {
        let store = TestStore::new().await;
        let image = store.store.get(HELLO_REFERENCE).unwrap();
        let root = store.layer(&image, 0);
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        // Through chroot(8): nothing but the layer is there, so it is static or it does not start.
        let mut command = Command::new("chroot");
        command.arg(root).arg("/hello").env_clear();
        command
            .env("HELLO_PORT", port.to_string())
            .env("SHOAL_TASK_NAME", "web.1.abc");
        command.stdout(Stdio::piped()).process_group(0);
        command.env("PATH", std::env::var_os("PATH").unwrap());
        let mut child = command.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, format!("hello: listening on port {port}\n"));
        Self {
            child,
            output,
            port,
            _store: store,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    /// One request on a connection of its own; the whole answer.
    fn ask(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn get(&self, path: &str) -> String {
        self.ask(&format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        ))
    }

    fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn every_path_says_who_answers() {
    let mut server = Server::start().await;
    let answer = server.get("/some/path?x=1");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain"),
        "{head}"
    );
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let hostname = hostname.trim();
    let lines: Vec<&str> = body.lines().collect();
    assert_eq!(lines[0], format!("hostname: {hostname}"));
    assert_eq!(lines[1], "task: web.1.abc");
    assert_eq!(lines[2], "node: -");
    assert!(lines[3].starts_with("client: 127.0.0.1:"), "{}", lines[3]);
    assert_eq!(lines[4], "path: /some/path");
    let mut line = String::new();
    server.output.read_line(&mut line).unwrap();
    assert!(
        line.starts_with("GET /some/path?x=1 200 client=127.0.0.1:"),
        "{line}"
    );
    assert!(server.get("/health").ends_with("\r\n\r\nok\n"));
    assert!(
        TcpStream::connect(("::1", server.port)).is_ok(),
        "it listens on IPv6 as well"
    );
}

#[tokio::test]
async fn sizes_waits_and_heads_are_as_asked() {
    let server = Server::start().await;
    let answer = server.get("/bytes?n=300000");
    assert!(answer.contains("Content-Length: 300000\r\n"));
    assert_eq!(answer.split_once("\r\n\r\n").unwrap().1.len(), 300_000);
    assert!(
        server
            .get("/bytes?n=99999999999")
            .starts_with("HTTP/1.1 400")
    );
    let head = server.ask("HEAD /bytes?n=1000 HTTP/1.0\r\n\r\n");
    assert!(
        head.contains("Content-Length: 1000\r\n") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    let started = Instant::now();
    assert!(server.get("/slow?ms=300").contains("path: /slow\n"));
    assert!(started.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_and_bodies_are_passed_over() {
    let server = Server::start().await;
    let answer = server.ask(
        "GET /one HTTP/1.1\r\nHost: x\r\n\r\n\
         POST /two HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nGET /\
         PUT /three HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
         GET /four HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET /never HTTP/1.1\r\n\r\n",
    );
    let paths: Vec<&str> = answer
        .lines()
        .filter_map(|line| line.strip_prefix("path: "))
        .collect();
    assert_eq!(paths, ["/one", "/two", "/three", "/four"]);
}

#[tokio::test]
async fn what_is_no_request_is_refused() {
    let server = Server::start().await;
    for request in [
        "nonsense\r\n\r\n",
        "GET / HTTP/9\r\n\r\n",
        "GET  / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nno colon\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        "GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\nx",
    ] {
        let answer = server.ask(request);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{request:?}: {answer}");
    }
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(20_000));
    let mut stream = server.connect();
    let _ = stream.write_all(long.as_bytes());
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 400");
    assert!(
        server.get("/health").ends_with("ok\n"),
        "and it still serves"
    );
}

#[tokio::test]
async fn hundreds_of_connections_are_served_at_once() {
    let server = Server::start().await;
    let mut streams: Vec<TcpStream> = (0..400).map(|_| server.connect()).collect();
    for stream in &mut streams {
        stream
            .write_all(b"GET /slow?ms=200 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
    }
    for stream in &mut streams {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test]
async fn a_stop_finishes_requests_in_flight_and_takes_no_more() {
    let mut server = Server::start().await;
    // An idle connection must not hold the exit up.
    let mut idle = server.connect();
    idle.write_all(b"GET /idle HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut first = [0; 15];
    idle.read_exact(&mut first).unwrap();
    let mut slow = server.connect();
    slow.write_all(b"GET /slow?ms=700 HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    // Once this one is answered, the slow one, sent before it, is being served.
    server.get("/health");
    let started = Instant::now();
    server.terminate();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("Connection: close"),
        "{answer}"
    );
    let status = server.child.wait().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
    assert!(TcpStream::connect(("127.0.0.1", server.port)).is_err());
    let mut rest = String::new();
    server.output.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("hello: stopped\n"), "{rest}");
}
