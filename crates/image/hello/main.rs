//! The web server of the built-in image: answers with its host, task, node and the client's
//! address. Only the standard library; runs as process 1 of an otherwise empty container.
//!
//! `/` and any other path: who answers. `/health`: ok. `/slow?ms=N`: the same after a wait (at
//! most a minute). `/bytes?n=N`: N bytes (at most 1 GiB). `HELLO_PORT` moves it off port 80.
//! SIGTERM and SIGINT: no new connections, requests in flight are finished, exit code 0.

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    process::ExitCode,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Connections served at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 1024;
/// A thread needs little: buffers are on the heap.
const STACK: usize = 64 * 1024;
/// Bytes of a request's head.
const HEAD_MAX: u64 = 16 * 1024;
/// Bytes of a request's body that are read and thrown away to keep a connection.
const BODY_MAX: u64 = 64 * 1024 * 1024;
/// An idle connection is closed after this time.
const IDLE: Duration = Duration::from_secs(75);
/// After the stop signal a connection that waits for this long is closed. A client that asks more often
/// is answered once more and told to go, so that no request of its meets a connection being closed.
const PARTING: Duration = Duration::from_millis(200);
const SLOW_MAX: u64 = 60_000;
const BYTES_MAX: u64 = 1 << 30;
/// How long requests in flight may take after the stop signal: less than the ten seconds after
/// which Docker kills.
const DRAIN: Duration = Duration::from_secs(8);

/// The few calls that std does not offer; std links the C library anyway.
mod sys {
    pub const SIGINT: i32 = 2;
    pub const SIGPIPE: i32 = 13;
    pub const SIGTERM: i32 = 15;
    pub const SIG_IGN: usize = 1;
    pub const POLLIN: i16 = 1;

    #[repr(C)]
    pub struct PollFd {
        pub fd: i32,
        pub events: i16,
        pub revents: i16,
    }

    unsafe extern "C" {
        pub fn signal(signum: i32, handler: usize) -> usize;
        pub fn poll(fds: *mut PollFd, count: u64, timeout_ms: i32) -> i32;
        pub fn pipe(fds: *mut i32) -> i32;
        pub fn write(fd: i32, data: *const u8, count: usize) -> isize;
        pub fn gethostname(name: *mut u8, length: usize) -> i32;
    }
}

static STOPPING: AtomicBool = AtomicBool::new(false);
/// The write end of a pipe that wakes whoever polls; -1 before it is made.
static WAKE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_signal(_signal: i32) {
    STOPPING.store(true, Ordering::SeqCst);
    // SAFETY: write(2) is async-signal-safe; the byte lives for the call.
    unsafe { sys::write(WAKE.load(Ordering::SeqCst), b"x".as_ptr(), 1) };
}

/// Counts connections, and among them those with a request in hand.
#[derive(Default)]
struct Gauge {
    count: Mutex<usize>,
    changed: Condvar,
}

impl Gauge {
    fn enter(self: &Arc<Self>, most: usize) -> Entered {
        let mut count = self.count.lock().unwrap_or_else(|e| e.into_inner());
        while *count >= most {
            count = self.changed.wait(count).unwrap_or_else(|e| e.into_inner());
        }
        *count += 1;
        Entered(Arc::clone(self))
    }

    /// Waits until nobody is in, or `deadline`.
    fn wait_empty(&self, deadline: Instant) -> bool {
        let mut count = self.count.lock().unwrap_or_else(|e| e.into_inner());
        while *count > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            count = self.changed.wait_timeout(count, left).unwrap_or_else(|e| e.into_inner()).0;
        }
        true
    }
}

struct Entered(Arc<Gauge>);

impl Drop for Entered {
    fn drop(&mut self) {
        *self.0.count.lock().unwrap_or_else(|e| e.into_inner()) -= 1;
        self.0.changed.notify_all();
    }
}

fn main() -> ExitCode {
    let port = match env::var("HELLO_PORT").map(|text| text.parse::<u16>()) {
        Err(_) => 80,
        Ok(Ok(port)) => port,
        Ok(Err(_)) => {
            eprintln!("HELLO_PORT is not a port number");
            return ExitCode::from(2);
        }
    };
    let mut pipe = [-1_i32; 2];
    // SAFETY: `pipe` has room for two descriptors; the handler only stores and writes.
    unsafe {
        if sys::pipe(pipe.as_mut_ptr()) != 0 {
            eprintln!("pipe: {}", io::Error::last_os_error());
            return ExitCode::FAILURE;
        }
        WAKE.store(pipe[1], Ordering::SeqCst);
        // Process 1 gets only signals it has a handler for.
        sys::signal(sys::SIGTERM, on_signal as *const () as usize);
        sys::signal(sys::SIGINT, on_signal as *const () as usize);
        sys::signal(sys::SIGPIPE, sys::SIG_IGN);
    }
    // The unspecified IPv6 address takes IPv4 too, unless IPv6 is off here.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)));
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("listen on port {port}: {error}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = listener.set_nonblocking(true) {
        eprintln!("listen on port {port}: {error}");
        return ExitCode::FAILURE;
    }
    let bound = listener.local_addr().map_or(port, |address| address.port());
    log(&format!("hello: listening on port {bound}"));

    let connections = Arc::new(Gauge::default());
    while !STOPPING.load(Ordering::SeqCst) {
        if !wait_readable(listener.as_raw_fd(), pipe[0], None) {
            continue;
        }
        let place = connections.enter(CONNECTIONS);
        match listener.accept() {
            Ok((stream, peer)) => {
                let wake = pipe[0];
                // A thread that cannot be started drops the stream and its place.
                let _ = thread::Builder::new().stack_size(STACK).spawn(move || {
                    let _place = place;
                    serve(stream, peer, wake);
                });
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Out of descriptors or a client that is gone already: others may still be served.
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
    // What the kernel accepted for us but nobody took yet is still answered.
    while let Ok((stream, peer)) = listener.accept() {
        let place = connections.enter(usize::MAX);
        let wake = pipe[0];
        let _ = thread::Builder::new().stack_size(STACK).spawn(move || {
            let _place = place;
            serve(stream, peer, wake);
        });
    }
    drop(listener);
    let drained = connections.wait_empty(Instant::now() + DRAIN);
    log(if drained { "hello: stopped" } else { "hello: stopped with requests unanswered" });
    ExitCode::SUCCESS
}

/// Waits for `fd`; false when the stop signal came or the time was up first.
fn wait_readable(fd: i32, wake: i32, timeout: Option<Duration>) -> bool {
    let mut fds = [
        sys::PollFd { fd, events: sys::POLLIN, revents: 0 },
        sys::PollFd { fd: wake, events: sys::POLLIN, revents: 0 },
    ];
    let timeout = timeout.map_or(-1, |time| i32::try_from(time.as_millis()).unwrap_or(i32::MAX));
    // SAFETY: the array outlives the call and its length is given.
    let ready = unsafe { sys::poll(fds.as_mut_ptr(), fds.len() as u64, timeout) };
    ready > 0 && fds[0].revents != 0
}

struct Request {
    method: String,
    target: String,
    keep_alive: bool,
    body: Body,
    expects_continue: bool,
}

enum Body {
    None,
    Length(u64),
    Chunked,
}

fn serve(stream: TcpStream, peer: SocketAddr, wake: i32) {
    let client = SocketAddr::new(plain_address(peer.ip()), peer.port());
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_nodelay(true);
    let _ = stream.set_read_timeout(Some(IDLE));
    let _ = stream.set_write_timeout(Some(IDLE));
    let mut reader = BufReader::with_capacity(8 * 1024, &stream);
    loop {
        if reader.buffer().is_empty() {
            let fd = stream.as_raw_fd();
            let asked = (!STOPPING.load(Ordering::SeqCst) && wait_readable(fd, wake, Some(IDLE)))
                || (STOPPING.load(Ordering::SeqCst) && wait_readable(fd, -1, Some(PARTING)));
            if !asked {
                return;
            }
        }
        let request = match read_request(&mut reader) {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let _ = (&stream).write_all(
                    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 12\r\nConnection: close\r\n\r\nbad request\n",
                );
                log(&format!("- - 400 client={client}"));
                return;
            }
            Err(_) => return,
        };
        if request.expects_continue
            && (&stream).write_all(b"HTTP/1.1 100 Continue\r\n\r\n").is_err()
        {
            return;
        }
        if skip_body(&mut reader, &request.body).is_err() {
            return;
        }
        let alive = answer(&stream, &request, client);
        if !matches!(alive, Ok(true)) {
            return;
        }
    }
}

/// Reads one head. `None` when the client closed; `InvalidData` for what is no HTTP request.
fn read_request(reader: &mut BufReader<&TcpStream>) -> io::Result<Option<Request>> {
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let mut head = reader.take(HEAD_MAX);
    let mut line = Vec::new();
    // A stray line end between requests is allowed for (RFC 9112 §2.2).
    for _ in 0..2 {
        line.clear();
        if head.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        if line != b"\r\n" && line != b"\n" {
            break;
        }
    }
    let text = std::str::from_utf8(&line).map_err(|_| bad())?;
    let text = text.strip_suffix('\n').ok_or_else(bad)?;
    let mut words = text.trim_end_matches('\r').split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(bad());
    };
    let known = !method.is_empty() && method.bytes().all(|b| b.is_ascii_alphabetic() || b == b'-');
    let target_ok = target.starts_with('/') || target == "*" || target.starts_with("http://");
    if !known || !target_ok || !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
        return Err(bad());
    }
    let mut request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        keep_alive: version == "HTTP/1.1",
        body: Body::None,
        expects_continue: false,
    };
    let mut length = None;
    let mut chunked = false;
    let mut hosts = 0;
    loop {
        line.clear();
        if head.read_until(b'\n', &mut line)? == 0 || !line.ends_with(b"\n") {
            return Err(bad());
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches(['\r', '\n']);
        if text.is_empty() {
            break;
        }
        let (name, value) = text.split_once(':').ok_or_else(bad)?;
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(bad());
        }
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "host" => hosts += 1,
            "content-length" => {
                let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
                let value: u64 = value.parse().ok().filter(|_| digits).ok_or_else(bad)?;
                // Two lengths that differ are how requests are smuggled past proxies.
                if length.replace(value).is_some_and(|before| before != value) {
                    return Err(bad());
                }
            }
            "transfer-encoding" if value.eq_ignore_ascii_case("chunked") && !chunked => {
                chunked = true;
            }
            "transfer-encoding" => return Err(bad()),
            "connection" => {
                for option in value.split(',').map(str::trim) {
                    if option.eq_ignore_ascii_case("close") {
                        request.keep_alive = false;
                    } else if option.eq_ignore_ascii_case("keep-alive") {
                        request.keep_alive = true;
                    }
                }
            }
            "expect" => request.expects_continue = value.eq_ignore_ascii_case("100-continue"),
            _ => {}
        }
    }
    // A missing host is let pass: checks by hand leave it out, and nothing here depends on it.
    if hosts > 1 {
        return Err(bad());
    }
    request.body = match (chunked, length) {
        (true, Some(_)) => return Err(bad()),
        (true, None) => Body::Chunked,
        (false, Some(0) | None) => Body::None,
        (false, Some(length)) if length <= BODY_MAX => Body::Length(length),
        (false, Some(_)) => return Err(bad()),
    };
    Ok(Some(request))
}

fn skip_body(reader: &mut BufReader<&TcpStream>, body: &Body) -> io::Result<()> {
    let end = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let skip = |reader: &mut BufReader<&TcpStream>, length: u64| -> io::Result<()> {
        let skipped = io::copy(&mut reader.take(length), &mut io::sink())?;
        if skipped == length { Ok(()) } else { Err(end()) }
    };
    match *body {
        Body::None => Ok(()),
        Body::Length(length) => skip(reader, length),
        Body::Chunked => {
            let mut total = 0;
            loop {
                let mut line = Vec::new();
                reader.take(1024).read_until(b'\n', &mut line)?;
                let text = String::from_utf8_lossy(&line);
                let size = text.trim().split(';').next().unwrap_or("");
                let size = u64::from_str_radix(size, 16).map_err(|_| end())?;
                total += size;
                if total > BODY_MAX {
                    return Err(end());
                }
                if size == 0 {
                    break;
                }
                skip(reader, size + 2)?;
            }
            // Trailers, up to the empty line.
            for _ in 0..64 {
                let mut line = Vec::new();
                reader.take(1024).read_until(b'\n', &mut line)?;
                if matches!(line.as_slice(), b"\r\n" | b"\n") {
                    return Ok(());
                }
                if line.is_empty() {
                    return Err(end());
                }
            }
            Err(end())
        }
    }
}

/// Answers; true when the connection can take another request.
fn answer(stream: &TcpStream, request: &Request, client: SocketAddr) -> io::Result<bool> {
    let path_and_query = match request.target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => request.target.as_str(),
    };
    let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
    let number = |key: &str| -> Option<u64> {
        let pair = query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        pair?.parse().ok()
    };
    let mut out = io::BufWriter::with_capacity(64 * 1024, stream);
    let is_head = request.method == "HEAD";
    let (status, length, body) = match path {
        "/health" => ("200 OK", 3, Some("ok\n".to_owned())),
        "/bytes" => match number("n") {
            Some(n) if n <= BYTES_MAX => ("200 OK", n, None),
            _ => {
                let text = format!("/bytes?n=N needs a number up to {BYTES_MAX}\n");
                ("400 Bad Request", text.len() as u64, Some(text))
            }
        },
        _ => {
            if path == "/slow" {
                thread::sleep(Duration::from_millis(number("ms").unwrap_or(1000).min(SLOW_MAX)));
            }
            let text = who(client, path);
            ("200 OK", text.len() as u64, Some(text))
        }
    };
    // Asked again after a wait: a connection that survives the stop signal would only be cut.
    let keep = request.keep_alive && !STOPPING.load(Ordering::SeqCst);
    let connection = if keep { "keep-alive" } else { "close" };
    let kind = if body.is_some() { "text/plain; charset=utf-8" } else { "application/octet-stream" };
    write!(
        out,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n"
    )?;
    if !is_head {
        match body {
            Some(text) => out.write_all(text.as_bytes())?,
            None => {
                let block = [b'.'; 16 * 1024];
                let mut left = length;
                while left > 0 {
                    let n = usize::try_from(left).unwrap_or(block.len()).min(block.len());
                    out.write_all(&block[..n])?;
                    left -= n as u64;
                }
            }
        }
    }
    out.flush()?;
    let code = &status[..3];
    log(&format!("{} {} {code} client={client}", request.method, request.target));
    Ok(keep)
}

fn who(client: SocketAddr, path: &str) -> String {
    let variable = |name| env::var(name).ok().filter(|v| !v.is_empty()).unwrap_or("-".to_owned());
    format!(
        "hostname: {}\ntask: {}\nnode: {}\nclient: {client}\npath: {path}\n",
        hostname(),
        variable("SHOAL_TASK_NAME"),
        variable("SHOAL_NODE_HOSTNAME"),
    )
}

fn hostname() -> String {
    let mut name = [0_u8; 256];
    // SAFETY: the buffer and its length belong together; the last byte stays zero.
    let kernel = unsafe { sys::gethostname(name.as_mut_ptr(), name.len() - 1) } == 0;
    let end = name.iter().position(|&b| b == 0).unwrap_or(0);
    if kernel && end > 0 {
        return String::from_utf8_lossy(&name[..end]).into_owned();
    }
    let file = fs::read_to_string("/etc/hostname").unwrap_or_default();
    if file.trim().is_empty() { "-".to_owned() } else { file.trim().to_owned() }
}

/// An IPv4 client of a socket for both is seen as `::ffff:1.2.3.4`.
fn plain_address(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// One line, at once; a reader that is gone is no reason to stop serving.
fn log(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
