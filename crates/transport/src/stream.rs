//! A stream of bytes in both directions, whatever carries it, and single frames on it.
//!
//! `read_frame` takes not one byte more than its frame, so what follows a frame can be of another
//! kind. A [`session`](crate::session) reads ahead; it owns its stream to the end.

use std::io;

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{
    codec,
    session::{ReceiveError, SendError},
};

/// Memory set aside for a frame before any of its bytes has arrived.
const FIRST_BYTES: usize = 4 << 10;

/// What bytes can be read from and written to.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for T {}

/// A connection: TLS to another machine, or a pipe within this process. Shut it down when all has
/// been written: TLS that just ends is an error for its reader, who may miss a part.
pub type Stream = Box<dyn Duplex>;

/// Writes one message as a frame and flushes it.
pub(crate) async fn write_frame<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> Result<(), SendError> {
    let body = codec::encode(message)?;
    let length = u32::try_from(body.len()).map_err(|_| io::ErrorKind::FileTooLarge);
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend(length.map_err(io::Error::from)?.to_be_bytes());
    frame.extend(body);
    let mut frame = Bytes::from(frame);
    stream.write_all_buf(&mut frame).await?;
    stream.flush().await?;
    Ok(())
}

/// Reads one message of at most `limit` bytes; `None` when the stream ends before it begins.
pub(crate) async fn read_frame<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> Result<Option<T>, ReceiveError> {
    let mut length = [0; 4];
    if stream.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[1..]).await?;
    let length = usize::try_from(u32::from_be_bytes(length)).expect("32 bits fit into usize");
    if length > limit {
        return Err(ReceiveError::TooLong { length, limit });
    }
    // The other end says how long it is: memory is given out as the bytes come.
    let mut body = Vec::with_capacity(length.min(FIRST_BYTES));
    let read = stream
        .take(u64::try_from(length).expect("usize fits into 64 bits"))
        .read_to_end(&mut body)
        .await?;
    if read < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Some(codec::decode(&body)?))
}

#[cfg(test)]
mod tests {
    use shoal_types::wire::Purpose;

    use super::*;
    use crate::session;

    #[tokio::test]
    async fn what_follows_a_frame_is_left_in_the_stream() {
        let (mut near, mut far) = session::local_stream();
        write_frame(&mut near, &Purpose::Reply { ticket: 7 })
            .await
            .expect("written");
        near.write_all(b"then bytes").await.expect("written");
        drop(near);
        let purpose = read_frame(&mut far, 64).await.expect("read");
        assert_eq!(purpose, Some(Purpose::Reply { ticket: 7 }));
        let mut rest = String::new();
        far.read_to_string(&mut rest).await.expect("read");
        assert_eq!(rest, "then bytes");
    }

    #[tokio::test]
    async fn a_frame_and_a_session_speak_the_same_framing() {
        let (mut near, far) = session::local_stream();
        write_frame(&mut near, &Purpose::Session)
            .await
            .expect("written");
        let (_out, mut input) = session::open::<Purpose, Purpose, _>(far);
        assert_eq!(
            input.receive().await.expect("received"),
            Some(Purpose::Session)
        );
    }

    #[tokio::test]
    async fn a_long_or_broken_frame_is_an_error_and_an_empty_stream_is_none() {
        let (mut near, mut far) = session::local_stream();
        near.write_all(&65u32.to_be_bytes()).await.expect("written");
        assert!(matches!(
            read_frame::<Purpose>(&mut far, 64).await,
            Err(ReceiveError::TooLong {
                length: 65,
                limit: 64
            })
        ));
        let (mut near, mut far) = session::local_stream();
        near.write_all(&[0, 0, 0, 9, 1]).await.expect("written");
        drop(near);
        assert!(matches!(
            read_frame::<Purpose>(&mut far, 64).await,
            Err(ReceiveError::Io(_))
        ));
        assert!(matches!(
            read_frame::<Purpose>(&mut far, 64).await,
            Ok(None)
        ));
    }
}
