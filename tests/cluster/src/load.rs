//! Requests that go on while something happens, every one of which must be answered.

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sched::{CloneFlags, setns};

use crate::{DEADLINE, Network};

/// An answer takes no longer, nor does a connection that is not waited for.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What came of the requests.
#[derive(Debug)]
pub struct Answers {
    pub answered: u64,
    pub failures: Vec<String>,
}

impl Answers {
    /// The failures of requests that had a connection: there was somebody who could have answered.
    pub fn cut_off(&self) -> usize {
        let cut_off = |failure: &&String| !failure.starts_with(NO_CONNECTION);
        self.failures.iter().filter(cut_off).count()
    }
}

/// How requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    /// Each request has a connection of its own.
    New,
    /// One connection serves until the server says that it closes it.
    Kept,
}

/// A thread in a host's, client's or container's network that sends one request after another.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<Vec<String>>,
}

/// How a request failed that never had a connection.
const NO_CONNECTION: &str = "connect: ";

impl Load {
    /// Requests from a host or client, each on a new connection.
    pub fn start(from: &impl AsRef<Network>, to: SocketAddr) -> Self {
        Self::from_network(from, to, Connections::New)
    }

    pub fn from_network(
        from: &impl AsRef<Network>,
        to: SocketAddr,
        connections: Connections,
    ) -> Self {
        Self::run(netns(from), to, connections, TIMEOUT)
    }

    /// Requests from a host or client that waits for a connection for as long as it takes, and tries on.
    pub fn patient(from: &impl AsRef<Network>, to: SocketAddr, connections: Connections) -> Self {
        Self::run(netns(from), to, connections, DEADLINE)
    }

    /// Requests from the network of the container with this process.
    pub fn from_container(pid: u32, to: SocketAddr, connections: Connections) -> Self {
        let netns = File::open(format!("/proc/{pid}/ns/net")).expect("a network");
        Self::run(netns, to, connections, TIMEOUT)
    }

    fn run(netns: File, to: SocketAddr, connections: Connections, patience: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let (stopping, count) = (stop.clone(), answered.clone());
        let thread = thread::spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET).expect("enter the network");
            let mut failures = Vec::new();
            let mut kept = None;
            while !stopping.load(Ordering::Relaxed) && failures.len() < 20 {
                match request(to, connections, patience, &mut kept) {
                    Ok(()) => {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => failures.push(error),
                }
                // A bounded rate: the machine does other things, too.
                thread::sleep(Duration::from_millis(2));
            }
            failures
        });
        Self {
            stop,
            answered,
            thread,
        }
    }

    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    pub fn finish(self) -> Answers {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.thread.join().expect("the load did not panic");
        Answers {
            answered: self.answered.load(Ordering::Relaxed),
            failures,
        }
    }
}

fn netns(of: &impl AsRef<Network>) -> File {
    let name = of.as_ref().name();
    File::open(format!("/run/netns/{name}")).expect("a network")
}

/// Sends one request, over the `kept` connection if there is one that is still open.
fn request(
    to: SocketAddr,
    connections: Connections,
    patience: Duration,
    kept: &mut Option<TcpStream>,
) -> Result<(), String> {
    let open = kept.take().filter(|stream| !has_ended(stream));
    let mut stream = match open {
        Some(stream) => stream,
        None => connect(to, patience)?,
    };
    let header = match connections {
        Connections::New => "close",
        Connections::Kept => "keep-alive",
    };
    let port = stream.local_addr().map_or(0, |address| address.port());
    let told = |what: &str, error: &dyn std::fmt::Display| format!("{what} (port {port}): {error}");
    write!(
        stream,
        "GET / HTTP/1.1\r\nHost: test\r\nConnection: {header}\r\n\r\n"
    )
    .map_err(|error| told("send", &error))?;
    let answer = receive(&mut stream).map_err(|error| told("receive", &error))?;
    if !answer.starts_with("HTTP/1.1 200") || !answer.contains("task: ") {
        return Err(told("answered", &answer));
    }
    let head = answer.split("\r\n\r\n").next().unwrap_or_default();
    if !head.to_ascii_lowercase().contains("connection: close") {
        *kept = Some(stream);
    }
    Ok(())
}

fn connect(to: SocketAddr, patience: Duration) -> Result<TcpStream, String> {
    let stream = TcpStream::connect_timeout(&to, patience)
        .map_err(|error| format!("{NO_CONNECTION}{error}"))?;
    stream
        .set_read_timeout(Some(TIMEOUT))
        .and_then(|()| stream.set_nodelay(true))
        .map_err(|error| error.to_string())?;
    Ok(stream)
}

/// Whether the server has closed a connection on which nothing was asked.
fn has_ended(stream: &TcpStream) -> bool {
    let looked = stream.set_nonblocking(true).and_then(|()| {
        let seen = stream.peek(&mut [0]);
        stream.set_nonblocking(false)?;
        seen
    });
    !matches!(looked, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

/// The whole answer: as long as its head says, or up to the end of the connection.
fn receive(stream: &mut TcpStream) -> Result<String, String> {
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if length(&text).is_some_and(|length| answer.len() >= length) {
            return Ok(text);
        }
        match stream.read(&mut buffer) {
            Ok(0) if length(&text).is_none() && !text.is_empty() => return Ok(text),
            Ok(0) => return Err(format!("cut off after {text:?}")),
            Ok(n) => answer.extend_from_slice(&buffer[..n]),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Bytes of an answer whose head is all there and says so.
fn length(answer: &str) -> Option<usize> {
    let (head, _) = answer.split_once("\r\n\r\n")?;
    let body: usize = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse().ok())?
    })?;
    Some(head.len() + 4 + body)
}
