//! Requests that go on while something happens, every one of which must be answered.

use std::{
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sched::{CloneFlags, setns};

use crate::Network;

/// What came of the requests.
#[derive(Debug)]
pub struct Answers {
    pub answered: u64,
    pub failures: Vec<String>,
}

/// A thread in a host's or client's network that sends one request after another, each on a new connection.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<Vec<String>>,
}

impl Load {
    pub fn start(from: &impl AsRef<Network>, to: SocketAddr) -> Self {
        let name = from.as_ref().name();
        let netns = File::open(format!("/run/netns/{name}")).expect("a network");
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let (stopping, count) = (stop.clone(), answered.clone());
        let thread = thread::spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET).expect("enter the network");
            let mut failures = Vec::new();
            while !stopping.load(Ordering::Relaxed) && failures.len() < 20 {
                match request(to) {
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

fn request(to: SocketAddr) -> Result<(), String> {
    let timeout = Duration::from_secs(5);
    let mut stream =
        TcpStream::connect_timeout(&to, timeout).map_err(|error| format!("connect: {error}"))?;
    stream
        .set_read_timeout(Some(timeout))
        .map_err(|error| error.to_string())?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        .map_err(|error| format!("send: {error}"))?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .map_err(|error| format!("receive: {error}"))?;
    if answer.starts_with("HTTP/1.1 200") && answer.contains("task: ") {
        Ok(())
    } else {
        Err(format!("answered {answer:?}"))
    }
}
