//! Names: 127.0.0.11 in every container.
//!
//! There is one UDP and one TCP socket per network, at 127.0.0.11 in the network's namespace. A
//! container's route sends the address there, from its own address, so the server knows who asks
//! without a socket or a translation per container.
//!
//! Questions about names of the asker's networks are answered from a table that is replaced as a
//! whole; all others are forwarded from the host's namespace.

mod answer;
mod forward;
mod server;
mod zone;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::BorrowedFd,
    sync::{Arc, PoisonError, RwLock},
};

use tokio::{runtime::Handle, task::JoinHandle};

use crate::{
    attach::NAME_SERVER,
    check::fold_names,
    model::{ContainerEndpoints, NetworkState},
    sys,
};
use forward::Forwarder;
use zone::{Asker, Zone};

const PORT: u16 = 53;

/// The name servers of all networks. They stop when this is dropped.
#[derive(Debug)]
pub(crate) struct Dns {
    runtime: Handle,
    shared: Arc<Shared>,
    servers: BTreeMap<String, Server>,
}

/// What the servers read. Locks are held to clone an `Arc`, never longer.
#[derive(Debug)]
struct Shared {
    zones: RwLock<HashMap<String, Arc<Zone>>>,
    /// By the network that the question comes from, and the address it comes from.
    askers: RwLock<HashMap<(String, Ipv4Addr), Arc<Asker>>>,
    forwarder: Forwarder,
}

/// Stops when this is dropped, at some time soon.
#[derive(Debug)]
pub(crate) struct Server(JoinHandle<()>);

impl Server {
    /// Stops it. When this returns its address is free.
    pub(crate) async fn end(mut self) {
        self.0.abort();
        // An abort is the expected end.
        let _ = (&mut self.0).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Dns {
    pub(crate) fn new(runtime: Handle, upstreams: Vec<SocketAddr>) -> Self {
        let shared = Shared {
            zones: RwLock::default(),
            askers: RwLock::default(),
            forwarder: Forwarder::new(upstreams),
        };
        Self {
            runtime,
            shared: Arc::new(shared),
            servers: BTreeMap::new(),
        }
    }

    /// Names that no network knows are asked for there from now on.
    pub(crate) fn set_upstreams(&self, upstreams: Vec<SocketAddr>) {
        self.shared.forwarder.set_upstreams(upstreams);
    }

    /// Answers for the network's names from now on.
    pub(crate) fn serve(
        &mut self,
        id: &str,
        state: &Arc<NetworkState>,
        namespace: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let known = self.shared.zone(id);
        if known.is_none_or(|zone| !zone.is_of(state)) {
            let zone = Arc::new(Zone::new(state.clone()));
            let mut zones = self
                .shared
                .zones
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            zones.insert(id.to_owned(), zone);
        }
        if self
            .servers
            .get(id)
            .is_some_and(|server| !server.0.is_finished())
        {
            return Ok(());
        }
        let address = SocketAddr::from((NAME_SERVER, PORT));
        let (udp, tcp) = sys::in_namespace(namespace, || {
            let (udp, tcp) = (UdpSocket::bind(address)?, TcpListener::bind(address)?);
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            io::Result::Ok((udp, tcp))
        })??;
        let _context = self.runtime.enter();
        let udp = tokio::net::UdpSocket::from_std(udp)?;
        let tcp = tokio::net::TcpListener::from_std(tcp)?;
        let serve = server::serve(self.shared.clone(), id.to_owned(), udp, tcp);
        self.servers
            .insert(id.to_owned(), Server(self.runtime.spawn(serve)));
        Ok(())
    }

    /// Stops answering in a network, and forgets it.
    pub(crate) fn stop(&mut self, id: &str) {
        self.servers.remove(id);
        self.shared
            .zones
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
        let mut askers = self
            .shared
            .askers
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        askers.retain(|(network, _), _| network != id);
    }

    /// The servers of all networks, to be ended.
    pub(crate) fn take_servers(&mut self) -> Vec<Server> {
        std::mem::take(&mut self.servers).into_values().collect()
    }

    /// The container asks from any of these addresses, and knows the names of all its networks.
    pub(crate) fn attach(&self, group: &ContainerEndpoints) {
        let asker = Arc::new(Asker {
            networks: group
                .endpoints
                .iter()
                .map(|endpoint| endpoint.network.clone())
                .collect(),
            names: fold_names(group.names.clone()),
            upstreams: group.dns.clone(),
        });
        let mut askers = self
            .shared
            .askers
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        for endpoint in &group.endpoints {
            askers.insert((endpoint.network.clone(), endpoint.addr), asker.clone());
        }
    }

    pub(crate) fn detach(&self, network: &str, addr: Ipv4Addr) {
        let mut askers = self
            .shared
            .askers
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(gone) = askers.remove(&(network.to_owned(), addr)) else {
            return;
        };
        // The container's other addresses no longer know this network's names.
        let networks = gone
            .networks
            .iter()
            .filter(|id| *id != network)
            .cloned()
            .collect();
        let rest = Arc::new(Asker {
            networks,
            names: gone.names.clone(),
            upstreams: gone.upstreams.clone(),
        });
        for asker in askers
            .values_mut()
            .filter(|asker| Arc::ptr_eq(asker, &gone))
        {
            *asker = rest.clone();
        }
    }
}

impl Shared {
    fn zone(&self, id: &str) -> Option<Arc<Zone>> {
        self.zones
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }

    /// Who asks. A container that is not known yet, as after a restart of the daemon, knows the
    /// network that the question comes from.
    fn asker(&self, network: &str, addr: Ipv4Addr) -> Arc<Asker> {
        let askers = self.askers.read().unwrap_or_else(PoisonError::into_inner);
        let known = askers.get(&(network.to_owned(), addr)).cloned();
        known.unwrap_or_else(|| Arc::new(Asker::of_network(network)))
    }

    fn zones_of(&self, asker: &Asker) -> Vec<Arc<Zone>> {
        let zones = self.zones.read().unwrap_or_else(PoisonError::into_inner);
        asker
            .networks
            .iter()
            .filter_map(|id| zones.get(id).cloned())
            .collect()
    }
}
