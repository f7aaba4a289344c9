//! Between asynchronous streams and code that blocks.

use std::io::{self, Read};

use tokio::io::AsyncRead;

/// A blocking reader of an asynchronous one. The future must run for the reader to proceed; when
/// it is dropped early, the reader fails.
pub(crate) fn bridge(
    mut input: impl AsyncRead + Send + Unpin + 'static,
) -> (BridgeReader, impl Future<Output = ()> + Send) {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let pump = async move {
        use tokio::io::AsyncReadExt as _;
        loop {
            let mut chunk = bytes::BytesMut::with_capacity(128 * 1024);
            let item = match input.read_buf(&mut chunk).await {
                Ok(0) => Ok(bytes::Bytes::new()),
                Ok(_) => Ok(chunk.freeze()),
                Err(error) => Err(error),
            };
            let last = item.as_ref().map_or(true, bytes::Bytes::is_empty);
            if sender.send(item).await.is_err() || last {
                return;
            }
        }
    };
    (
        BridgeReader {
            receiver,
            chunk: bytes::Bytes::new(),
            ended: false,
        },
        pump,
    )
}

pub(crate) struct BridgeReader {
    receiver: tokio::sync::mpsc::Receiver<io::Result<bytes::Bytes>>,
    chunk: bytes::Bytes,
    ended: bool,
}

impl Read for BridgeReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.chunk.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Ok(chunk)) if chunk.is_empty() => self.ended = true,
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(error)) => return Err(error),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let n = buf.len().min(self.chunk.len());
        buf[..n].copy_from_slice(&self.chunk.split_to(n));
        Ok(n)
    }
}
