//! What the datapath knows, and how it brings the kernel to what is desired. Lives on the
//! datapath's own thread; everything here blocks, and one thing happens at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::Ipv4Addr,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    check::{self, Checked, is_id},
    config::{NetworkConfig, Slot},
    dns::Dns,
    host::Host,
    model::{ApplyError, Difference, NetworkState, Published, PublishedTarget, Refusal},
    netlink::KernelError,
    network::{Around, Network},
    overlay::{self, Mtu},
    sys,
    tables::{self, Content},
};

/// What is on this node.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) config: NetworkConfig,
    pub(crate) host: Host,
    /// Of every interface made: what the host's own had when last looked at.
    pub(crate) mtu: Mtu,
    pub(crate) networks: BTreeMap<String, Network>,
    pub(crate) dns: Dns,
    /// Owners of the addresses that were attached through this datapath, by network and address.
    pub(crate) attached: BTreeMap<(String, Ipv4Addr), String>,
    /// Transactions of networks that are gone.
    past_transactions: u64,
    /// Whether anything was ever applied: before that nothing is desired, and nothing differs.
    applied: bool,
}

/// The entries of both tables that make the published ports of one network.
#[derive(Debug, Default)]
struct Ports {
    host: Vec<tables::host::Entry>,
    network: Vec<tables::network::Entry>,
}

impl State {
    pub(crate) fn open(config: NetworkConfig, dns: Dns) -> io::Result<Self> {
        fs::create_dir_all(config.pins())?;
        let mut host = Host::open(&config)?;
        let mtu = host.mtu().map_err(|error| io::Error::from(error.errno()))?;
        Ok(Self {
            config,
            host,
            mtu,
            networks: BTreeMap::new(),
            dns,
            attached: BTreeMap::new(),
            past_transactions: 0,
            applied: false,
        })
    }

    pub(crate) fn transactions(&self) -> u64 {
        let networks: u64 = self.networks.values().map(Network::transactions).sum();
        self.past_transactions + self.host.transactions() + networks
    }

    pub(crate) fn apply(&mut self, desired: Vec<NetworkState>) -> Vec<ApplyError> {
        let Checked {
            networks,
            refused: mut untouched,
            mut errors,
        } = check::check(desired, self.config.uplink_pool, |state| {
            self.mtu.can_ipv6(state)
        });
        self.applied = true;
        if networks.values().any(|state| state.has_uplink())
            && let Err(source) = self.host.enable_forwarding()
        {
            errors.push(ApplyError::Host {
                doing: "turn forwarding on",
                source,
            });
        }
        self.free_vnis(&networks, &untouched, &mut errors);
        let content = self.host.content().ok().flatten().unwrap_or_default();
        let mut entries = Vec::new();
        for (id, state) in &networks {
            match self.apply_network(id, state, &content, &mut errors) {
                Ok(ports) => entries.extend(ports.host),
                Err(error) => {
                    errors.push(error);
                    // Whatever was done before the error is compared again.
                    if let Some(network) = self.networks.get_mut(id) {
                        network.forget_base();
                    }
                    untouched.insert(id.clone());
                }
            }
        }
        let kept = self.kept_ports(&untouched, &content);
        if let Err(source) = self.host.apply_ports(&entries, kept) {
            errors.push(ApplyError::Host {
                doing: "publish ports",
                source,
            });
        }
        self.remove_others(&networks, &untouched, &mut errors);
        errors
    }

    /// Removes the tunnels of networks that are about to go, first of all: a network that comes may
    /// have got the vni of one of them.
    fn free_vnis(
        &mut self,
        wanted: &BTreeMap<String, Arc<NetworkState>>,
        untouched: &BTreeSet<String>,
        errors: &mut Vec<ApplyError>,
    ) {
        for (id, network) in &mut self.networks {
            let tunnel = network.state.as_ref().and_then(|state| state.tunnel());
            if tunnel.is_none() || wanted.contains_key(id) || untouched.contains(id) {
                continue;
            }
            let removed = network.clear_tunnel(None, self.host.namespace());
            errors.extend(removed.err().map(|source| ApplyError::Network {
                network: id.clone(),
                doing: "remove its tunnel to other nodes",
                source,
            }));
        }
    }

    /// The ports that networks have which were refused or failed, and keep: those of the state
    /// they are in, and of networks that could not be looked at yet, what the kernel has.
    fn kept_ports(&self, untouched: &BTreeSet<String>, content: &Content) -> Content {
        let mut entries = Vec::new();
        for id in untouched {
            if let Some(state) = self.networks.get(id).and_then(|n| n.state.as_ref()) {
                entries.extend(self.ports(id, state, content, &mut Vec::new()).host);
            }
        }
        let mut kept = tables::host::ports(&entries);
        if self.is_any_unseen(untouched) {
            let seen = self.networks.values().filter_map(Network::uplink);
            let seen = seen.map(|slot| self.config.uplink_addresses(slot).1);
            let unseen = tables::host::leading_elsewhere(content, &seen.collect());
            tables::fill(&mut kept, unseen);
        }
        kept
    }

    /// Whether any of these networks may have an uplink that this datapath has not seen yet.
    fn is_any_unseen<'a>(&self, ids: impl IntoIterator<Item = &'a String>) -> bool {
        ids.into_iter().any(|id| match self.networks.get(id) {
            Some(network) => !network.uplink_is_seen(),
            None => self.config.pins().join(id).exists(),
        })
    }

    fn apply_network(
        &mut self,
        id: &str,
        state: &Arc<NetworkState>,
        content: &Content,
        errors: &mut Vec<ApplyError>,
    ) -> Result<Ports, ApplyError> {
        let failed = |doing| {
            move |source| ApplyError::Network {
                network: id.to_owned(),
                doing,
                source,
            }
        };
        if !self.networks.contains_key(id) {
            self.refresh_mtu();
            let network = Network::open(&self.config.pins().join(id)).map_err(|error| {
                failed("make the namespace")(KernelError::new("network namespace", &error))
            })?;
            self.networks.insert(id.to_owned(), network);
        }
        // The same state again needs no more than this one comparison.
        let last = self.networks[id].state.clone();
        let state = &last
            .clone()
            .filter(|last| last == state)
            .unwrap_or_else(|| state.clone());
        let lost = last.map_or_else(Vec::new, |last| lost_with_their_nodes(&last, state));
        let was_known = self.networks[id].uplink_is_known(state);
        self.apply_uplink(id, state)?;
        self.apply_tunnel(id, state)?;
        let ports = self.ports(id, state, content, errors);
        let around = Around {
            config: &self.config,
            namespace: self.host.namespace(),
            mtu: &self.mtu,
        };
        let network = self.networks.get_mut(id).expect("inserted above");
        if !lost.is_empty() {
            // While there still is a way to them, which swallows what is sent: who tries to connect is
            // sent to others by the next try, instead of being told that there is no way.
            network
                .apply_table(&self.config, state, &ports.network)
                .map_err(failed("load the table"))?;
            for addr in lost {
                let forgotten = network.forget_connections_to(addr);
                errors.extend(forgotten.err().map(failed("forget connections")));
            }
            // The table's state is known by now, that of the ways is not.
            network.forget_base();
        }
        network
            .apply_base(around, state)
            .map_err(failed("set up the namespace"))?;
        network
            .apply_table(&self.config, state, &ports.network)
            .map_err(failed("load the table"))?;
        // The network is as desired; what fails from here on is told, and takes no ports away.
        if let Err(error) = self.dns.serve(id, state, network.namespace()) {
            // Connections work without names; the rest goes on.
            let source = KernelError::new("name server at 127.0.0.11", &error);
            errors.push(failed("serve names")(source));
        }
        if !was_known {
            let uplink = self.networks[id].uplink();
            let settled = uplink.map_or(Ok(()), |slot| self.host.settle_uplink(slot));
            let reached = self.repair_containers(id);
            let results = [
                settled.map_err(failed("set up the uplink")),
                reached.map_err(failed("reach its containers")),
            ];
            for error in results.into_iter().filter_map(Result::err) {
                errors.push(error);
                self.networks
                    .get_mut(id)
                    .expect("inserted above")
                    .forget_base();
            }
        }
        Ok(ports)
    }

    /// Makes, finds or removes the network's uplink, and sees to its near end.
    fn apply_uplink(&mut self, id: &str, state: &NetworkState) -> Result<(), ApplyError> {
        let failed = |source| ApplyError::Network {
            network: id.to_owned(),
            doing: "make the uplink",
            source,
        };
        let network = self.networks.get_mut(id).expect("opened before");
        if network.uplink_is_known(state) {
            return Ok(());
        }
        let mut slot = self.host.uplink_into(network.namespace()).map_err(failed)?;
        network.set_uplink(slot);
        match slot {
            None if state.has_uplink() => {
                let taken = self.host.uplinks().map_err(failed)?.into_keys().collect();
                let free =
                    self.config
                        .free_slot(id, &taken)
                        .ok_or_else(|| ApplyError::PoolExhausted {
                            network: id.to_owned(),
                            pool: self.config.uplink_pool,
                        })?;
                self.host
                    .create_uplink(free, network.namespace(), self.mtu.out)
                    .map_err(failed)?;
                slot = Some(free);
            }
            Some(unwanted) if !state.has_uplink() => {
                let links = self.host.uplinks().map_err(failed)?;
                let index = links.get(&unwanted).map(|link| link.index);
                let errors = self.host.delete_uplinks(index);
                errors
                    .into_iter()
                    .next()
                    .map_or(Ok(()), |error| Err(failed(error)))?;
                slot = None;
            }
            _ => {}
        }
        network.set_uplink(slot);
        let errors = self.host.apply_uplinks(&slot.into_iter().collect());
        errors
            .into_iter()
            .next()
            .map_or(Ok(()), |error| Err(failed(error)))
    }

    /// Makes or removes the network's interface to other nodes.
    fn apply_tunnel(&mut self, id: &str, state: &NetworkState) -> Result<(), ApplyError> {
        if self.networks[id].tunnel_is_known(state) {
            return Ok(());
        }
        if state.overlay.is_some() {
            self.refresh_mtu();
        }
        let network = self.networks.get_mut(id).expect("opened before");
        let is_missing = network.clear_tunnel(Some(state), self.host.namespace());
        let made = is_missing.and_then(|is_missing| match state.tunnel() {
            Some(overlay) if is_missing => {
                let mtu = self.mtu.of(state);
                overlay::create(&mut self.host.route, network.namespace(), overlay, mtu)
            }
            _ => Ok(()),
        });
        made.map_err(|source| ApplyError::Network {
            network: id.to_owned(),
            doing: "make the tunnel to other nodes",
            source,
        })
    }

    /// Which port of the uplink each published port is sent to. Normally the same number; another
    /// when several addresses of the host publish the same number with different targets, and
    /// then the one that `content` has is kept.
    fn ports(
        &self,
        id: &str,
        state: &NetworkState,
        content: &Content,
        errors: &mut Vec<ApplyError>,
    ) -> Ports {
        let mut ports = Ports::default();
        let Some(slot) = self.networks.get(id).and_then(Network::uplink) else {
            return ports;
        };
        let uplink = self.config.uplink_addresses(slot).1;
        let of_uplinks = self.config.uplink_prefix6();
        let uplink6 = state.ipv6.then(|| of_uplinks.addr(uplink));
        let mut taken = BTreeSet::new();
        let (any, by_address): (Vec<&Published>, Vec<&Published>) = state
            .published
            .iter()
            .partition(|published| published.host_ip.is_none());
        for published in any.into_iter().chain(by_address) {
            let protocol = published.protocol;
            let free = |port: &u16| *port != 0 && !taken.contains(&(protocol, *port));
            let kept = published
                .host_ip
                .and_then(|ip| tables::host::uplink_port(content, (protocol, ip, published.port)))
                .filter(|_| published.host_ip.is_some());
            let port = kept
                .into_iter()
                .chain(published.port..=u16::MAX)
                .chain(1..published.port)
                .find(free);
            let Some(uplink_port) = port else {
                let reason = Refusal::PortsExhausted(published.to_string());
                errors.push(ApplyError::Refused {
                    network: id.to_owned(),
                    reason,
                });
                continue;
            };
            taken.insert((protocol, uplink_port));
            ports.host.push(tables::host::Entry {
                protocol,
                host_ip: published.host_ip,
                port: published.port,
                uplink,
                uplink6,
                uplink_port,
            });
            let to: PublishedTarget = published.to;
            ports.network.push(tables::network::Entry {
                protocol,
                port: uplink_port,
                to,
            });
        }
        ports
    }

    /// Removes networks that are not desired, and what an unclean end left.
    fn remove_others(
        &mut self,
        wanted: &BTreeMap<String, Arc<NetworkState>>,
        untouched: &BTreeSet<String>,
        errors: &mut Vec<ApplyError>,
    ) {
        let keep = |id: &String| wanted.contains_key(id) || untouched.contains(id);
        let pins = match self.pinned() {
            Ok(pins) => pins,
            Err(error) => {
                let source = KernelError::new("list of pinned namespaces", &error);
                errors.push(ApplyError::Host {
                    doing: "find networks",
                    source,
                });
                return;
            }
        };
        for (id, pin) in pins.into_iter().filter(|(id, _)| !keep(id)) {
            self.dns.stop(&id);
            self.attached.retain(|(network, _), _| *network != id);
            let tunnel = match self.networks.remove(&id) {
                Some(mut network) => {
                    let removed = network.clear_tunnel(None, self.host.namespace());
                    self.past_transactions += network.transactions();
                    removed.map(drop)
                }
                None => remove_tunnel(&pin),
            };
            errors.extend(tunnel.err().map(|source| ApplyError::Network {
                network: id.clone(),
                doing: "remove its tunnel to other nodes",
                source,
            }));
            if let Err(error) = sys::unpin(&pin) {
                let source = KernelError::new("pinned namespace", &error);
                errors.push(ApplyError::Network {
                    network: id,
                    doing: "remove it",
                    source,
                });
            }
        }
        match self.stray_uplinks(untouched) {
            Ok(links) => {
                let failed = self.host.delete_uplinks(links);
                errors.extend(failed.into_iter().map(|source| ApplyError::Host {
                    doing: "remove uplinks",
                    source,
                }));
            }
            Err(source) => errors.push(ApplyError::Host {
                doing: "find uplinks",
                source,
            }),
        }
    }

    /// Our interfaces in the host that no known network has. While networks are kept that could
    /// not be looked at, nothing counts as stray.
    fn stray_uplinks<'a>(
        &mut self,
        kept: impl IntoIterator<Item = &'a String>,
    ) -> Result<Vec<u32>, KernelError> {
        if self.is_any_unseen(kept) || self.is_any_unseen(self.networks.keys()) {
            return Ok(Vec::new());
        }
        let used: BTreeSet<Slot> = self.networks.values().filter_map(Network::uplink).collect();
        let links = self.host.uplinks()?;
        Ok(links
            .into_iter()
            .filter(|(slot, _)| !used.contains(slot))
            .map(|(_, link)| link.index)
            .collect())
    }

    /// Files in the directory of pins, by the id of their network.
    fn pinned(&self) -> io::Result<Vec<(String, PathBuf)>> {
        pinned(&self.config)
    }

    /// The next apply compares everything. Tables need no forgetting: their generation tells.
    pub(crate) fn recheck(&mut self) {
        self.networks.values_mut().for_each(Network::forget_base);
        self.refresh_mtu();
    }

    /// What cannot be read stays as it was: any MTU is better than no interface.
    fn refresh_mtu(&mut self) {
        if let Ok(mtu) = self.host.mtu() {
            self.mtu = mtu;
        }
    }

    pub(crate) fn diff(&mut self) -> Vec<Difference> {
        let mut found = Vec::new();
        if !self.applied {
            return found;
        }
        if let Err(error) = self.diff_into(&mut found) {
            found.push(Difference {
                network: None,
                what: format!("could not be compared: {error}"),
            });
        }
        found
    }

    fn diff_into(&mut self, found: &mut Vec<Difference>) -> Result<(), KernelError> {
        let content = self.host.content()?.unwrap_or_default();
        let mut entries = Vec::new();
        let mut slots = BTreeSet::new();
        for id in self.networks.keys().cloned().collect::<Vec<_>>() {
            let Some(state) = self.networks[&id].state.clone() else {
                found.push(Difference {
                    network: Some(id),
                    what: "was never applied completely".to_owned(),
                });
                continue;
            };
            let ports = self.ports(&id, &state, &content, &mut Vec::new());
            let is = self.host.uplink_into(self.networks[&id].namespace())?;
            let around = Around {
                config: &self.config,
                namespace: self.host.namespace(),
                mtu: &self.mtu,
            };
            let network = self.networks.get_mut(&id).expect("its key was just listed");
            let mut what = network.differences(around, &state, &ports.network)?;
            if is != network.uplink() {
                what.push("its uplink is gone".to_owned());
                network.set_uplink(is);
            }
            if sys::open_pinned(&self.config.pins().join(&id))
                .ok()
                .flatten()
                .is_none()
            {
                what.push("its namespace is not pinned".to_owned());
            }
            slots.extend(is);
            entries.extend(ports.host);
            found.extend(what.into_iter().map(|what| Difference {
                network: Some(id.clone()),
                what,
            }));
        }
        self.diff_containers(found)?;
        let host = |what| Difference {
            network: None,
            what,
        };
        let (_, uplinks) = self.host.plan_uplinks(&slots)?;
        if !uplinks.is_empty() {
            self.networks.values_mut().for_each(Network::forget_base);
        }
        found.extend(uplinks.into_iter().map(host));
        found.extend(self.host.port_differences(&entries)?.into_iter().map(host));
        let strays = self.stray_uplinks([])?;
        found.extend(
            strays
                .iter()
                .map(|index| host(format!("interface {index} belongs to no network"))),
        );
        let pins = self
            .pinned()
            .map_err(|error| KernelError::new("list of pinned namespaces", &error))?;
        let unknown = pins
            .into_iter()
            .filter(|(id, _)| !self.networks.contains_key(id));
        found.extend(unknown.map(|(id, _)| host(format!("namespace {id} belongs to no network"))));
        Ok(())
    }
}

/// Removes every trace of the instance: table, uplinks, namespaces, files. Goes on after errors.
pub(crate) fn remove_all(config: &NetworkConfig) -> Vec<KernelError> {
    let mut errors = Vec::new();
    match Host::open(config) {
        Ok(mut host) => {
            errors.extend(host.delete_table().err());
            match host.uplinks() {
                Ok(links) => {
                    errors.extend(host.delete_uplinks(links.into_values().map(|link| link.index)));
                }
                Err(error) => errors.push(error),
            }
            errors.extend(host.restore_forwarding().err());
        }
        Err(error) => errors.push(KernelError::new("netlink socket", &error)),
    }
    let io = |what: &str, result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Some(KernelError::new(what, &error))
        }
        _ => None,
    };
    match pinned(config) {
        Ok(pins) => {
            for (id, pin) in pins {
                errors.extend(remove_tunnel(&pin).err());
                errors.extend(io(&format!("pinned namespace {id}"), sys::unpin(&pin)));
            }
        }
        Err(error) => errors.extend(io("list of pinned namespaces", Err(error))),
    }
    errors.extend(io(
        "directory of pinned namespaces",
        fs::remove_dir(config.pins()),
    ));
    errors
}

/// Addresses of `old` on nodes that `new` does not know, and which it knows nowhere else.
fn lost_with_their_nodes(old: &NetworkState, new: &NetworkState) -> Vec<Ipv4Addr> {
    let (Some(old), Some(new)) = (&old.overlay, &new.overlay) else {
        return Vec::new();
    };
    let remote = old.remote.iter();
    remote
        .filter(|(addr, node)| !new.peers.contains(node) && !new.remote.contains_key(addr))
        .map(|(addr, _)| *addr)
        .collect()
}

/// Removes the interface to other nodes from the namespace pinned at `pin`, if there are such.
fn remove_tunnel(pin: &Path) -> Result<(), KernelError> {
    match sys::open_pinned(pin) {
        Ok(Some(namespace)) => overlay::remove(namespace.as_fd()),
        // Without a namespace there is nothing in it; what else is wrong, its removal says.
        _ => Ok(()),
    }
}

fn pinned(config: &NetworkConfig) -> io::Result<Vec<(String, PathBuf)>> {
    let mut pins = Vec::new();
    for entry in fs::read_dir(config.pins())? {
        let entry = entry?;
        if let Some(id) = entry.file_name().to_str().filter(|id| is_id(id)) {
            pins.push((id.to_owned(), entry.path()));
        }
    }
    pins.sort();
    Ok(pins)
}
