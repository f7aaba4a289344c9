//! A host of its own for each test: a network and a mount namespace that the real host never
//! sees, with a client outside, and containers that are threads in namespaces.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test binary uses its own part of this; a test may panic"
)]

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::{
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket,
            sockopt,
        },
        time::{TimeVal, TimeValLike},
    },
};
use shoal_network::{
    ContainerEndpoints, Datapath, Endpoint, NetworkConfig, NetworkState, Protocol, Published,
    PublishedTarget, Vip,
};
use tempfile::TempDir;

pub(crate) mod cluster;

pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct World {
    pub(crate) config: NetworkConfig,
    /// The machine outside that the host's default route leads to.
    pub(crate) client: Container,
}

/// Runs `test` in a world of its own.
pub(crate) fn in_world<F: Future<Output = ()>>(test: impl FnOnce(World) -> F + Send) {
    apart(async |dir| {
        let world = World::new(dir.path());
        let _removal = Removal(world.config.clone());
        test(world).await;
    });
}

/// Runs `test` in a network and a mount namespace of its own, with a directory for its files.
pub(crate) fn apart(test: impl AsyncFnOnce(&TempDir) + Send) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "needs root: run `sudo -E cargo test -p shoal-network`"
    );
    thread::scope(|scope| {
        let result = scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
                let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
                // The threads of the runtime inherit this thread's namespaces.
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    // Goes last: while namespaces are pinned in it, it cannot be removed.
                    let dir = TempDir::new().unwrap();
                    test(&dir).await;
                });
                runtime.shutdown_timeout(Duration::from_secs(1));
            })
            .join();
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Also after a failure nothing stays mounted: pins would keep namespaces alive.
struct Removal(NetworkConfig);

impl Drop for Removal {
    fn drop(&mut self) {
        let config = self.0.clone();
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(Datapath::remove_all(config))
        });
    }
}

impl World {
    fn new(dir: &Path) -> Self {
        let client = Container::new();
        sh("ip link set lo up");
        let ns = format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&client.ns)
        );
        // Passed through the shell by descriptor, so that no name is left anywhere.
        let ns = ns.replace("self", &std::process::id().to_string());
        sh(&format!(
            "ip link add eth0 mtu 1400 type veth peer name out0 mtu 1400 netns {ns}"
        ));
        sh(&format!(
            "ip addr add {HOST}/24 dev eth0; ip link set eth0 up; ip route add default via {CLIENT}"
        ));
        client.run(|| {
            sh(&format!(
                "ip link set lo up; ip addr add {CLIENT}/24 dev out0; ip link set out0 up"
            ));
        });
        let config = NetworkConfig {
            exec_root: dir.to_owned(),
            instance: "test1".to_owned(),
            uplink_pool: "169.254.128.0/18".parse().unwrap(),
            dns_upstreams: Vec::new(),
        };
        Self { config, client }
    }

    pub(crate) async fn open(&self) -> Datapath {
        Datapath::open(self.config.clone()).await.unwrap()
    }

    pub(crate) async fn attached(
        &self,
        datapath: &Datapath,
        endpoints: &[(&str, &str)],
    ) -> Container {
        let container = Container::new();
        container.attach(datapath, endpoints).await;
        container
    }
}

/// A network namespace that lives as long as this.
pub(crate) struct Container {
    pub(crate) ns: OwnedFd,
}

impl Container {
    pub(crate) fn new() -> Self {
        let ns = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
        });
        Self {
            ns: ns.join().unwrap(),
        }
    }

    pub(crate) async fn attach(&self, datapath: &Datapath, endpoints: &[(&str, &str)]) {
        datapath
            .attach(self.ns.try_clone().unwrap(), group(endpoints))
            .await
            .unwrap();
    }

    /// Runs in the namespace, on a thread of its own.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let ns = self.ns.as_fd();
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(ns, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A server on `port` of TCP and UDP, for both versions, that says its name and whom it sees.
    pub(crate) fn serve(&self, name: &str, port: u16) -> Server {
        let stop = Arc::new(AtomicBool::new(false));
        let (tcp, udp) = self.run(|| {
            let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
            (
                TcpListener::bind(any).unwrap(),
                UdpSocket::bind(any).unwrap(),
            )
        });
        let tick = TimeVal::milliseconds(50);
        setsockopt(&tcp, sockopt::ReceiveTimeout, &tick).unwrap();
        setsockopt(&udp, sockopt::ReceiveTimeout, &tick).unwrap();
        let mut threads = Vec::new();
        let (flag, me) = (stop.clone(), name.to_owned());
        threads.push(thread::spawn(move || {
            let mut children = Vec::new();
            while !flag.load(Ordering::Relaxed) {
                if let Ok((stream, peer)) = tcp.accept() {
                    let (flag, me) = (flag.clone(), me.clone());
                    children.push(thread::spawn(move || {
                        echo(stream, &format!("{me} {}", peer.ip().to_canonical()), &flag);
                    }));
                }
            }
            for child in children {
                child.join().unwrap();
            }
        }));
        let (flag, me) = (stop.clone(), name.to_owned());
        threads.push(thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !flag.load(Ordering::Relaxed) {
                if let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                    drop(udp.send_to(
                        format!("{me} {}", peer.ip().to_canonical()).as_bytes(),
                        peer,
                    ));
                }
            }
        }));
        Server { stop, threads }
    }

    /// One question over TCP: the server's name and the address it saw.
    pub(crate) fn tcp(&self, addr: Ipv4Addr, port: u16) -> std::io::Result<(String, Ipv4Addr)> {
        Ok(self.run(|| Connection::open(addr, port))?.greeting)
    }

    pub(crate) fn udp(&self, addr: Ipv4Addr, port: u16) -> std::io::Result<(String, Ipv4Addr)> {
        self.run(|| udp(addr, port))
    }

    /// Whether the address answers a ping, by a raw socket of the `ping` group or `ping` itself.
    pub(crate) fn pings(&self, addr: Ipv4Addr) -> bool {
        self.run(|| ping(addr))
    }
}

pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

/// A connection that stays open.
pub(crate) struct Connection {
    stream: TcpStream,
    pub(crate) greeting: (String, Ipv4Addr),
}

impl Connection {
    pub(crate) fn open(addr: Ipv4Addr, port: u16) -> std::io::Result<Self> {
        Self::over(TcpStream::connect_timeout(&(addr, port).into(), PATIENCE)?)
    }

    /// From a port of the caller's choice.
    pub(crate) fn open_from(from: u16, addr: Ipv4Addr, port: u16) -> std::io::Result<Self> {
        let socket = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        bind(
            socket.as_raw_fd(),
            &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, from)),
        )?;
        setsockopt(&socket, sockopt::SendTimeout, &TimeVal::seconds(5))?;
        connect(
            socket.as_raw_fd(),
            &SockaddrIn::from(SocketAddrV4::new(addr, port)),
        )?;
        Self::over(socket.into())
    }

    fn over(stream: TcpStream) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut line = String::new();
        BufReader::new(stream.try_clone()?).read_line(&mut line)?;
        Ok(Self {
            greeting: parse(&line),
            stream,
        })
    }

    /// One round trip on the open connection.
    pub(crate) fn say(&mut self) -> std::io::Result<()> {
        self.stream.write_all(b"x")?;
        self.stream.read_exact(&mut [0])
    }
}

pub(crate) fn udp(addr: Ipv4Addr, port: u16) -> std::io::Result<(String, Ipv4Addr)> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect((addr, port))?;
    socket.send(b"x")?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer)?;
    Ok(parse(str::from_utf8(&buffer[..length]).unwrap()))
}

fn parse(line: &str) -> (String, Ipv4Addr) {
    let (name, addr) = line.trim().split_once(' ').expect("a greeting");
    (name.to_owned(), addr.parse().unwrap())
}

fn echo(mut stream: TcpStream, greeting: &str, stop: &AtomicBool) {
    stream
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    if writeln!(stream, "{greeting}").is_err() {
        return;
    }
    let mut byte = [0];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut byte) {
            Ok(1) => drop(stream.write_all(&byte)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            _ => return,
        }
    }
}

/// How much [`transfer`] sends each way.
const BULK: usize = 1 << 20;

/// A server that takes [`BULK`] bytes of every connection and sends them back.
pub(crate) struct Mirror(Arc<AtomicBool>, Option<thread::JoinHandle<()>>);

impl Mirror {
    pub(crate) fn start(on: &Container, port: u16) -> Self {
        let listener = on.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        setsockopt(
            &listener,
            sockopt::ReceiveTimeout,
            &TimeVal::milliseconds(50),
        )
        .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = thread::spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else {
                    continue;
                };
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut bytes = vec![0; BULK];
                if stream.read_exact(&mut bytes).is_ok() {
                    drop(stream.write_all(&bytes));
                }
            }
        });
        Self(stop, Some(thread))
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        drop(self.1.take().map(thread::JoinHandle::join));
    }
}

/// A server that takes whatever comes.
pub(crate) struct Sink(Arc<AtomicBool>, Option<thread::JoinHandle<()>>);

impl Sink {
    pub(crate) fn start(on: &Container, port: u16) -> Self {
        let listener = on.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        setsockopt(
            &listener,
            sockopt::ReceiveTimeout,
            &TimeVal::milliseconds(50),
        )
        .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            while !flag.load(Ordering::Relaxed) {
                if let Ok((mut stream, _)) = listener.accept() {
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
                }
            }
        });
        Self(stop, Some(thread))
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        drop(self.1.take().map(thread::JoinHandle::join));
    }
}

/// Sends to a [`Sink`] for some time; how much, in Gbit/s.
pub(crate) fn stream(addr: Ipv4Addr, port: u16, time: Duration) -> f64 {
    let mut stream = TcpStream::connect_timeout(&(addr, port).into(), PATIENCE).unwrap();
    let bytes = vec![42; 128 << 10];
    let (start, mut sent) = (Instant::now(), 0_u32);
    while start.elapsed() < time {
        stream.write_all(&bytes).unwrap();
        sent += 1;
    }
    f64::from(sent) * 128.0 * 1024.0 * 8.0 / 1e9 / start.elapsed().as_secs_f64()
}

/// Sends [`BULK`] bytes to a [`Mirror`] and wants them back.
pub(crate) fn transfer(addr: Ipv4Addr, port: u16) {
    let mut stream = TcpStream::connect_timeout(&(addr, port).into(), PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let sent: Vec<u8> = (0..=250).cycle().take(BULK).collect();
    stream.write_all(&sent).unwrap();
    let mut got = vec![0; BULK];
    stream.read_exact(&mut got).unwrap();
    assert!(got == sent, "other bytes came back from {addr}");
}

pub(crate) fn ping(addr: Ipv4Addr) -> bool {
    ping_of(addr, 1)
}

/// ICMP echo by a ping socket (icmp(7)), so that no program is needed.
pub(crate) fn ping_of(addr: Ipv4Addr, size: usize) -> bool {
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        nix::sys::socket::SockProtocol::Icmp,
    )
    .unwrap();
    let socket = UdpSocket::from(socket);
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    // Echo request; the kernel fills in the checksum and the id.
    let mut request = vec![8, 0, 0, 0, 0, 0, 0, 1];
    request.resize(8 + size, 42);
    if socket.connect((addr, 0)).is_err() || socket.send(&request).is_err() {
        return false;
    }
    let mut buffer = vec![0; 1 << 16];
    socket
        .recv(&mut buffer)
        .is_ok_and(|length| length == request.len() && buffer[0] == 0)
}

/// Runs a shell line in the calling thread's namespaces.
pub(crate) fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{line}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

pub(crate) fn group(endpoints: &[(&str, &str)]) -> ContainerEndpoints {
    let endpoint = |(network, addr): &(&str, &str)| Endpoint {
        network: (*network).to_owned(),
        addr: ip(addr),
    };
    ContainerEndpoints {
        endpoints: endpoints.iter().map(endpoint).collect(),
        ..ContainerEndpoints::default()
    }
}

pub(crate) fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// A network whose gateway is the subnet's first address.
pub(crate) fn network(id: &str, subnet: &str) -> NetworkState {
    let subnet: shoal_network::Ipv4Net = subnet.parse().unwrap();
    NetworkState {
        id: id.to_owned(),
        subnet,
        gateway: subnet.nth(1).unwrap(),
        internal: false,
        ingress: false,
        mtu: None,
        ipv6: true,
        vips: Vec::new(),
        published: Vec::new(),
        names: BTreeMap::new(),
        overlay: None,
    }
}

pub(crate) fn vip(addr: &str, backends: &[&str]) -> Vip {
    Vip {
        addr: ip(addr),
        backends: backends.iter().map(|addr| ip(addr)).collect(),
    }
}

pub(crate) fn publish(port: u16, vip: &str, target: u16) -> Published {
    let to = PublishedTarget::Vip {
        addr: ip(vip),
        port: target,
    };
    Published {
        protocol: Protocol::Tcp,
        host_ip: None,
        port,
        to,
    }
}

/// Applies, and wants neither errors nor differences afterwards.
pub(crate) async fn apply(datapath: &Datapath, desired: &[NetworkState]) {
    let errors = datapath.apply(desired.to_vec()).await;
    assert!(errors.is_empty(), "{}", texts(&errors));
    let differences = datapath.diff().await;
    assert_eq!(differences, [], "differences right after apply");
}

/// Errors with their causes.
pub(crate) fn texts<E: std::error::Error>(errors: &[E]) -> String {
    let mut text = String::new();
    for error in errors {
        let mut cause: Option<&dyn std::error::Error> = Some(error);
        while let Some(error) = cause {
            text = format!("{text}{error}: ");
            cause = error.source();
        }
        text.push('\n');
    }
    text
}

/// Waits until `holds`, and says what it was waiting for when it does not come.
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
