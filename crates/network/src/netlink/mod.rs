//! Netlink sockets. A socket belongs to the network namespace it was opened in, so whoever holds
//! it can work there from any thread.
//!
//! The kernel handles a batch while `sendmsg` runs, so when it returns every answer is already in
//! the receive queue: nothing here ever waits.

mod conntrack;
mod ip;
mod message;
pub(crate) mod nft;
pub(crate) mod route;
pub(crate) mod rule;

use std::{
    fmt, io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
        setsockopt, socket, sockopt,
    },
};

pub(crate) use ip::{Net, octets};
use message::HEADER;
pub(crate) use message::{Attrs, Batch, Received};

use crate::sys;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Flag of an error message: the kernel's own message is not repeated in it (`NETLINK_CAP_ACK`).
const NLM_F_CAPPED: u16 = 0x100;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// A dump answer holds at most 32 KiB; larger reads are never needed (netlink(7), `NLMSG_GOODSIZE`).
const RECEIVE: usize = 64 << 10;
/// 10,000 services with three backends each are one message of 1.6 MB.
const SEND_BUFFER: usize = 64 << 20;
/// Every refused message of a batch is answered; with the default a large bad batch would end in
/// ENOBUFS instead of an error that says what is wrong.
const RECEIVE_BUFFER: usize = 16 << 20;
/// How often a dump is begun again because the kernel's tables changed under it.
const DUMP_TRIES: usize = 8;

/// The kernel refused something: what it was about, why, and the kernel's own words if it has any.
#[derive(Debug)]
pub struct KernelError {
    object: String,
    errno: Errno,
    text: Option<String>,
}

impl KernelError {
    pub(crate) fn new(object: impl Into<String>, error: &io::Error) -> Self {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        Self {
            object: object.into(),
            errno,
            text: None,
        }
    }

    pub(crate) fn errno(&self) -> Errno {
        self.errno
    }
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.errno.desc())?;
        self.text.iter().try_for_each(|text| write!(f, " ({text})"))
    }
}

impl std::error::Error for KernelError {}

/// A netlink socket in one network namespace.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
    /// Batches sent that may have changed something.
    pub(crate) transactions: u64,
}

impl Socket {
    /// Opens a socket for links, addresses and routes in the calling thread's namespace.
    pub(crate) fn route() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    /// Opens a socket for `nf_tables` in the calling thread's namespace.
    pub(crate) fn netfilter() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    fn open(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        sys::enable_netlink_errors(&fd);
        // Without CAP_NET_ADMIN in the initial user namespace the defaults stay, and very large
        // batches fail with EMSGSIZE, which names the batch.
        let _ = setsockopt(&fd, sockopt::SndBufForce, &SEND_BUFFER);
        let _ = setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER);
        Ok(Self {
            fd,
            sequence: 0,
            buffer: vec![0; RECEIVE],
            transactions: 0,
        })
    }

    /// Sends the batch and returns what the kernel refused. Messages stand alone in rtnetlink; an
    /// `nf_tables` batch is one transaction, of which nothing happened if anything was refused.
    pub(crate) fn transact(&mut self, batch: Batch) -> Result<(), Vec<KernelError>> {
        if batch.is_empty() {
            return Ok(());
        }
        self.transactions += 1;
        let (_, errors) = self.exchange(batch).map_err(|error| vec![error])?;
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors)
        }
    }

    /// Sends one question and returns the answers; with `NLM_F_DUMP` among its flags, all of them.
    pub(crate) fn query(&mut self, ask: impl Fn(&mut Batch)) -> Result<Vec<Received>, KernelError> {
        let mut tries = 0;
        loop {
            let mut batch = Batch::default();
            ask(&mut batch);
            match self.exchange(batch) {
                Ok((answers, errors)) => {
                    return errors.into_iter().next().map_or(Ok(answers), Err);
                }
                Err(error) if error.errno == Errno::EINTR && tries < DUMP_TRIES => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    fn exchange(
        &mut self,
        mut batch: Batch,
    ) -> Result<(Vec<Received>, Vec<KernelError>), KernelError> {
        batch.close();
        let first = self.sequence.wrapping_add(1);
        let count = u32::try_from(batch.labels.len()).expect("fewer than 2^32 messages");
        self.sequence = self.sequence.wrapping_add(count);
        number(&mut batch.bytes, first);
        let whole = |errno| KernelError {
            object: batch
                .labels
                .iter()
                .find(|label| !label.is_empty())
                .map_or_else(String::new, ToString::to_string),
            errno,
            text: None,
        };
        let kernel = NetlinkAddr::new(0, 0);
        sendto(
            self.fd.as_raw_fd(),
            &batch.bytes,
            &kernel,
            MsgFlags::empty(),
        )
        .map_err(whole)?;

        let (mut answers, mut errors, mut interrupted) = (Vec::new(), Vec::new(), false);
        loop {
            let length = match recv(
                self.fd.as_raw_fd(),
                &mut self.buffer,
                MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(whole(errno)),
            };
            for (header, payload) in messages(&self.buffer[..length]) {
                let index = header.sequence.wrapping_sub(first);
                if index >= count {
                    continue;
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match header.kind {
                    NLMSG_DONE => {}
                    NLMSG_ERROR => {
                        let label = &batch.labels[index as usize];
                        errors.extend(refusal(label, header.flags, payload));
                    }
                    kind => answers.push(Received {
                        kind,
                        payload: payload.to_vec(),
                    }),
                }
            }
        }
        if interrupted {
            Err(whole(Errno::EINTR))
        } else {
            Ok((answers, errors))
        }
    }
}

struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let header = Header {
            kind: u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?),
            flags: u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?),
            sequence: u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?),
        };
        let payload = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((header, payload))
    })
}

/// Gives the messages in `bytes` consecutive sequence numbers from `first` on.
fn number(bytes: &mut [u8], first: u32) {
    let (mut at, mut sequence) = (0, first);
    while let Some(length) = bytes.get(at..at + 4).and_then(|b| b.try_into().ok()) {
        bytes[at + 8..at + 12].copy_from_slice(&sequence.to_ne_bytes());
        sequence = sequence.wrapping_add(1);
        at += u32::from_ne_bytes(length) as usize;
    }
}

fn refusal(label: &str, flags: u16, payload: &[u8]) -> Option<KernelError> {
    let code = i32::from_ne_bytes(payload.get(..4)?.try_into().ok()?);
    if code == 0 {
        return None;
    }
    // After the code comes the header of our message, and all of it unless the answer is capped.
    let ours = u32::from_ne_bytes(payload.get(4..8)?.try_into().ok()?) as usize;
    let skip = if flags & NLM_F_CAPPED != 0 {
        HEADER
    } else {
        ours.next_multiple_of(4)
    };
    let text = payload
        .get(4 + skip..)
        .and_then(|rest| Attrs::of(rest).text(NLMSGERR_ATTR_MSG));
    Some(KernelError {
        object: label.to_owned(),
        errno: Errno::from_raw(-code),
        text: text.map(str::to_owned),
    })
}
