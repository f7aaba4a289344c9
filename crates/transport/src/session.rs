//! One conversation over one byte stream: length-prefixed frames, each one encoded message.
//!
//! The stream may be a TLS connection to another machine or an in-process pipe to the manager half of
//! the same node; both are read and written the same way, so a cluster of one runs the code of many.

use std::{io, marker::PhantomData};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadHalf, WriteHalf};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use crate::codec::{self, DecodeError, EncodeError, MAX_ENCODED_BYTES};

/// Bytes an in-process stream holds before its writer waits.
const LOCAL_BUFFER_BYTES: usize = 256 << 10;

#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error("send a message")]
    Io(#[from] io::Error),
}

#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("receive a message")]
    Io(#[from] io::Error),
    #[error("a message of {length} bytes where at most {limit} are expected")]
    TooLong { length: usize, limit: usize },
}

/// The two ends of a stream within this process.
pub fn local_stream() -> (DuplexStream, DuplexStream) {
    tokio::io::duplex(LOCAL_BUFFER_BYTES)
}

/// Splits `stream` into a sender of `Out` and a receiver of `In`.
pub fn open<Out, In, S>(stream: S) -> (Sender<Out, S>, Receiver<In, S>)
where
    S: AsyncRead + AsyncWrite,
{
    let (read, write) = tokio::io::split(stream);
    (
        Sender {
            frames: FramedWrite::new(write, frames()),
            _message: PhantomData,
        },
        Receiver {
            frames: FramedRead::new(read, frames()),
            _message: PhantomData,
        },
    )
}

fn frames() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder()
        .max_frame_length(MAX_ENCODED_BYTES)
        .new_codec()
}

/// Writes messages. Dropping both halves ends the session.
#[derive(Debug)]
pub struct Sender<Out, S> {
    frames: FramedWrite<WriteHalf<S>, LengthDelimitedCodec>,
    _message: PhantomData<fn(Out)>,
}

impl<Out: Serialize, S: AsyncWrite> Sender<Out, S> {
    /// Sends one message and flushes it. Not cancel-safe: a cancelled send may leave half a frame,
    /// after which the session must be dropped.
    pub async fn send(&mut self, message: &Out) -> Result<(), SendError> {
        let bytes = codec::encode(message)?;
        self.frames.send(Bytes::from(bytes)).await?;
        Ok(())
    }

    /// Says that nothing more will come. Over TLS a stream that ends without it is an error for the
    /// receiver, which could not tell the end from a connection that was cut.
    pub async fn close(&mut self) -> Result<(), SendError> {
        SinkExt::<Bytes>::close(&mut self.frames).await?;
        Ok(())
    }
}

/// Reads messages.
#[derive(Debug)]
pub struct Receiver<In, S> {
    frames: FramedRead<ReadHalf<S>, LengthDelimitedCodec>,
    _message: PhantomData<fn() -> In>,
}

impl<In: DeserializeOwned, S: AsyncRead> Receiver<In, S> {
    /// The next message; `None` when the other end closed. Cancel-safe: a frame that has been read in
    /// part stays in the buffer.
    pub async fn receive(&mut self) -> Result<Option<In>, ReceiveError> {
        match self.frames.next().await {
            None => Ok(None),
            Some(frame) => Ok(Some(codec::decode(&frame?)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use shoal_types::wire::{AgentMessage, ManagerMessage};
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn messages_arrive_in_order_and_the_end_is_seen() {
        let (agent, manager) = local_stream();
        let (mut to_manager, from_manager) = open::<AgentMessage, ManagerMessage, _>(agent);
        let (_to_agent, mut from_agent) = open::<ManagerMessage, AgentMessage, _>(manager);
        to_manager
            .send(&AgentMessage::Heartbeat)
            .await
            .expect("sent");
        to_manager
            .send(&AgentMessage::Status(Vec::new()))
            .await
            .expect("sent");
        assert_eq!(
            from_agent.receive().await.expect("received"),
            Some(AgentMessage::Heartbeat)
        );
        assert_eq!(
            from_agent.receive().await.expect("received"),
            Some(AgentMessage::Status(Vec::new()))
        );
        drop((to_manager, from_manager));
        assert_eq!(from_agent.receive().await.expect("closed"), None);
    }

    #[tokio::test]
    async fn a_frame_that_claims_too_much_is_an_error() {
        let (mut raw, end) = local_stream();
        let (_out, mut input) = open::<ManagerMessage, AgentMessage, _>(end);
        raw.write_all(&u32::MAX.to_be_bytes())
            .await
            .expect("written");
        assert!(matches!(input.receive().await, Err(ReceiveError::Io(_))));
    }
}
