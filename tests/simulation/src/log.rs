//! A replicated log, exact and small: terms, votes, majority commit, flushes that a crash forgets,
//! followers that lag, snapshots. It does what Raft prescribes, message by message, and nothing else.
//!
//! Everything it does is a function of what it is given, so a seed replays exactly; why it stands in
//! for the real store is told in `docs/decisions/0004-simulation.md`.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use rand::{RngExt, rngs::StdRng};
use shoal_raft_store::{Command, State};
use shoal_types::Timestamp;

/// The host a member runs on.
pub(crate) type Member = usize;

const HEARTBEAT: Duration = Duration::from_millis(150);
/// A follower hears nothing for so long before it stands for election; see [`Replica::rest`].
pub(crate) const PATIENCE: Duration = Duration::from_millis(500);
/// Entries in one message.
const BATCH: usize = 64;
/// Entries kept behind a snapshot, for followers that lag a little.
const TAIL: usize = 24;

#[derive(Debug, Clone)]
pub(crate) struct Proposal {
    pub(crate) id: u64,
    pub(crate) command: Arc<Command>,
}

/// `None` is a leader's first entry.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) term: u64,
    pub(crate) proposal: Option<Proposal>,
}

#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) state: State,
}

#[derive(Debug, Clone)]
pub(crate) enum Message {
    Vote {
        term: u64,
        last: (u64, u64),
    },
    VoteAnswer {
        term: u64,
        granted: bool,
    },
    Append {
        term: u64,
        round: u64,
        previous: (u64, u64),
        entries: Vec<Entry>,
        commit: u64,
    },
    Install {
        term: u64,
        round: u64,
        snapshot: Arc<Snapshot>,
    },
    /// `matched` is what is flushed and the same as the leader's; `None`: the entry before was not.
    Answer {
        term: u64,
        round: u64,
        matched: Option<u64>,
    },
}

/// What a step asks the world to do.
#[derive(Debug)]
pub(crate) enum Effect {
    Send(Member, Message),
    /// Call [`Replica::flushed`] with this once it is on disk.
    Flush {
        index: u64,
        term: u64,
    },
    /// The state was replaced by that of the snapshot.
    Installed(Arc<Snapshot>),
}

#[derive(Debug)]
enum Role {
    Follower,
    Candidate { votes: Vec<Member> },
    Leader(Lead),
}

#[derive(Debug)]
struct Lead {
    peers: Vec<Peer>,
    /// Counts what was sent to all, so that an answer shows that it was leader after some moment.
    round: u64,
    next_heartbeat: Timestamp,
}

#[derive(Debug)]
struct Peer {
    member: Member,
    next: u64,
    matched: u64,
    round: u64,
    answered: Timestamp,
}

/// One member.
#[derive(Debug)]
pub(crate) struct Replica {
    me: Member,
    members: Vec<Member>,
    // On disk.
    term: u64,
    voted: Option<Member>,
    snapshot: Arc<Snapshot>,
    /// Index and term of the entry before the first that is kept.
    before: (u64, u64),
    entries: VecDeque<Entry>,
    flushed: u64,
    // In memory.
    role: Role,
    leader: Option<Member>,
    commit: u64,
    heard: Timestamp,
    deadline: Timestamp,
    answer_round: u64,
    /// Up to here the log is known to be that of the leader.
    verified: u64,
    /// Counts what is written before it is on disk: one of the mutants.
    pub(crate) hasty: bool,
    pub(crate) disk_full: bool,
}

impl Replica {
    pub(crate) fn new(me: Member, members: Vec<Member>, state: &State) -> Self {
        let snapshot = Snapshot {
            index: state.version().0,
            term: 0,
            state: state.clone(),
        };
        let index = snapshot.index;
        Self {
            me,
            members,
            term: 0,
            voted: None,
            snapshot: Arc::new(snapshot),
            before: (index, 0),
            entries: VecDeque::new(),
            flushed: index,
            role: Role::Follower,
            leader: None,
            commit: index,
            heard: Timestamp::EPOCH,
            deadline: Timestamp::EPOCH,
            answer_round: 0,
            verified: 0,
            hasty: false,
            disk_full: false,
        }
    }

    /// The process is gone: what was not flushed is lost, and everything in memory.
    pub(crate) fn crash(&mut self) {
        self.cut(self.flushed.max(self.before.0));
        self.role = Role::Follower;
        self.leader = None;
        self.verified = 0;
        self.commit = self.snapshot.index;
        self.heard = Timestamp::EPOCH;
    }

    pub(crate) fn start(&mut self, now: Timestamp, rng: &mut StdRng) {
        self.heard = Timestamp::EPOCH;
        self.rest(now, rng);
    }

    /// The next election begins after the patience and another random time.
    fn rest(&mut self, now: Timestamp, rng: &mut StdRng) {
        self.deadline = now.after(PATIENCE + Duration::from_millis(rng.random_range(150..700)));
    }

    pub(crate) fn term(&self) -> u64 {
        self.term
    }

    pub(crate) fn leader(&self) -> Option<Member> {
        self.leader
    }

    pub(crate) fn commit(&self) -> u64 {
        self.commit
    }

    pub(crate) fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    pub(crate) fn entry(&self, index: u64) -> Option<&Entry> {
        let at = index.checked_sub(self.before.0 + 1)?;
        self.entries.get(usize::try_from(at).ok()?)
    }

    fn last(&self) -> u64 {
        self.before.0 + self.entries.len() as u64
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.before.0 {
            return Some(self.before.1);
        }
        self.entry(index).map(|entry| entry.term)
    }

    fn quorum(&self) -> usize {
        self.members.len() / 2 + 1
    }

    fn durable(&self) -> u64 {
        if self.hasty {
            self.last()
        } else {
            self.flushed
        }
    }

    /// It leads, has committed something of its term, and heard a majority lately.
    pub(crate) fn leads(&self, now: Timestamp) -> bool {
        let Role::Leader(lead) = &self.role else {
            return false;
        };
        let lately = lead.peers.iter();
        let lately = lately.filter(|peer| now.since(peer.answered) <= PATIENCE * 2);
        self.term_at(self.commit) == Some(self.term) && lately.count() + 1 >= self.quorum()
    }

    /// The round that must be confirmed for a read that begins now.
    pub(crate) fn begin_read(&mut self, out: &mut Vec<Effect>) -> Option<u64> {
        let Role::Leader(lead) = &mut self.role else {
            return None;
        };
        lead.round += 1;
        let round = lead.round;
        self.send_all(out);
        Some(round)
    }

    pub(crate) fn is_confirmed(&self, round: u64) -> bool {
        let Role::Leader(lead) = &self.role else {
            return false;
        };
        let confirmed = lead.peers.iter().filter(|peer| peer.round >= round);
        confirmed.count() + 1 >= self.quorum()
    }

    pub(crate) fn tick(&mut self, now: Timestamp, rng: &mut StdRng, out: &mut Vec<Effect>) {
        match &mut self.role {
            Role::Leader(lead) => {
                if now >= lead.next_heartbeat {
                    lead.next_heartbeat = now.after(HEARTBEAT);
                    lead.round += 1;
                    for peer in &mut lead.peers {
                        // What was lost on the way is sent again.
                        if peer.matched > 0 {
                            peer.next = peer.matched + 1;
                        }
                    }
                    self.send_all(out);
                }
            }
            Role::Follower | Role::Candidate { .. } => {
                if now >= self.deadline {
                    self.stand(now, rng, out);
                }
            }
        }
    }

    fn stand(&mut self, now: Timestamp, rng: &mut StdRng, out: &mut Vec<Effect>) {
        self.rest(now, rng);
        self.term += 1;
        self.voted = Some(self.me);
        self.leader = None;
        self.role = Role::Candidate {
            votes: vec![self.me],
        };
        let last = self.last_point();
        let vote = Message::Vote {
            term: self.term,
            last,
        };
        for member in self.others() {
            out.push(Effect::Send(member, vote.clone()));
        }
        self.count_votes(now, out);
    }

    fn last_point(&self) -> (u64, u64) {
        let last = self.last();
        (self.term_at(last).unwrap_or(0), last)
    }

    fn others(&self) -> Vec<Member> {
        let others = self.members.iter().copied();
        others.filter(|member| *member != self.me).collect()
    }

    fn count_votes(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        let Role::Candidate { votes } = &self.role else {
            return;
        };
        if votes.len() < self.quorum() {
            return;
        }
        let next = self.last() + 1;
        let peer = |member| Peer {
            member,
            next,
            matched: 0,
            round: 0,
            answered: now,
        };
        self.role = Role::Leader(Lead {
            peers: self.others().into_iter().map(peer).collect(),
            round: 1,
            next_heartbeat: now.after(HEARTBEAT),
        });
        self.leader = Some(self.me);
        self.append(None, out);
    }

    /// Takes `proposal` into the log, if this is the leader and its disk has room.
    pub(crate) fn propose(&mut self, proposal: Proposal, out: &mut Vec<Effect>) -> bool {
        if !matches!(self.role, Role::Leader(_)) || self.disk_full {
            return false;
        }
        self.append(Some(proposal), out);
        true
    }

    fn append(&mut self, proposal: Option<Proposal>, out: &mut Vec<Effect>) {
        let term = self.term;
        self.entries.push_back(Entry { term, proposal });
        out.push(Effect::Flush {
            index: self.last(),
            term,
        });
        self.send_all(out);
        self.advance();
    }

    fn send_all(&mut self, out: &mut Vec<Effect>) {
        let Role::Leader(lead) = &self.role else {
            return;
        };
        let round = lead.round;
        let mut sent = Vec::new();
        for peer in &lead.peers {
            let previous = peer.next - 1;
            let (message, next) = match self.term_at(previous) {
                Some(term) if previous >= self.before.0 => {
                    let skip = usize::try_from(previous - self.before.0).expect("fits");
                    let entries = self.entries.iter().skip(skip).take(BATCH).cloned();
                    let entries: Vec<Entry> = entries.collect();
                    let next = peer.next + entries.len() as u64;
                    let append = Message::Append {
                        term: self.term,
                        round,
                        previous: (term, previous),
                        entries,
                        commit: self.commit,
                    };
                    (append, next)
                }
                _ => {
                    let snapshot = self.snapshot.clone();
                    let next = snapshot.index + 1;
                    let install = Message::Install {
                        term: self.term,
                        round,
                        snapshot,
                    };
                    (install, next)
                }
            };
            sent.push(next);
            out.push(Effect::Send(peer.member, message));
        }
        if let Role::Leader(lead) = &mut self.role {
            // One whose log is not known yet is asked about one place at a time.
            for (peer, next) in lead.peers.iter_mut().zip(sent) {
                if peer.matched > 0 {
                    peer.next = next;
                }
            }
        }
    }

    /// What a majority has on disk is committed, if it is of this term.
    fn advance(&mut self) {
        let Role::Leader(lead) = &self.role else {
            return;
        };
        let mut matched: Vec<u64> = lead.peers.iter().map(|peer| peer.matched).collect();
        matched.push(self.durable());
        matched.sort_unstable_by(|a, b| b.cmp(a));
        let agreed = matched[self.quorum() - 1];
        if agreed > self.commit && self.term_at(agreed) == Some(self.term) {
            self.commit = agreed;
        }
    }

    /// The disk has everything up to the entry of `index` and `term`, unless it was cut off meanwhile.
    pub(crate) fn flushed(&mut self, index: u64, term: u64, out: &mut Vec<Effect>) {
        if self.term_at(index) != Some(term) || index <= self.flushed {
            return;
        }
        self.flushed = index;
        if matches!(self.role, Role::Leader(_)) {
            self.advance();
        } else if let Some(leader) = self.leader.filter(|leader| *leader != self.me) {
            let matched = index.min(self.verified);
            out.push(Effect::Send(leader, self.answer(Some(matched))));
        }
    }

    fn answer(&self, matched: Option<u64>) -> Message {
        Message::Answer {
            term: self.term,
            round: self.answer_round,
            matched,
        }
    }

    /// Drops what comes after `index`.
    fn cut(&mut self, index: u64) {
        let keep = index.saturating_sub(self.before.0);
        self.entries.truncate(usize::try_from(keep).expect("fits"));
        self.flushed = self.flushed.min(self.last());
    }

    pub(crate) fn receive(
        &mut self,
        from: Member,
        message: Message,
        now: Timestamp,
        rng: &mut StdRng,
        out: &mut Vec<Effect>,
    ) {
        let term = match &message {
            Message::Vote { term, .. }
            | Message::VoteAnswer { term, .. }
            | Message::Append { term, .. }
            | Message::Install { term, .. }
            | Message::Answer { term, .. } => *term,
        };
        if let Message::Vote { last, .. } = message {
            self.vote(from, term, last, now, rng, out);
            return;
        }
        if term > self.term {
            self.step_down(term);
        }
        match message {
            Message::Vote { .. } => {}
            Message::VoteAnswer { granted, .. } => {
                if term == self.term
                    && granted
                    && let Role::Candidate { votes } = &mut self.role
                {
                    if !votes.contains(&from) {
                        votes.push(from);
                    }
                    self.count_votes(now, out);
                }
            }
            Message::Append {
                round,
                previous,
                entries,
                commit,
                ..
            } => {
                if term < self.term {
                    out.push(Effect::Send(from, self.answer(None)));
                    return;
                }
                self.follow(from, round, now, rng);
                self.take(from, previous, entries, commit, out);
            }
            Message::Install {
                round, snapshot, ..
            } => {
                if term < self.term {
                    out.push(Effect::Send(from, self.answer(None)));
                    return;
                }
                self.follow(from, round, now, rng);
                self.install(from, snapshot, out);
            }
            Message::Answer { round, matched, .. } => {
                if term == self.term {
                    self.hear(from, round, matched, now);
                }
            }
        }
    }

    fn step_down(&mut self, term: u64) {
        self.term = term;
        self.voted = None;
        self.role = Role::Follower;
        self.leader = None;
    }

    /// A member that hears a leader votes for nobody else.
    fn vote(
        &mut self,
        from: Member,
        term: u64,
        last: (u64, u64),
        now: Timestamp,
        rng: &mut StdRng,
        out: &mut Vec<Effect>,
    ) {
        let content = match &self.role {
            Role::Leader(_) => self.leads(now),
            Role::Follower => self.leader.is_some() && now.since(self.heard) < PATIENCE,
            Role::Candidate { .. } => false,
        };
        if content {
            return;
        }
        if term > self.term {
            self.step_down(term);
        }
        let free = self.voted.is_none_or(|voted| voted == from);
        let granted = term == self.term && free && last >= self.last_point();
        if granted {
            self.voted = Some(from);
            self.rest(now, rng);
        }
        let term = self.term;
        out.push(Effect::Send(from, Message::VoteAnswer { term, granted }));
    }

    fn follow(&mut self, leader: Member, round: u64, now: Timestamp, rng: &mut StdRng) {
        self.role = Role::Follower;
        if self.leader != Some(leader) {
            self.answer_round = 0;
            self.verified = 0;
        }
        self.leader = Some(leader);
        self.answer_round = self.answer_round.max(round);
        self.heard = now;
        self.rest(now, rng);
    }

    fn take(
        &mut self,
        leader: Member,
        (term, index): (u64, u64),
        entries: Vec<Entry>,
        commit: u64,
        out: &mut Vec<Effect>,
    ) {
        let known = index < self.before.0 || self.term_at(index) == Some(term);
        if !known || (self.disk_full && !entries.is_empty()) {
            out.push(Effect::Send(leader, self.answer(None)));
            return;
        }
        let end = index + entries.len() as u64;
        let mut wrote = false;
        for (entry, at) in entries.into_iter().zip(index + 1..) {
            if at <= self.before.0 {
                continue;
            }
            match self.term_at(at) {
                Some(term) if term == entry.term => {}
                Some(_conflict) => {
                    self.cut(at - 1);
                    self.entries.push_back(entry);
                    wrote = true;
                }
                None => {
                    self.entries.push_back(entry);
                    wrote = true;
                }
            }
        }
        if wrote {
            let (term, index) = self.last_point();
            out.push(Effect::Flush { index, term });
        }
        // Whatever is beyond `end` was not compared with the leader's log.
        self.verified = self.verified.max(end);
        let matched = self.durable().min(self.verified);
        out.push(Effect::Send(leader, self.answer(Some(matched))));
        self.commit = self.commit.max(commit.min(end));
    }

    fn install(&mut self, leader: Member, snapshot: Arc<Snapshot>, out: &mut Vec<Effect>) {
        let index = snapshot.index;
        if index > self.commit {
            if self.term_at(index) != Some(snapshot.term) {
                self.entries.clear();
                self.before = (index, snapshot.term);
            }
            self.flushed = self.flushed.max(index).min(self.last());
            self.commit = index;
            self.snapshot = snapshot.clone();
            out.push(Effect::Installed(snapshot));
        }
        self.verified = self.verified.max(index);
        out.push(Effect::Send(leader, self.answer(Some(index))));
    }

    fn hear(&mut self, from: Member, round: u64, matched: Option<u64>, now: Timestamp) {
        let Role::Leader(lead) = &mut self.role else {
            return;
        };
        let Some(peer) = lead.peers.iter_mut().find(|peer| peer.member == from) else {
            return;
        };
        peer.answered = now;
        peer.round = peer.round.max(round);
        match matched {
            Some(matched) => {
                peer.matched = peer.matched.max(matched);
                peer.next = peer.next.max(peer.matched + 1);
            }
            None => peer.next = peer.next.saturating_sub(8).max(peer.matched + 1),
        }
        self.advance();
    }

    /// `state` is what the log up to `index` makes: older entries may go.
    pub(crate) fn compact(&mut self, index: u64, state: State) {
        let Some(term) = self.term_at(index) else {
            return;
        };
        if index > self.flushed {
            return;
        }
        self.snapshot = Arc::new(Snapshot { index, term, state });
        let drop = index.saturating_sub(self.before.0 + TAIL as u64);
        for _ in 0..drop {
            if let Some(entry) = self.entries.pop_front() {
                self.before = (self.before.0 + 1, entry.term);
            }
        }
    }

    /// Where it is, for a report.
    pub(crate) fn summary(&self) -> String {
        let role = match &self.role {
            Role::Follower => "follows".to_owned(),
            Role::Candidate { .. } => "stands".to_owned(),
            Role::Leader(lead) => format!("leads {:?}", lead.peers),
        };
        format!(
            "{role} in term {}, kept after {:?} to {}, flushed {}, committed {}",
            self.term,
            self.before,
            self.last(),
            self.flushed,
            self.commit
        )
    }

    /// How many entries there are since the last snapshot.
    pub(crate) fn since_snapshot(&self, index: u64) -> u64 {
        index - self.snapshot.index.min(index)
    }
}
