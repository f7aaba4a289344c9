//! Output of containers, tasks and services: what is asked for, and its frames cut into lines.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use jiff::Timestamp;
use shoal_engine_api::wire::{FrameDecoder, LogStream};

use crate::{
    api::{Api, Request},
    error::{CliError, Result},
    opts::GoDuration,
    output,
};

/// Which lines.
pub(crate) struct Query<'a> {
    pub(crate) follow: bool,
    pub(crate) timestamps: bool,
    pub(crate) details: bool,
    pub(crate) since: &'a str,
    pub(crate) until: &'a str,
    pub(crate) tail: &'a str,
}

impl Query<'_> {
    pub(crate) fn request(&self, path: &[&str]) -> Result<Request> {
        let now = Timestamp::now();
        Ok(Request::get(path)
            .flag("stdout", true)
            .flag("stderr", true)
            .flag("follow", self.follow)
            .flag("timestamps", self.timestamps)
            .flag("details", self.details)
            .query("since", point_in_time(self.since, now, "since")?)
            .query("until", point_in_time(self.until, now, "until")?)
            .query("tail", self.tail))
    }
}

/// Seconds since the epoch, from a time, a number of seconds, or a duration before `now` (Docker's `GetTimestamp`).
pub(crate) fn point_in_time(text: &str, now: Timestamp, flag: &str) -> Result<String> {
    let seconds = |time: Timestamp| format!("{}.{:09}", time.as_second(), time.subsec_nanosecond());
    if text.is_empty() {
        return Ok(String::new());
    }
    if let Ok(GoDuration(nanos)) = text.parse() {
        let then = now.as_nanosecond() - i128::from(nanos);
        return Timestamp::from_nanosecond(then)
            .map(seconds)
            .map_err(|_| CliError::message(format!("invalid value for {flag:?}: {text}")));
    }
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Ok(text.to_owned());
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(seconds(time));
    }
    // Without a zone a time is the user's own.
    let local = text.parse::<jiff::civil::DateTime>().or_else(|_| {
        text.parse::<jiff::civil::Date>()
            .map(|date| date.at(0, 0, 0, 0))
    });
    let zoned = local
        .ok()
        .and_then(|time| time.to_zoned(jiff::tz::TimeZone::system()).ok());
    zoned
        .map(|zoned| seconds(zoned.timestamp()))
        .ok_or_else(|| {
            CliError::message(format!(
                "invalid value for {flag:?}: failed to parse value as time or duration: {text:?}"
            ))
        })
}

/// One line, or what there was of it.
#[derive(Debug)]
pub(crate) struct LogLine {
    stream: LogStream,
    bytes: Bytes,
}

impl LogLine {
    pub(crate) fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }

    pub(crate) fn print(&self) -> Result {
        self.print_bytes(&self.bytes)
    }

    /// Prints `text` where this line would have gone.
    pub(crate) fn print_as(&self, text: &str) -> Result {
        self.print_bytes(text.as_bytes())
    }

    fn print_bytes(&self, bytes: &[u8]) -> Result {
        match self.stream {
            LogStream::Stdout | LogStream::Stdin => output::write(bytes),
            LogStream::Stderr => {
                output::write_error(bytes);
                Ok(())
            }
            LogStream::System => Err(CliError::message(format!(
                "error from daemon in stream: {}",
                self.text().trim_end()
            ))),
        }
    }
}

/// A stream of output.
pub(crate) struct Frames {
    body: Incoming,
    /// `None` when there is a terminal, whose output has no frames.
    decoder: Option<FrameDecoder>,
    pending: BytesMut,
}

impl Frames {
    pub(crate) async fn open(api: &Api, request: Request) -> Result<Self> {
        let response = api.send(request).await?;
        let kind = response.headers().get(http::header::CONTENT_TYPE);
        let raw = kind.is_some_and(|kind| kind == "application/vnd.docker.raw-stream");
        Ok(Self {
            body: response.into_body(),
            decoder: (!raw).then(FrameDecoder::default),
            pending: BytesMut::new(),
        })
    }

    /// The next frame, which is a whole line unless the line was very long; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<LogLine>> {
        loop {
            match &mut self.decoder {
                Some(decoder) => {
                    if let Some(frame) = decoder.next_frame()? {
                        return Ok(Some(LogLine {
                            stream: frame.stream,
                            bytes: frame.payload,
                        }));
                    }
                }
                None if !self.pending.is_empty() => {
                    return Ok(Some(LogLine {
                        stream: LogStream::Stdout,
                        bytes: self.pending.split().freeze(),
                    }));
                }
                None => {}
            }
            let Some(frame) = self.body.frame().await else {
                if let Some(decoder) = &self.decoder {
                    decoder.finish()?;
                }
                return Ok(None);
            };
            if let Ok(data) = frame.map_err(CliError::Lost)?.into_data() {
                match &mut self.decoder {
                    Some(decoder) => decoder.push(&data),
                    None => self.pending.extend_from_slice(&data),
                }
            }
        }
    }
}

/// Undoes the percent encoding of details.
pub(crate) fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = |b: u8| {
            char::from(b)
                .to_digit(16)
                .and_then(|d| u8::try_from(d).ok())
        };
        if byte == b'%'
            && let [high, low, ..] = after
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            bytes.push(high << 4 | low);
            rest = &after[2..];
        } else {
            bytes.push(if byte == b'+' { b' ' } else { byte });
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_in_time_are_seconds_since_the_epoch() {
        let now: Timestamp = "2026-01-01T00:10:00.5Z".parse().unwrap();
        let at = |text: &str| point_in_time(text, now, "since").unwrap();
        assert_eq!(at(""), "");
        assert_eq!(at("10m"), "1767225600.500000000");
        assert_eq!(at("2026-01-01T00:00:00Z"), "1767225600.000000000");
        assert_eq!(at("1767225600"), "1767225600");
        assert!(point_in_time("yesterday-ish", now, "since").is_err());
    }

    #[test]
    fn details_are_unescaped() {
        assert_eq!(unescape("a%2Cb%3dc+d%"), "a,b=c d%");
    }
}
