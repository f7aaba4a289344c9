//! Members of one process that reach each other through memory: for tests and simulations.
//!
//! Requests are the same bytes as on a wire. Links can be cut in one direction or both; a message on a
//! cut link is lost, which its sender learns from the time that passes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesOrdered};
use shoal_types::RaftId;

use super::{Line, Peer, PeerError, Peers, SnapshotBody};
use crate::store::Store;

/// The links between some stores. Copies share them.
#[derive(Clone, Default)]
pub struct Router(Arc<Mutex<Links>>);

#[derive(Default)]
struct Links {
    members: BTreeMap<RaftId, Store>,
    cut: BTreeSet<(RaftId, RaftId)>,
}

impl Router {
    pub fn new() -> Self {
        Self::default()
    }

    /// What `from` is opened with.
    pub fn peers(&self, from: RaftId) -> Arc<dyn Peers> {
        Arc::new(Port {
            router: self.clone(),
            from,
        })
    }

    /// From now on `store` answers as `id`.
    pub fn attach(&self, id: RaftId, store: Store) {
        self.links().members.insert(id, store);
    }

    /// As if its process had ended.
    pub fn detach(&self, id: RaftId) -> Option<Store> {
        self.links().members.remove(&id)
    }

    /// Loses what `from` says to `to`; what `to` says still arrives.
    pub fn cut(&self, from: RaftId, to: RaftId) {
        self.links().cut.insert((from, to));
    }

    /// Loses everything between `id` and the others, in both directions.
    pub fn isolate(&self, id: RaftId) {
        let mut links = self.links();
        let others: Vec<RaftId> = links.members.keys().copied().collect();
        for other in others.into_iter().filter(|other| *other != id) {
            links.cut.insert((id, other));
            links.cut.insert((other, id));
        }
    }

    /// Restores all links.
    pub fn heal(&self) {
        self.links().cut.clear();
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_cut(&self, from: RaftId, to: RaftId) -> bool {
        self.links().cut.contains(&(from, to))
    }

    fn member(&self, to: &Peer) -> Result<Store, PeerError> {
        let member = self.links().members.get(&to.id).cloned();
        member.ok_or_else(|| PeerError::Unreachable {
            id: to.id,
            addr: to.addr.clone(),
            source: io::ErrorKind::ConnectionRefused.into(),
        })
    }
}

#[derive(Clone)]
struct Port {
    router: Router,
    from: RaftId,
}

impl Port {
    /// Runs `exchange` unless its messages get lost.
    async fn exchange(
        &self,
        to: &Peer,
        limit: Duration,
        exchange: impl Future<Output = Result<Vec<u8>, PeerError>>,
    ) -> Result<Vec<u8>, PeerError> {
        let timeout = PeerError::Timeout { id: to.id };
        if self.router.is_cut(self.from, to.id) {
            tokio::time::sleep(limit).await;
            return Err(timeout);
        }
        let answer = exchange.await;
        if self.router.is_cut(to.id, self.from) {
            tokio::time::sleep(limit).await;
            return Err(timeout);
        }
        answer
    }
}

impl Peers for Port {
    fn call<'a>(
        &'a self,
        to: &'a Peer,
        request: Vec<u8>,
        limit: Duration,
    ) -> BoxFuture<'a, Result<Vec<u8>, PeerError>> {
        Box::pin(async move {
            let call = self.exchange(to, limit, async {
                let member = self.router.member(to)?;
                member
                    .answer(&request)
                    .await
                    .map_err(|error| PeerError::Refused {
                        id: to.id,
                        reason: error.to_string(),
                    })
            });
            match tokio::time::timeout(limit, call).await {
                Ok(answer) => answer,
                Err(_elapsed) => Err(PeerError::Timeout { id: to.id }),
            }
        })
    }

    fn open<'a>(
        &'a self,
        to: &'a Peer,
        limit: Duration,
    ) -> BoxFuture<'a, Result<Box<dyn Line>, PeerError>> {
        let line = self.router.member(to).map(|_member| {
            let (port, to) = (self.clone(), to.clone());
            let under_way = FuturesOrdered::new();
            Box::new(Calls {
                port,
                to,
                limit,
                under_way,
            }) as Box<dyn Line>
        });
        Box::pin(std::future::ready(line))
    }

    fn is_gone<'a>(&'a self, peer: &'a Peer) -> BoxFuture<'a, bool> {
        let refused = self.router.member(peer).is_err();
        // On a cut link not even that is heard.
        let cut = |from, to| self.router.is_cut(from, to);
        let heard = !cut(self.from, peer.id) && !cut(peer.id, self.from);
        Box::pin(std::future::ready(refused && heard))
    }

    fn send_snapshot<'a>(
        &'a self,
        to: &'a Peer,
        request: Vec<u8>,
        body: SnapshotBody,
        idle: Duration,
    ) -> BoxFuture<'a, Result<Vec<u8>, PeerError>> {
        Box::pin(self.exchange(to, idle, async move {
            let member = self.router.member(to)?;
            member
                .receive_snapshot(&request, body)
                .await
                .map_err(|error| PeerError::Refused {
                    id: to.id,
                    reason: error.to_string(),
                })
        }))
    }
}

/// Calls that begin in the order in which they are made, as they do on a connection.
struct Calls {
    port: Port,
    to: Peer,
    limit: Duration,
    under_way: FuturesOrdered<BoxFuture<'static, Result<Vec<u8>, PeerError>>>,
}

impl Line for Calls {
    fn say(&mut self, request: Vec<u8>) -> BoxFuture<'_, Result<(), PeerError>> {
        let (port, to, limit) = (self.port.clone(), self.to.clone(), self.limit);
        let call = async move { port.call(&to, request, limit).await };
        self.under_way.push_back(Box::pin(call));
        Box::pin(std::future::ready(Ok(())))
    }

    fn hear(&mut self) -> BoxFuture<'_, Result<Vec<u8>, PeerError>> {
        Box::pin(async {
            let answer = self.under_way.next().await;
            answer.unwrap_or(Err(PeerError::Timeout { id: self.to.id }))
        })
    }
}
