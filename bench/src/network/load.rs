//! Connections, requests and bytes from one network namespace to another, and what they cost.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::{
        resource::{UsageWho, getrusage},
        time::TimeValLike,
    },
    unistd::Pid,
};

use super::world::Namespace;
use crate::stats::{Series, Unit};

const PORT: u16 = 80;
/// Clients at once, and servers, each serving one connection after another.
const CLIENTS: usize = 2;
const SERVERS: usize = 4;
const MESSAGE: usize = 64;
const CHUNK: usize = 128 << 10;

/// What the client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Connections,
    Requests,
    Bytes,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Connections, Self::Requests, Self::Bytes];

    pub(super) fn series(self, what: &str) -> Series {
        match self {
            Self::Connections => Series::new(
                format!("processor's time for a connection {what}"),
                Unit::Micros,
            ),
            Self::Requests => Series::new(
                format!("processor's time for a request {what}"),
                Unit::Micros,
            ),
            Self::Bytes => Series::new(format!("processor's time for a MiB {what}"), Unit::Micros),
        }
    }

    /// One sample, of `span`.
    pub(super) fn run(self, from: &Namespace, to: Ipv4Addr, span: Duration) -> Result<f64> {
        let before = spent()?;
        let started = Instant::now();
        let clients: Vec<_> = (0..CLIENTS)
            .take(if self == Self::Bytes { 1 } else { CLIENTS })
            .map(|_| from.thread(move || self.client(to, started, span)))
            .collect::<Result<_>>()?;
        let mut count = 0;
        for client in clients {
            count += join(client)??;
        }
        #[expect(clippy::cast_precision_loss, reason = "counts of a second or less")]
        let count = count as f64;
        let unit = if self == Self::Bytes {
            f64::from(1 << 20)
        } else {
            1.0
        };
        Ok(spent()?.saturating_sub(before).as_secs_f64() * 1e6 * unit / count)
    }

    /// Connections, requests or bytes.
    fn client(self, to: Ipv4Addr, started: Instant, span: Duration) -> Result<u64> {
        let connect = || {
            let stream = TcpStream::connect((to, PORT)).with_context(|| format!("to {to}"))?;
            stream.set_nodelay(true)?;
            Ok::<_, anyhow::Error>(stream)
        };
        let mut kept = (self != Self::Connections).then(connect).transpose()?;
        let (mut count, mut chunk) = (0, vec![0; CHUNK]);
        while started.elapsed() < span {
            let mut fresh = None;
            let stream = match &mut kept {
                Some(stream) => stream,
                None => fresh.insert(connect()?),
            };
            if self == Self::Bytes {
                count += u64::try_from(stream.write(&chunk)?)?;
                continue;
            }
            stream.write_all(&chunk[..MESSAGE])?;
            stream.read_exact(&mut chunk[..MESSAGE])?;
            count += 1;
        }
        Ok(count)
    }
}

/// Answers messages; what is longer than one it only reads.
#[derive(Debug)]
pub(super) struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(on: &Namespace) -> Result<Self> {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
        let listener = join(on.thread(move || TcpListener::bind(any))?)?.context("listen")?;
        let listener = Arc::new(listener);
        let stop = Arc::new(AtomicBool::new(false));
        let serve = |_| {
            let (stop, listener) = (stop.clone(), listener.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((stream, _)) = listener.accept() {
                        // The client's end is the end.
                        let _ = serve(stream);
                    }
                }
            })
        };
        let threads = (0..SERVERS).map(serve).collect();
        // Those that wait are woken by a connection that says nothing.
        Ok(Self { stop, threads })
    }

    /// Ends it; `on` is where it serves.
    pub(super) fn end(self, on: &Namespace) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let count = self.threads.len();
        let wake =
            move || (0..count).try_for_each(|_| TcpStream::connect(("127.0.0.1", PORT)).map(drop));
        join(on.thread(wake)?)??;
        self.threads.into_iter().try_for_each(join)
    }
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(MESSAGE) => stream.write_all(&buffer[..MESSAGE])?,
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
    }
}

fn join<T>(thread: JoinHandle<T>) -> Result<T> {
    thread
        .join()
        .map_err(|_| anyhow::anyhow!("a thread panicked"))
}

/// The processor time of this program, the kernel's for it included.
pub(super) fn spent() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros)?))
}

/// The kernel's part of it.
pub(super) fn spent_by_kernel() -> Result<Duration> {
    let micros = getrusage(UsageWho::RUSAGE_SELF)?
        .system_time()
        .num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros)?))
}

/// This thread and those it starts are on one processor until this is dropped: whether a message wakes a processor or
/// finds it awake is chance, and costs more than anything that is measured here.
pub(super) struct OneProcessor(CpuSet);

impl OneProcessor {
    pub(super) fn begin() -> Result<Self> {
        let this = Pid::from_raw(0);
        let before = sched_getaffinity(this)?;
        let first = (0..CpuSet::count()).find(|cpu| before.is_set(*cpu) == Ok(true));
        let mut one = CpuSet::new();
        one.set(first.context("no processor to run on")?)?;
        sched_setaffinity(this, &one)?;
        Ok(Self(before))
    }
}

impl Drop for OneProcessor {
    fn drop(&mut self) {
        // What could be set before can be set again, and else the next measurement is slower.
        let _ = sched_setaffinity(Pid::from_raw(0), &self.0);
    }
}
