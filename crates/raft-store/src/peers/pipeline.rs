//! Entries on their way to one other member: the next ones follow before those ahead are answered for.
//!
//! ```text
//! openraft's requests ─► held? ─► line.say ─► the other member's disk
//!         answers     ◄───────── line.hear ◄─┘ in the same order
//! ```
//! What it keeps true: requests are said in the order they come in, and answers are taken for them in
//! that order. It takes no further request while [`AHEAD`] have no answer, so that what is proposed
//! meanwhile shares a message. After anything but success nothing more is said on a line.

use std::{collections::VecDeque, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use openraft::{
    base::BoxStream,
    errors::{NetworkError, RPCError},
    raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult},
};
use tokio::time::{Instant, sleep_until};

use super::{CallError, Client, Line, Request, Response};
use crate::raft::{LogId, TypeConfig};

/// One is on its way while the other member has another on its disk's queue.
const AHEAD: usize = 2;

/// A message that only says what is committed waits this long for one with entries, which says it as
/// well: while there is work for the log it would be as many messages again, and what a follower shows
/// a little later nobody waits for.
const HOLD: Duration = Duration::from_millis(5);

type Append = AppendEntriesRequest<TypeConfig>;
type Answer = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

/// Says what comes from `requests` on `line`, and gives what is answered until the first failure.
pub(super) fn run<S>(client: &mut Client, line: Box<dyn Line>, requests: S) -> BoxStream<'_, Answer>
where
    S: Stream<Item = Append> + Send + Unpin + 'static,
{
    let pipeline = Pipeline {
        client,
        line,
        requests,
        ended: false,
        unanswered: VecDeque::new(),
        held: None,
    };
    Box::pin(stream::unfold(Some(pipeline), |pipeline| async move {
        let mut pipeline = pipeline?;
        let Some(answer) = pipeline.next().await else {
            pipeline.client.keep(pipeline.line);
            return None;
        };
        let goes_on = matches!(answer, Ok(Ok(_)));
        Some((answer, goes_on.then_some(pipeline)))
    }))
}

struct Pipeline<'s, S> {
    client: &'s mut Client,
    line: Box<dyn Line>,
    requests: S,
    /// No request will come any more.
    ended: bool,
    unanswered: VecDeque<Sent>,
    /// A request without entries, and until when it waits for a better one.
    held: Option<(Append, Instant)>,
}

/// A request that has no answer yet.
struct Sent {
    previous: Option<LogId>,
    last: Option<LogId>,
    due: Instant,
}

impl<S: Stream<Item = Append> + Send + Unpin> Pipeline<'_, S> {
    /// The next answer; `None` when there are no more requests and each has its answer.
    async fn next(&mut self) -> Option<Answer> {
        loop {
            let more = !self.ended && self.unanswered.len() < AHEAD;
            let waits = !self.unanswered.is_empty();
            if !more && !waits && self.held.is_none() {
                return None;
            }
            let due = self.unanswered.front().map(|sent| sent.due);
            let held = self.held.as_ref().map(|(_, until)| *until);
            let alarm = due.into_iter().chain(held).min();
            // An answer that is partly there stays on its line, and a request that is being made in
            // its stream, so that nothing is lost with the arms that are dropped.
            let said = tokio::select! {
                biased;
                answer = self.line.hear(), if waits => {
                    return Some(match answer {
                        Ok(bytes) => self.answered(&bytes),
                        Err(error) => Err(lost(&error.into())),
                    });
                }
                request = self.requests.next(), if more => self.take(request).await,
                () = sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => {
                    if due.is_some_and(|due| due <= Instant::now()) {
                        let id = self.client.peer.id;
                        Err(super::PeerError::Timeout { id }.into())
                    } else {
                        self.say_held().await
                    }
                }
            };
            if let Err(error) = said {
                return Some(Err(lost(&error)));
            }
        }
    }

    async fn take(&mut self, request: Option<Append>) -> Result<(), CallError> {
        let Some(request) = request else {
            self.ended = true;
            return self.say_held().await;
        };
        let takes_over = |(held, _): &(Append, Instant)| held.prev_log_id == request.prev_log_id;
        if self.held.as_ref().is_some_and(takes_over) {
            // An answer to the newer one stands for both.
            self.held = None;
        }
        self.say_held().await?;
        if request.entries.is_empty() {
            self.held = Some((request, Instant::now() + HOLD));
            return Ok(());
        }
        self.say(request).await
    }

    async fn say_held(&mut self) -> Result<(), CallError> {
        match self.held.take() {
            Some((request, _)) => self.say(request).await,
            None => Ok(()),
        }
    }

    async fn say(&mut self, request: Append) -> Result<(), CallError> {
        let previous = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id);
        let message = self.client.envelope(Request::Append(request.into()))?;
        let due = Instant::now() + self.client.network.append_limit;
        self.unanswered.push_back(Sent {
            previous,
            last: last.or(previous),
            due,
        });
        Ok(self.line.say(message).await?)
    }

    fn answered(&mut self, bytes: &[u8]) -> Answer {
        let sent = self.unanswered.pop_front();
        let sent = sent.expect("a line gives one answer to each request");
        match self.client.response(bytes).map_err(|error| lost(&error))? {
            Response::Append(answer) => {
                let answer = AppendEntriesResponse::from(answer);
                let result = answer.into_stream_result(sent.previous, sent.last);
                match result {
                    // What follows does not fit any more: it is sent again from there.
                    Ok(matching) if matching != sent.last => self.ended = true,
                    Ok(_)
                    | Err(StreamAppendError::Conflict(_) | StreamAppendError::HigherVote(_)) => {}
                }
                Ok(result)
            }
            _ => Err(self.client.mismatch()),
        }
    }
}

/// Worth another try at once, on another line: that the member cannot be reached shows when that is
/// opened.
fn lost(error: &CallError) -> RPCError<TypeConfig> {
    match error {
        CallError::Peer(super::PeerError::Refused { .. }) => {
            RPCError::Unreachable(openraft::errors::Unreachable::new(error))
        }
        _ => RPCError::Network(NetworkError::new(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::{FutureExt, future::BoxFuture};
    use openraft::impls::BasicNode;
    use shoal_transport::codec;
    use tempfile::TempDir;
    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        peers::{
            Envelope, Lane, Network, NoPeers, PeerError,
            message::{self, AppendAnswer},
        },
        raft::{Entry, Vote},
        stored::{Ballot, Body, Item, Point},
        tests::world,
        wal::{Wal, WalConfig},
    };

    /// Remembers what is said, and is answered by hand.
    struct ByHand {
        said: mpsc::UnboundedSender<Vec<u8>>,
        answers: mpsc::UnboundedReceiver<AppendAnswer>,
    }

    impl Line for ByHand {
        fn say(&mut self, request: Vec<u8>) -> BoxFuture<'_, Result<(), PeerError>> {
            self.said.send(request).expect("the test listens");
            Box::pin(std::future::ready(Ok(())))
        }

        fn hear(&mut self) -> BoxFuture<'_, Result<Vec<u8>, PeerError>> {
            Box::pin(async {
                let answer = self.answers.recv().await.expect("the test answers");
                Ok(codec::encode(&Response::Append(answer)).expect("encodes"))
            })
        }
    }

    struct Ends {
        client: Client,
        line: Option<Box<dyn Line>>,
        requests: mpsc::UnboundedSender<Append>,
        taken: Option<mpsc::UnboundedReceiver<Append>>,
        said: mpsc::UnboundedReceiver<Vec<u8>>,
        answers: mpsc::UnboundedSender<AppendAnswer>,
        _dir: TempDir,
    }

    fn ends() -> Ends {
        let dir = tempfile::tempdir().expect("a directory");
        let wal = Wal::open(WalConfig {
            dir: dir.path().to_owned(),
            member: 1,
            keys: world::keys(),
            segment_bytes: 64 << 10,
            cache_bytes: 64 << 10,
        });
        let wal = wal.expect("it opens");
        let network = Network::new(1, wal, Arc::new(NoPeers), &world::tuning());
        let (say, said) = mpsc::unbounded_channel();
        let (answer, answers) = mpsc::unbounded_channel();
        let (requests, taken) = mpsc::unbounded_channel();
        Ends {
            client: network.client(2, &BasicNode::default(), Lane::Log),
            line: Some(Box::new(ByHand { said: say, answers })),
            requests,
            taken: Some(taken),
            said,
            answers: answer,
            _dir: dir,
        }
    }

    fn point(index: u64) -> Point {
        Point {
            term: 1,
            leader: 1,
            index,
        }
    }

    /// Entries from `previous + 1` to `last`.
    fn request(previous: u64, last: u64, committed: u64) -> Append {
        let entry = |index| Item {
            at: point(index),
            body: Body::Blank,
        };
        Append {
            vote: Vote::new_committed(1, 1),
            prev_log_id: Some(point(previous).into()),
            entries: (previous + 1..=last)
                .map(|i| Entry::from(entry(i)))
                .collect(),
            leader_commit: Some(point(committed).into()),
        }
    }

    impl Ends {
        /// What is said, and how far the answers are, while the test holds the rest.
        fn split(
            &mut self,
        ) -> (
            BoxStream<'_, Answer>,
            impl FnMut() -> Vec<message::Append>,
            mpsc::UnboundedSender<AppendAnswer>,
        ) {
            let mut taken = self.taken.take().expect("split once");
            let requests = stream::poll_fn(move |context| taken.poll_recv(context));
            let line = self.line.take().expect("split once");
            let said = &mut self.said;
            let heard = || {
                let messages = std::iter::from_fn(|| said.try_recv().ok());
                let decoded = messages.map(|bytes| {
                    let envelope: Envelope = codec::decode(&bytes).expect("decodes");
                    match envelope.request {
                        Request::Append(append) => append,
                        other => panic!("{other:?}"),
                    }
                });
                decoded.collect()
            };
            let answers = run(&mut self.client, line, requests);
            (answers, heard, self.answers.clone())
        }
    }

    fn matching(answer: Option<Answer>) -> u64 {
        let matching = answer.expect("an answer").expect("it arrived");
        matching.expect("a success").expect("a place").index
    }

    #[tokio::test]
    async fn entries_follow_before_those_ahead_are_answered_but_not_without_end() {
        let mut ends = ends();
        let requests = ends.requests.clone();
        let (mut output, mut said, answers) = ends.split();
        for index in 1..=3 {
            requests.send(request(index - 1, index, 0)).expect("taken");
        }
        assert!(
            output.next().now_or_never().is_none(),
            "nothing is answered"
        );
        let ahead = [request(0, 1, 0), request(1, 2, 0)];
        assert_eq!(said(), ahead.map(message::Append::from));
        answers.send(AppendAnswer::Success).expect("heard");
        assert_eq!(matching(output.next().await), 1);
        assert!(
            output.next().now_or_never().is_none(),
            "nothing is answered"
        );
        assert_eq!(said().len(), 1, "there is room for the third");
        answers.send(AppendAnswer::Success).expect("heard");
        answers.send(AppendAnswer::Success).expect("heard");
        assert_eq!(matching(output.next().await), 2);
        assert_eq!(matching(output.next().await), 3);
    }

    #[tokio::test]
    async fn what_is_committed_travels_with_entries_when_some_come_and_alone_when_none_do() {
        let mut ends = ends();
        let requests = ends.requests.clone();
        let (mut output, mut said, answers) = ends.split();
        requests.send(request(1, 1, 1)).expect("taken");
        requests.send(request(1, 2, 1)).expect("taken");
        assert!(
            output.next().now_or_never().is_none(),
            "nothing is answered"
        );
        let both = message::Append::from(request(1, 2, 1));
        assert_eq!(said(), [both], "one message says both");
        answers.send(AppendAnswer::Success).expect("heard");
        assert_eq!(matching(output.next().await), 2);
        requests.send(request(2, 2, 2)).expect("taken");
        answers.send(AppendAnswer::Success).expect("heard");
        assert_eq!(matching(output.next().await), 2);
        assert_eq!(said(), [message::Append::from(request(2, 2, 2))]);
    }

    #[tokio::test]
    async fn nothing_is_said_after_a_refusal_and_its_line_is_not_used_again() {
        for refusal in [
            AppendAnswer::Conflict,
            AppendAnswer::HigherVote(Ballot {
                term: 9,
                candidate: 3,
                committed: false,
            }),
        ] {
            let mut ends = ends();
            let requests = ends.requests.clone();
            let (mut output, mut said, answers) = ends.split();
            for index in 5..=7 {
                requests.send(request(index - 1, index, 0)).expect("taken");
            }
            answers.send(refusal).expect("heard");
            let refused = output.next().await.expect("an answer").expect("it arrived");
            refused.expect_err("it was refused");
            assert!(output.next().await.is_none());
            assert!(said().len() <= AHEAD);
            drop((output, said));
            assert!(ends.client.line.get_mut().expect("whole").is_none());
        }
    }

    #[tokio::test]
    async fn a_line_is_kept_when_all_on_it_is_answered() {
        let mut ends = ends();
        let requests = std::mem::replace(&mut ends.requests, mpsc::unbounded_channel().0);
        let (mut output, said, answers) = ends.split();
        requests.send(request(0, 1, 0)).expect("taken");
        drop(requests);
        answers.send(AppendAnswer::Success).expect("heard");
        assert_eq!(matching(output.next().await), 1);
        assert!(output.next().await.is_none());
        drop((output, said));
        assert!(ends.client.line.get_mut().expect("whole").is_some());
    }
}
