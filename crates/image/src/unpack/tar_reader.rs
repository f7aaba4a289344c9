//! Reads the members of a tar stream one by one, with bounds on everything it keeps in memory.
//!
//! Headers are decoded by the `tar` crate; its own iterator is not used, because that reads
//! extended headers of any size into memory and hands out the holes of a sparse file as zeros to
//! be read, so that a few hundred bytes could cost gigabytes or hours. Where parsers differ this
//! one follows Go's `archive/tar`, since that is what image builders test against.

use std::{
    collections::BTreeMap,
    io::{self, Read},
};

use tar::{GnuExtSparseHeader, Header};

const BLOCK: usize = 512;
/// Most bytes of one extended header, as in Go's `maxSpecialFileSize`.
const EXTENDED_MAX: u64 = 1 << 20;
/// Most data regions of one sparse file; a map of this size is 4 MiB.
const EXTENTS_MAX: usize = 1 << 18;

/// The stream is not a tar archive that this reader accepts.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("read archive")]
    Read(#[from] io::Error),
    #[error("archive ends in the middle of a member")]
    Truncated,
    #[error("malformed header: {0}")]
    Header(&'static str),
    #[error("extended header of {0} bytes; at most {EXTENDED_MAX} are accepted")]
    ExtendedTooLarge(u64),
    #[error("malformed sparse map: {0}")]
    Sparse(&'static str),
    #[error("unsupported member type {:?}", char::from(*.0))]
    Type(u8),
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Char,
    Block,
    Directory,
    Fifo,
}

/// A region of a sparse file that holds data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// One member, without its data.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// As in the archive, not yet checked.
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since the epoch and nanoseconds.
    pub(crate) mtime: (i64, u32),
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Length of the file once unpacked, holes included.
    pub(crate) size: u64,
    /// Where the data goes; `None` when it is the whole file.
    pub(crate) extents: Option<Vec<Extent>>,
}

type PaxRecords = BTreeMap<Vec<u8>, Vec<u8>>;

/// Iterates over members; [`Read`] gives the data of the current one.
pub(crate) struct TarReader<R> {
    inner: R,
    /// Data of the current member not yet read.
    remaining: u64,
    /// Bytes between that data and the next header.
    padding: u64,
    global: PaxRecords,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            remaining: 0,
            padding: 0,
            global: PaxRecords::new(),
        }
    }

    /// The next member, or `None` at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, TarError> {
        let mut local = PaxRecords::new();
        // The old GNU way to give maps of PAX sparse 0.0 repeats one key, so it is kept in order.
        let mut sparse_00 = Vec::new();
        let mut long_path = None;
        let mut long_link = None;
        let mut pending = false;
        loop {
            self.skip_rest()?;
            let Some(header) = self.read_header()? else {
                return if pending {
                    Err(TarError::Truncated)
                } else {
                    Ok(None)
                };
            };
            let flag = header.as_bytes()[156];
            match flag {
                b'x' | b'g' => {
                    let data = self.read_extended(&header)?;
                    let records = parse_pax(&data, &mut sparse_00)?;
                    if flag == b'g' {
                        self.global.extend(records);
                    } else {
                        local = records;
                        pending = true;
                    }
                }
                b'L' => {
                    long_path = Some(until_nul(self.read_extended(&header)?));
                    pending = true;
                }
                b'K' => {
                    long_link = Some(until_nul(self.read_extended(&header)?));
                    pending = true;
                }
                // A volume label says nothing about files.
                b'V' => self.start_data(entry_size(&header)?),
                _ => {
                    let mut records = self.global.clone();
                    records.extend(local);
                    return self
                        .member(&header, &records, sparse_00, long_path, long_link)
                        .map(Some);
                }
            }
        }
    }

    /// Reads on to the end of the stream, so that whoever feeds it sees all of it taken.
    pub(crate) fn drain(&mut self) -> Result<(), TarError> {
        let mut sink = [0; 16 * 1024];
        while self.inner.read(&mut sink)? > 0 {}
        Ok(())
    }

    fn member(
        &mut self,
        header: &Header,
        pax: &PaxRecords,
        sparse_00: Vec<u64>,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Member, TarError> {
        let text = |key: &str| {
            pax.get(key.as_bytes())
                .filter(|value| !value.is_empty())
                .cloned()
        };
        let mut path = text("path")
            .or(long_path)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = text("linkpath")
            .or(long_link)
            .unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        let flag = header.as_bytes()[156];
        let kind = match flag {
            // Archives from before POSIX mark a directory by its slash alone.
            0 if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(TarError::Type(other)),
        };
        let number = |key: &str| pax_number(pax, key);
        let stored = match number("size")? {
            // As in Go: only files carry data, whatever the size field of other kinds says.
            _ if kind != Kind::File => 0,
            Some(size) => size,
            None => entry_size(header)?,
        };
        self.start_data(stored);

        let mut size = stored;
        let mut extents = None;
        if flag == b'S' {
            let (map, real) = self.gnu_sparse(header)?;
            size = real;
            extents = Some(map);
        } else if kind == Kind::File
            && let Some((map, real)) = self.pax_sparse(pax, sparse_00)?
        {
            path = text("GNU.sparse.name").unwrap_or(path);
            size = real;
            extents = Some(map);
        }
        if let Some(map) = &extents {
            check_extents(map, size, self.remaining)?;
        }

        let id = |key, fallback: io::Result<u64>| -> Result<u32, TarError> {
            let value = match number(key)? {
                Some(value) => value,
                None => fallback.map_err(|_| TarError::Header("owner"))?,
            };
            u32::try_from(value).map_err(|_| TarError::Header("owner beyond 32 bits"))
        };
        Ok(Member {
            uid: id("uid", header.uid())?,
            gid: id("gid", header.gid())?,
            mode: header.mode().map_err(|_| TarError::Header("mode"))? & 0o7777,
            mtime: mtime(header, pax)?,
            device: (
                header.device_major().ok().flatten().unwrap_or(0),
                header.device_minor().ok().flatten().unwrap_or(0),
            ),
            xattrs: xattrs(pax),
            path,
            link,
            kind,
            size,
            extents,
        })
    }

    fn read_header(&mut self) -> Result<Option<Header>, TarError> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(TarError::Truncated),
                n => filled += n,
            }
        }
        if block.iter().all(|&b| b == 0) {
            return Ok(None);
        }
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(at, &b)| {
                if (148..156).contains(&at) {
                    u32::from(b' ')
                } else {
                    u32::from(b)
                }
            })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(TarError::Header(
                "checksum does not match; this is not a tar archive",
            ));
        }
        Ok(Some(header))
    }

    fn read_extended(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let size = entry_size(header)?;
        if size > EXTENDED_MAX {
            return Err(TarError::ExtendedTooLarge(size));
        }
        self.start_data(size);
        let mut data = vec![0; usize::try_from(size).unwrap_or(0)];
        self.read_exact_data(&mut data)?;
        Ok(data)
    }

    fn start_data(&mut self, size: u64) {
        self.remaining = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let mut left = self.remaining.saturating_add(self.padding);
        let mut sink = [0; 16 * 1024];
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(sink.len()).min(sink.len());
            match self.inner.read(&mut sink[..want])? {
                0 => return Err(TarError::Truncated),
                n => left -= n as u64,
            }
        }
        (self.remaining, self.padding) = (0, 0);
        Ok(())
    }

    fn read_exact_data(&mut self, buf: &mut [u8]) -> Result<(), TarError> {
        self.read_exact(buf).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => TarError::Truncated,
            _ => TarError::Read(error),
        })
    }

    /// The map of an old GNU sparse member, which continues in blocks after the header.
    fn gnu_sparse(&mut self, header: &Header) -> Result<(Vec<Extent>, u64), TarError> {
        let gnu = header
            .as_gnu()
            .ok_or(TarError::Sparse("not a GNU header"))?;
        let real = gnu.real_size().map_err(|_| TarError::Sparse("real size"))?;
        let mut map = Vec::new();
        let mut push = |offset: io::Result<u64>, length: io::Result<u64>| {
            let extent = Extent {
                offset: offset.map_err(|_| TarError::Sparse("offset"))?,
                length: length.map_err(|_| TarError::Sparse("length"))?,
            };
            map.push(extent);
            if map.len() > EXTENTS_MAX {
                return Err(TarError::Sparse("too many regions"));
            }
            Ok(())
        };
        for block in gnu.sparse.iter().filter(|block| !block.is_empty()) {
            push(block.offset(), block.length())?;
        }
        let mut more = gnu.is_extended();
        while more {
            let mut extended = GnuExtSparseHeader::new();
            self.inner
                .read_exact(extended.as_mut_bytes())
                .map_err(|_| TarError::Truncated)?;
            for block in extended.sparse().iter().filter(|block| !block.is_empty()) {
                push(block.offset(), block.length())?;
            }
            more = extended.is_extended();
        }
        Ok((map, real))
    }

    /// The map of a sparse member in one of the three PAX formats (GNU tar manual, appendix D.2).
    fn pax_sparse(
        &mut self,
        pax: &PaxRecords,
        sparse_00: Vec<u64>,
    ) -> Result<Option<(Vec<Extent>, u64)>, TarError> {
        let number = |key: &str| pax_number(pax, key);
        if number("GNU.sparse.major")? == Some(1) {
            let real = number("GNU.sparse.realsize")?.ok_or(TarError::Sparse("no real size"))?;
            let map = self.read_sparse_map_10()?;
            return Ok(Some((pairs(&map)?, real)));
        }
        let Some(real) = number("GNU.sparse.size")? else {
            return Ok(None);
        };
        let map = match pax.get(b"GNU.sparse.map".as_slice()) {
            Some(list) => list
                .split(|&b| b == b',')
                .map(|text| decimal(text).ok_or(TarError::Sparse("map")))
                .collect::<Result<_, _>>()?,
            None => sparse_00,
        };
        Ok(Some((pairs(&map)?, real)))
    }

    /// Format 1.0 keeps the map as decimal lines in front of the data, filled up to whole blocks.
    fn read_sparse_map_10(&mut self) -> Result<Vec<u64>, TarError> {
        let mut block = [0; BLOCK];
        let mut at = BLOCK;
        let mut line = Vec::new();
        let mut count = None;
        let mut numbers = Vec::new();
        while count.is_none_or(|count| numbers.len() < count) {
            if at == BLOCK {
                self.read_exact_data(&mut block)?;
                at = 0;
            }
            let byte = block[at];
            at += 1;
            if byte != b'\n' {
                line.push(byte);
                if line.len() > 20 {
                    return Err(TarError::Sparse("number"));
                }
                continue;
            }
            let value = decimal(&line).ok_or(TarError::Sparse("number"))?;
            line.clear();
            if count.is_none() {
                let regions = usize::try_from(value).unwrap_or(usize::MAX);
                if regions > EXTENTS_MAX {
                    return Err(TarError::Sparse("too many regions"));
                }
                count = Some(regions * 2);
            } else {
                numbers.push(value);
            }
        }
        Ok(numbers)
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.remaining)
            .unwrap_or(buf.len())
            .min(buf.len());
        if want == 0 {
            return Ok(0);
        }
        match self.inner.read(&mut buf[..want])? {
            0 => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "archive ends in the middle of a member",
            )),
            n => {
                self.remaining -= n as u64;
                Ok(n)
            }
        }
    }
}

fn entry_size(header: &Header) -> Result<u64, TarError> {
    header.entry_size().map_err(|_| TarError::Header("size"))
}

fn until_nul(mut data: Vec<u8>) -> Vec<u8> {
    if let Some(end) = data.iter().position(|&b| b == 0) {
        data.truncate(end);
    }
    data
}

/// Records are `length key=value\n`; values may hold any byte, newlines too (binary xattrs do).
fn parse_pax(mut data: &[u8], sparse_00: &mut Vec<u64>) -> Result<PaxRecords, TarError> {
    const BAD: TarError = TarError::Header("PAX record");
    let mut records = PaxRecords::new();
    while !data.is_empty() && data[0] != 0 {
        let space = data.iter().position(|&b| b == b' ').ok_or(BAD)?;
        let length = decimal(&data[..space])
            .and_then(|n| usize::try_from(n).ok())
            .ok_or(BAD)?;
        if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
            return Err(BAD);
        }
        let record = &data[space + 1..length - 1];
        let equals = record.iter().position(|&b| b == b'=').ok_or(BAD)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if matches!(key, b"GNU.sparse.offset" | b"GNU.sparse.numbytes") {
            sparse_00.push(decimal(value).ok_or(TarError::Sparse("map"))?);
        }
        records.insert(key.to_vec(), value.to_vec());
        data = &data[length..];
    }
    Ok(records)
}

fn pax_number(pax: &PaxRecords, key: &str) -> Result<Option<u64>, TarError> {
    match pax.get(key.as_bytes()) {
        None => Ok(None),
        Some(value) if value.is_empty() => Ok(None),
        Some(value) => decimal(value)
            .map(Some)
            .ok_or(TarError::Header("number in PAX record")),
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits
        .then(|| std::str::from_utf8(text).ok()?.parse().ok())
        .flatten()
}

/// PAX times are decimal fractions of seconds, and may lie before the epoch.
fn mtime(header: &Header, pax: &PaxRecords) -> Result<(i64, u32), TarError> {
    const BAD: TarError = TarError::Header("modification time");
    if let Some(value) = pax
        .get(b"mtime".as_slice())
        .filter(|value| !value.is_empty())
    {
        let text = std::str::from_utf8(value).map_err(|_| BAD)?;
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
        let seconds: i64 = seconds.parse().map_err(|_| BAD)?;
        if !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return Err(BAD);
        }
        let digits: String = fraction
            .chars()
            .chain("000000000".chars())
            .take(9)
            .collect();
        let nanos: u32 = digits.parse().map_err(|_| BAD)?;
        return Ok(match (text.starts_with('-'), nanos) {
            (true, 1..) => (seconds.checked_sub(1).ok_or(BAD)?, 1_000_000_000 - nanos),
            _ => (seconds, nanos),
        });
    }
    let seconds = header.mtime().map_err(|_| BAD)?;
    Ok((i64::try_from(seconds).unwrap_or(0), 0))
}

fn xattrs(pax: &PaxRecords) -> Vec<(Vec<u8>, Vec<u8>)> {
    pax.iter()
        .filter_map(|(key, value)| {
            let name = key.strip_prefix(b"SCHILY.xattr.".as_slice())?;
            Some((name.to_vec(), value.clone()))
        })
        .collect()
}

fn pairs(numbers: &[u64]) -> Result<Vec<Extent>, TarError> {
    if !numbers.len().is_multiple_of(2) {
        return Err(TarError::Sparse("odd number of values"));
    }
    if numbers.len() / 2 > EXTENTS_MAX {
        return Err(TarError::Sparse("too many regions"));
    }
    Ok(numbers
        .chunks_exact(2)
        .map(|pair| Extent {
            offset: pair[0],
            length: pair[1],
        })
        .collect())
}

/// Regions ascend, do not overlap, end within the file, and hold exactly the stored bytes.
fn check_extents(map: &[Extent], size: u64, stored: u64) -> Result<(), TarError> {
    let (mut end, mut total) = (0_u64, 0_u64);
    for extent in map {
        if extent.offset < end {
            return Err(TarError::Sparse("regions overlap"));
        }
        end = extent
            .offset
            .checked_add(extent.length)
            .ok_or(TarError::Sparse("overflow"))?;
        total += extent.length;
    }
    if end > size {
        return Err(TarError::Sparse("a region ends beyond the file"));
    }
    if total > stored {
        return Err(TarError::Sparse("more data listed than stored"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn first(archive: &[u8]) -> Result<Option<Member>, TarError> {
        TarReader::new(archive).next()
    }

    fn extended(flag: u8, size: u64, data: &[u8]) -> Vec<u8> {
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[156] = flag;
        header.set_size(size);
        header.set_cksum();
        let mut out = header.as_bytes().to_vec();
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        out
    }

    #[test]
    fn a_huge_extended_header_is_refused_before_it_is_read() {
        for flag in [b'L', b'K', b'x', b'g'] {
            let error = first(&extended(flag, 1 << 40, b"")).unwrap_err();
            assert!(matches!(error, TarError::ExtendedTooLarge(size) if size == 1 << 40));
        }
    }

    #[test]
    fn pax_values_may_hold_newlines() {
        let mut archive = extended(b'x', 29, b"29 SCHILY.xattr.user.a=x\ny\nz\n");
        let mut header = Header::new_gnu();
        header.set_path("f").unwrap();
        header.set_size(0);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_cksum();
        archive.extend_from_slice(header.as_bytes());
        let member = first(&archive).unwrap().unwrap();
        assert_eq!(
            member.xattrs,
            vec![(b"user.a".to_vec(), b"x\ny\nz".to_vec())]
        );
        assert_eq!(member.kind, Kind::File);
    }

    #[test]
    fn sparse_maps_that_lie_are_refused() {
        let extent = |offset, length| Extent { offset, length };
        assert!(check_extents(&[extent(0, 5), extent(8, 2)], 10, 7).is_ok());
        assert!(check_extents(&[extent(0, 5), extent(4, 2)], 10, 7).is_err());
        assert!(check_extents(&[extent(0, 5), extent(8, 4)], 10, 9).is_err());
        assert!(check_extents(&[extent(0, 5)], 10, 4).is_err());
        assert!(check_extents(&[extent(u64::MAX, 5)], u64::MAX, 5).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let mut reader = TarReader::new(data.as_slice());
            while let Ok(Some(_)) = reader.next() {}
        }

        #[test]
        fn arbitrary_pax_never_panics(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_pax(&data, &mut Vec::new());
        }
    }
}
