//! Netlink messages: a batch of them being written, and the attributes of those received.
//!
//! Layout as in netlink(7): a 16-byte header in host byte order, a fixed part of the family, then
//! attributes, all aligned to four bytes.

use std::borrow::Cow;

pub(super) const HEADER: usize = 16;
const ATTR_HEADER: usize = 4;
/// Upper bits of an attribute's type: nested, and network byte order (linux/netlink.h).
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;

/// Messages that go to the kernel in one `sendmsg`. Each has a label that says what it is about,
/// for the error if the kernel refuses it.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(super) bytes: Vec<u8>,
    /// Where the message being written starts.
    open: usize,
    pub(super) labels: Vec<Cow<'static, str>>,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Starts a message; the one before it is complete from here on.
    pub(crate) fn message(
        &mut self,
        label: impl Into<Cow<'static, str>>,
        kind: u16,
        flags: u16,
        fixed: &[u8],
    ) -> &mut Self {
        self.close();
        self.open = self.bytes.len();
        self.labels.push(label.into());
        // Length and sequence number are filled in by `close` and by the socket.
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        self.bytes.extend_from_slice(fixed);
        self.align();
        self
    }

    pub(crate) fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(ATTR_HEADER + value.len()).expect("an attribute under 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.align();
        self
    }

    /// A 32-bit value in host byte order, as rtnetlink wants it.
    pub(crate) fn attr_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// A 32-bit value in network byte order, as `nf_tables` wants it.
    pub(crate) fn attr_be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// A string with its terminating zero.
    pub(crate) fn attr_str(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    pub(crate) fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) -> &mut Self {
        self.nest_with(kind | NLA_F_NESTED, &[], inside)
    }

    /// A nested attribute that starts with a fixed part, as `VETH_INFO_PEER` does.
    pub(crate) fn nest_with(
        &mut self,
        kind: u16,
        fixed: &[u8],
        inside: impl FnOnce(&mut Self),
    ) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(fixed);
        self.align();
        inside(self);
        let length = u16::try_from(self.bytes.len() - start).expect("a nest under 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    pub(super) fn close(&mut self) {
        if self.labels.is_empty() {
            return;
        }
        let length = u32::try_from(self.bytes.len() - self.open).expect("a message under 4 GiB");
        self.bytes[self.open..self.open + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// One message from the kernel.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) kind: u16,
    pub(crate) payload: Vec<u8>,
}

impl Received {
    /// The attributes after a fixed part of `fixed` bytes.
    pub(crate) fn attrs(&self, fixed: usize) -> Attrs<'_> {
        Attrs {
            rest: self
                .payload
                .get(fixed.next_multiple_of(4)..)
                .unwrap_or_default(),
        }
    }
}

/// Attributes in their order, by type and value; what follows a malformed one is left out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attrs<'a> {
    rest: &'a [u8],
}

impl<'a> Attrs<'a> {
    pub(crate) fn of(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter()
            .find(|(found, _)| *found == kind)
            .map(|(_, value)| value)
    }

    pub(crate) fn nested(self, kind: u16) -> Self {
        Self {
            rest: self.get(kind).unwrap_or_default(),
        }
    }

    pub(crate) fn u32(self, kind: u16) -> Option<u32> {
        self.array(kind).map(u32::from_ne_bytes)
    }

    pub(crate) fn be32(self, kind: u16) -> Option<u32> {
        self.array(kind).map(u32::from_be_bytes)
    }

    pub(crate) fn array<const N: usize>(self, kind: u16) -> Option<[u8; N]> {
        self.get(kind)
            .and_then(|value| value.get(..N)?.try_into().ok())
    }

    pub(crate) fn text(self, kind: u16) -> Option<&'a str> {
        let value = self.get(kind)?;
        let end = value
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(value.len());
        str::from_utf8(&value[..end]).ok()
    }
}

#[expect(
    clippy::copy_iterator,
    reason = "each look-up starts from the first attribute again"
)]
impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.rest.get(2..4)?.try_into().ok()?) & NLA_TYPE_MASK;
        let value = self.rest.get(ATTR_HEADER..length)?;
        self.rest = self
            .rest
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
        Some((kind, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut batch = Batch::default();
        batch
            .message("one", 16, 0, &[1, 2, 3])
            .attr_str(3, "eth0")
            .nest(5, |b| {
                b.attr_be32(1, 7);
            });
        batch.close();
        assert_eq!(batch.bytes.len() % 4, 0);
        assert_eq!(
            u32::from_ne_bytes(batch.bytes[..4].try_into().unwrap()) as usize,
            batch.bytes.len()
        );
        let got = Received {
            kind: 16,
            payload: batch.bytes[HEADER..].to_vec(),
        };
        assert_eq!(got.attrs(3).text(3), Some("eth0"));
        assert_eq!(got.attrs(3).nested(5).be32(1), Some(7));
    }

    #[test]
    fn malformed_attributes_end_the_list() {
        for bytes in [&[1, 0][..], &[3, 0, 1, 0], &[200, 0, 1, 0, 1]] {
            assert_eq!(Attrs::of(bytes).count(), 0, "{bytes:?}");
        }
    }
}
