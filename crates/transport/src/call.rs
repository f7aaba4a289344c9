//! One question and one answer over a stream of their own.

use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};
use tokio::{io::AsyncWriteExt, time};

use crate::{
    session::{ReceiveError, SendError},
    stream::{self, Stream},
};

/// Largest question or answer. Questions come from nodes that nobody knows yet.
const MESSAGE_BYTES: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("send the question")]
    Send(#[source] SendError),
    #[error("receive the answer")]
    Receive(#[source] ReceiveError),
    #[error("the other side closed the connection without an answer")]
    Closed,
    #[error("no answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
}

/// Sends `question` and gives the answer, all within `limit`.
pub async fn ask<Q: Serialize, A: DeserializeOwned>(
    mut stream: Stream,
    question: &Q,
    limit: Duration,
) -> Result<A, AskError> {
    let exchange = async {
        let sent = stream::write_frame(&mut stream, question).await;
        sent.map_err(AskError::Send)?;
        let answer = stream::read_frame(&mut stream, MESSAGE_BYTES).await;
        answer.map_err(AskError::Receive)?.ok_or(AskError::Closed)
    };
    let answer = time::timeout(limit, exchange).await;
    answer.map_err(|_elapsed| AskError::Timeout(limit))?
}

#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error("receive the question")]
    Receive(#[source] ReceiveError),
    #[error("the other side closed the connection without a question")]
    Closed,
    #[error("send the answer")]
    Send(#[source] SendError),
    #[error("the other side was silent for {} s", .0.as_secs_f32())]
    Timeout(Duration),
}

/// The other side of [`ask`]: reads the question within `limit`, and sends what `respond` makes of it
/// within `limit` again. How long `respond` takes is its own affair.
pub async fn answer<Q: DeserializeOwned, A: Serialize>(
    mut stream: Stream,
    limit: Duration,
    respond: impl AsyncFnOnce(Q) -> A,
) -> Result<(), AnswerError> {
    let question = time::timeout(limit, stream::read_frame(&mut stream, MESSAGE_BYTES)).await;
    let question = question
        .map_err(|_elapsed| AnswerError::Timeout(limit))?
        .map_err(AnswerError::Receive)?
        .ok_or(AnswerError::Closed)?;
    let answer = respond(question).await;
    let sending = async {
        stream::write_frame(&mut stream, &answer).await?;
        stream.shutdown().await.map_err(SendError::Io)
    };
    let sent = time::timeout(limit, sending).await;
    sent.map_err(|_elapsed| AnswerError::Timeout(limit))?
        .map_err(AnswerError::Send)
}
