//! One network on this node: its namespace, what is in it, and its table.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use crate::{
    config::{NetworkConfig, Slot},
    host::{content_of, first, mac_of},
    model::{NetworkState, Overlay, Vip},
    netlink::{
        Batch, KernelError, Net, Socket, nft,
        nft::Transaction,
        route::{Link, Route},
    },
    overlay::{self, Mtu, Ways},
    sys,
    tables::{
        self, Content,
        network::{Entry, Layout, UPLINK},
        slots::{self, Slots},
    },
};

/// Sysctls of a network's namespace. Interfaces made later take the `default` values, so they are
/// written before the first.
const SYSCTLS: [(&str, &str); 9] = [
    ("ipv4/ip_forward", "1"),
    // The larger of `all` and the interface's own counts: with 0 here each decides for itself.
    ("ipv4/conf/all/rp_filter", "0"),
    // A container sends from its own address or not at all.
    ("ipv4/conf/default/rp_filter", "1"),
    // The name server at 127.0.0.11 is reached over the containers' interfaces.
    ("ipv4/conf/default/route_localnet", "1"),
    // A backend that reaches itself by a vip comes back by the interface it left by; telling it
    // a shorter way would be wrong.
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    // No address of IPv6 but those that are given, and no route.
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/all/forwarding", "1"),
];

/// Whether the namespace has IPv6.
const IPV6_SYSCTLS: [&str; 2] = [
    "ipv6/conf/default/disable_ipv6",
    "ipv6/conf/all/disable_ipv6",
];

/// Written too where connections enter by other nodes: what the kernel itself says of such a
/// connection, such as that a packet is too large, goes back through that node as well.
const MESH_SYSCTLS: [(&str, &str); 2] =
    [("ipv4/fwmark_reflect", "1"), ("ipv6/fwmark_reflect", "1")];

/// What of the host a network depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Around<'a> {
    pub(crate) config: &'a NetworkConfig,
    /// The host's namespace.
    pub(crate) namespace: BorrowedFd<'a>,
    pub(crate) mtu: &'a Mtu,
}

#[derive(Debug)]
pub(crate) struct Network {
    namespace: OwnedFd,
    pub(crate) route: Socket,
    nft: Socket,
    uplink: Option<Slot>,
    /// Whether `uplink` says what the kernel has, or is still to be found out.
    uplink_is_seen: bool,
    /// The interface to other nodes, as long as the base is known.
    tunnel: Option<u32>,
    /// As it was last applied without an error.
    pub(crate) state: Option<Arc<NetworkState>>,
    known: Option<Known>,
    /// Links, addresses, routes and sysctls were compared with the kernel since the last change
    /// that was not ours.
    base_is_known: bool,
}

/// What the table holds: the vips of the network's state, and `ports`.
#[derive(Debug)]
struct Known {
    /// The generation of the namespace's ruleset at which this was true. Everybody's changes
    /// count, so as long as it stays nothing needs to be read.
    generation: u32,
    slots: Slots,
    /// In how many vips an address is a backend.
    uses: BTreeMap<Ipv4Addr, u32>,
    counts: BTreeSet<u32>,
    /// Sorted by protocol and port.
    ports: Vec<Entry>,
}

impl Network {
    /// Opens the namespace pinned at `pin`, or makes and pins one.
    pub(crate) fn open(pin: &Path) -> io::Result<Self> {
        let found = match sys::open_pinned(pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            found => found.ok().flatten(),
        };
        let namespace = match found {
            Some(namespace) => namespace,
            None => Self::create(pin)?,
        };
        let (route, nft) = sys::in_namespace(namespace.as_fd(), || {
            set_sysctls(&SYSCTLS)?;
            io::Result::Ok((Socket::route()?, Socket::netfilter()?))
        })??;
        Ok(Self {
            namespace,
            route,
            nft,
            uplink: None,
            uplink_is_seen: false,
            tunnel: None,
            state: None,
            known: None,
            base_is_known: false,
        })
    }

    fn create(pin: &Path) -> io::Result<OwnedFd> {
        fs::write(pin, "")?;
        sys::create_pinned(pin)?;
        let missing = || io::Error::other("the new namespace is not where it was pinned");
        sys::open_pinned(pin)?.ok_or_else(missing)
    }

    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    pub(crate) fn uplink(&self) -> Option<Slot> {
        self.uplink
    }

    /// Whether it was ever found out which uplink the network has.
    pub(crate) fn uplink_is_seen(&self) -> bool {
        self.uplink_is_seen
    }

    /// Whether `state` needs no look at the uplink.
    pub(crate) fn uplink_is_known(&self, state: &NetworkState) -> bool {
        self.base_is_known && self.uplink.is_some() == state.has_uplink()
    }

    /// The uplink was made, found or lost: what is known of routes and rules names the old one.
    pub(crate) fn set_uplink(&mut self, uplink: Option<Slot>) {
        self.uplink_is_seen = true;
        if self.uplink != uplink {
            self.uplink = uplink;
            self.base_is_known = false;
            self.known = None;
        }
    }

    /// Whether `state` needs no look at the interface to other nodes.
    pub(crate) fn tunnel_is_known(&self, state: &NetworkState) -> bool {
        let old = self.state.as_ref().and_then(|old| old.tunnel());
        self.base_is_known && old.map(identity) == state.tunnel().map(identity)
    }

    /// Removes an interface to other nodes that `state` does not want or that cannot become the one
    /// it wants. Returns whether one has to be made.
    pub(crate) fn clear_tunnel(
        &mut self,
        state: Option<&NetworkState>,
        host: BorrowedFd<'_>,
    ) -> Result<bool, KernelError> {
        let wanted = state.and_then(NetworkState::tunnel);
        let Some(link) = self.route.link(overlay::DEVICE)? else {
            return Ok(wanted.is_some());
        };
        let underlay = self.route.namespace_id(host)?;
        if wanted.is_some_and(|wanted| overlay::can_stay(&link, wanted, underlay)) {
            return Ok(false);
        }
        self.base_is_known = false;
        overlay::delete(&mut self.route, link.index)?;
        Ok(wanted.is_some())
    }

    /// The next apply compares links, addresses and routes with the kernel again.
    pub(crate) fn forget_base(&mut self) {
        self.base_is_known = false;
    }

    /// Forgets the connections of a container that is going.
    pub(crate) fn forget_connections_to(&mut self, addr: Ipv4Addr) -> Result<(), KernelError> {
        let prefix = self.state.as_ref().and_then(|state| state.prefix6());
        let v6 = prefix.map(|prefix| prefix.addr(addr).into());
        self.nft.forget_connections_to(addr.into())?;
        v6.map_or(Ok(()), |addr| self.nft.forget_connections_to(addr))
    }

    pub(crate) fn transactions(&self) -> u64 {
        self.route.transactions + self.nft.transactions
    }

    /// What links, addresses and routes lack, and what gives it to them.
    pub(crate) fn plan_base(
        &mut self,
        around: Around<'_>,
        state: &NetworkState,
    ) -> Result<(Batch, Vec<String>), KernelError> {
        let links = self.route.links()?;
        let (addresses, routes) = (self.route.addresses()?, self.route.routes()?);
        let neighbours = self.route.neighbours()?;
        let (mut batch, mut found) = (Batch::default(), Vec::new());
        let mut wanted_addresses = BTreeSet::new();
        let mut wanted_routes = BTreeSet::from([Route::unreachable(state.subnet.into())]);
        let (prefix, of_uplinks) = (state.prefix6(), around.config.uplink_prefix6());
        let subnet6 = prefix.map(|prefix| prefix.net(state.subnet));
        wanted_routes.extend(subnet6.map(Route::unreachable));
        for link in &links {
            let near_far = self.uplink.filter(|_| link.name == UPLINK);
            if link.name != "lo" && near_far.is_none() {
                continue;
            }
            if !link.up {
                found.push(format!("interface {} is down", link.name));
                batch.link_up(link.index, true);
            }
            let both = |v4: Ipv4Addr, v6: Option<Ipv6Addr>| {
                std::iter::once(IpAddr::from(v4)).chain(v6.map(IpAddr::from))
            };
            let mut has_address = |addr: IpAddr| {
                wanted_addresses.insert((link.index, addr, Net::host(addr).prefix));
            };
            let Some(slot) = near_far else {
                let gateway6 = prefix.map(|prefix| prefix.addr(state.gateway));
                both(state.gateway, gateway6).for_each(&mut has_address);
                continue;
            };
            let (near, far) = around.config.uplink_addresses(slot);
            let v6 = |addr| prefix.map(|_| of_uplinks.addr(addr));
            let mac = mac_of(near);
            let (nears, fars) = (both(near, v6(near)), both(far, v6(far)));
            for (near, far) in nears.zip(fars) {
                has_address(far);
                wanted_routes.insert(Route::new(Net::host(near), link.index).source(far));
                let everything = Net::everything(near);
                wanted_routes.insert(Route::new(everything, link.index).via(near));
                if !neighbours.contains(&(link.index, near, mac)) {
                    found.push(format!("neighbour {near} is missing"));
                    batch.add_neighbour(link.index, near, mac);
                }
            }
        }
        if self.uplink.is_some() && !links.iter().any(|link| link.name == UPLINK) {
            found.push("the uplink is missing".to_owned());
        }
        for (index, addr, prefix) in &wanted_addresses {
            if !addresses.contains(&(*index, *addr, *prefix)) {
                found.push(format!("address {addr} is missing"));
                batch.add_address(*index, *addr, *prefix);
            }
        }
        for (index, addr, prefix) in &addresses {
            if !addr.is_loopback() && !wanted_addresses.contains(&(*index, *addr, *prefix)) {
                found.push(format!("address {addr}/{prefix} should not be there"));
                batch.delete_address(*index, *addr, *prefix);
            }
        }
        for route in &wanted_routes {
            if !routes.contains(&(*route, true)) {
                found.push(format!("route to {} is missing", route.to));
                batch.add_route(*route);
            }
        }
        let tunnel = links.iter().find(|link| link.name == overlay::DEVICE);
        for (route, ours) in &routes {
            if tunnel.is_some_and(|link| route.interface == Some(link.index)) {
                continue;
            }
            // Routes to single addresses are the containers'.
            let is_inside = Net::from(state.subnet).contains(route.to.addr)
                || subnet6.is_some_and(|subnet| subnet.contains(route.to.addr));
            let is_container = route.to.is_host() && is_inside;
            if *ours && !is_container && !wanted_routes.contains(route) {
                found.push(format!("route to {} should not be there", route.to));
                batch.delete_route(*route);
            }
        }
        let ways = Ways::found(
            &mut self.route,
            tunnel.map(|link| link.index),
            &routes,
            &neighbours,
        )?;
        self.plan_tunnel(around, state, tunnel, ways, (&mut batch, &mut found))?;
        Ok((batch, found))
    }

    /// What the interface to other nodes and the ways over it lack.
    fn plan_tunnel(
        &mut self,
        around: Around<'_>,
        state: &NetworkState,
        link: Option<&Link>,
        is: Ways,
        (batch, found): (&mut Batch, &mut Vec<String>),
    ) -> Result<(), KernelError> {
        match (link, state.tunnel()) {
            (Some(link), Some(overlay)) => {
                let underlay = self.route.namespace_id(around.namespace)?;
                if !overlay::can_stay(link, overlay, underlay) {
                    found.push("the tunnel to other nodes is not the one it should be".to_owned());
                    return Ok(());
                }
                let mtu = around.mtu.of(state);
                let is_mesh = state.is_mesh();
                found.extend(overlay::change_link(link, overlay, mtu, is_mesh, batch));
                let wanted = Ways::wanted(state, link.index);
                let is = is.surviving(link, overlay);
                found.extend(is.change_to(&wanted, link.index, batch));
            }
            (None, Some(_)) => found.push("the tunnel to other nodes is missing".to_owned()),
            (link, None) => {
                if link.is_some() {
                    found.push("a tunnel to other nodes should not be there".to_owned());
                }
                let index = link.map_or(0, |link| link.index);
                found.extend(is.change_to(&Ways::default(), index, batch));
            }
        }
        self.tunnel = link.map(|link| link.index);
        Ok(())
    }

    pub(crate) fn apply_base(
        &mut self,
        around: Around<'_>,
        state: &NetworkState,
    ) -> Result<(), KernelError> {
        let old = self.state.clone().filter(|old| same_base(old, state));
        if let Some(old) = old.filter(|_| self.base_is_known) {
            return self.update_ways(&old, state);
        }
        sys::in_namespace(self.namespace.as_fd(), || set_sysctls(&sysctls(state)))
            .and_then(|result| result)
            .map_err(|error| KernelError::new("sysctls", &error))?;
        let (batch, _) = self.plan_base(around, state)?;
        overlay::transact(&mut self.route, batch)?;
        if let Some(link) = self.route.link(UPLINK)? {
            self.route.settle(link.index)?;
        }
        self.base_is_known = true;
        Ok(())
    }

    /// Everything is known: only nodes and containers on them that came, went or moved are sent.
    fn update_ways(&mut self, old: &NetworkState, new: &NetworkState) -> Result<(), KernelError> {
        let Some(index) = self.tunnel.filter(|_| old.overlay != new.overlay) else {
            return Ok(());
        };
        let mut batch = Batch::default();
        Ways::change(old, new, index, &mut batch);
        overlay::transact(&mut self.route, batch)
    }

    /// Brings the table to what `state` and `ports` say, in one transaction.
    pub(crate) fn apply_table(
        &mut self,
        config: &NetworkConfig,
        state: &Arc<NetworkState>,
        ports: &[Entry],
    ) -> Result<(), KernelError> {
        let generation = nft::generation(&mut self.nft)?;
        let old = self.state.clone().filter(|old| same_rules(old, state));
        match (self.known.take(), old) {
            (Some(known), Some(old)) if known.generation == generation => {
                self.update_table(known, config, (&old, state), ports)?;
            }
            _ => self.load_table(generation, config, state, ports)?,
        }
        self.state = Some(state.clone());
        Ok(())
    }

    /// The table's content is known: only what changed is sent.
    fn update_table(
        &mut self,
        mut known: Known,
        config: &NetworkConfig,
        (old_state, state): (&NetworkState, &NetworkState),
        ports: &[Entry],
    ) -> Result<(), KernelError> {
        let (gone, come) = changed_vips(&old_state.vips, &state.vips);
        let current = |vip: &Vip| known.slots.get(&vip.addr).map_or(&[][..], Vec::as_slice);
        let old: Slots = gone
            .iter()
            .map(|vip| (vip.addr, current(vip).to_vec()))
            .collect();
        let new: Slots = come
            .iter()
            .map(|vip| (vip.addr, slots::place(current(vip), &vip.backends)))
            .collect();
        let ports = sorted(ports);
        let is_touched = |vip: &Ipv4Addr| old.contains_key(vip) || new.contains_key(vip);
        let differing = |entries: &[Entry], from: &[Entry]| -> Vec<Entry> {
            let differs =
                |entry: &&Entry| entry.vip().as_ref().is_some_and(is_touched) || !has(from, entry);
            entries.iter().filter(differs).copied().collect()
        };
        let old_ports = differing(&known.ports, &ports);
        let new_ports = differing(&ports, &known.ports);
        if old.is_empty() && new.is_empty() && old_ports.is_empty() && new_ports.is_empty() {
            self.known = Some(known);
            return Ok(());
        }
        let new_port_slots = new_ports
            .iter()
            .filter_map(Entry::vip)
            .filter_map(|addr| {
                let placed = new.get(&addr).or_else(|| known.slots.get(&addr));
                placed.map(|backends| (addr, backends.clone()))
            })
            .collect();
        let (old_ports, new_ports) = (
            tables::network::ports(&old_ports, &known.slots, state.prefix6()),
            tables::network::ports(&new_ports, &new_port_slots, state.prefix6()),
        );
        let before = old
            .values()
            .flatten()
            .chain(new.values().flatten())
            .copied()
            .collect::<BTreeSet<_>>();
        let is_used = |uses: &BTreeMap<Ipv4Addr, u32>, addr: &Ipv4Addr| {
            uses.get(addr).is_some_and(|n| *n > 0)
        };
        let touched = |uses: &BTreeMap<_, _>| {
            tables::network::selves(before.iter().filter(|addr| is_used(uses, addr)))
        };
        let (mut from, mut to) = (slots::elements(&old), slots::elements(&new));
        from.insert("self", touched(&known.uses));
        old.values()
            .flatten()
            .for_each(|addr| *known.uses.entry(*addr).or_default() -= 1);
        new.values()
            .flatten()
            .for_each(|addr| *known.uses.entry(*addr).or_default() += 1);
        to.insert("self", touched(&known.uses));
        from.extend(old_ports);
        to.extend(new_ports);
        let needed = tables::network::counts(new.values().map(Vec::len));
        let missing: BTreeSet<u32> = needed.difference(&known.counts).copied().collect();

        let layout = Layout::of(state, None, config.uplink_prefix6());
        let table = tables::network::table(&layout, &BTreeSet::new());
        let mut transaction = Transaction::new(&table);
        for count in &missing {
            for chain in &tables::network::chains_for(*count) {
                transaction.create_chain(chain);
                transaction.create_rules(chain);
            }
        }
        if !missing.is_empty() {
            let all = known.counts.union(&missing).copied().collect();
            tables::change(
                &mut transaction,
                &tables::network::picks(&known.counts),
                &tables::network::picks(&all),
            );
        }
        tables::change(&mut transaction, &from, &to);
        first(self.nft.transact(transaction.finish()))?;

        for addr in old.keys() {
            known.slots.remove(addr);
        }
        known.slots.extend(new);
        for addr in &before {
            if known.uses.get(addr) == Some(&0) {
                known.uses.remove(addr);
            }
        }
        let counts = &known.counts | &missing;
        let generation = nft::own_generation(&mut self.nft, known.generation, true)?;
        self.known = generation.map(|generation| Known {
            generation,
            counts,
            ports,
            ..known
        });
        Ok(())
    }

    /// Nothing is known: reads the table, and changes what differs; makes it anew if its rules
    /// are not ours. Connections are not the table's, so they go on either way. `before` is the
    /// generation now.
    fn load_table(
        &mut self,
        before: u32,
        config: &NetworkConfig,
        state: &NetworkState,
        ports: &[Entry],
    ) -> Result<(), KernelError> {
        let found = nft::dump(&mut self.nft, tables::network::TABLE)?;
        let (table, wanted, slots, counts) = self.wanted(config, state, ports, found.as_ref());
        let mut transaction = Transaction::new(&table);
        match &found {
            Some(found) if found.differences(&table).is_empty() => {
                tables::change(&mut transaction, &content_of(&table, found), &wanted);
            }
            found => {
                if found.is_some() {
                    transaction.delete_table();
                }
                transaction.create_table();
                tables::change(&mut transaction, &Content::new(), &wanted);
            }
        }
        let batch = transaction.finish();
        let sends = !batch.is_empty();
        first(self.nft.transact(batch))?;
        let mut uses = BTreeMap::new();
        slots
            .values()
            .flatten()
            .for_each(|addr| *uses.entry(*addr).or_insert(0) += 1);
        let generation = nft::own_generation(&mut self.nft, before, sends)?;
        self.known = generation.map(|generation| Known {
            generation,
            ports: sorted(ports),
            slots,
            uses,
            counts,
        });
        Ok(())
    }

    /// Table and content that `state` asks for, given what the kernel has: backends keep their
    /// numbers, and chains for numbers that are no longer used stay.
    fn wanted(
        &self,
        config: &NetworkConfig,
        state: &NetworkState,
        ports: &[Entry],
        found: Option<&nft::Found>,
    ) -> (nft::Table, Content, Slots, BTreeSet<u32>) {
        let empty = nft::Elements::new();
        let elements = |name: &str| {
            found
                .and_then(|found| found.elements.get(name))
                .unwrap_or(&empty)
        };
        let current = slots::read(elements("svc"), elements("be"));
        let place = |addr, backends| {
            slots::place(
                current.get(addr).map(Vec::as_slice).unwrap_or_default(),
                backends,
            )
        };
        let slots: Slots = state
            .vips
            .iter()
            .map(|vip| (vip.addr, place(&vip.addr, &vip.backends)))
            .collect();
        let mut counts = tables::network::counts(state.vips.iter().map(|vip| vip.backends.len()));
        let kept = elements("pick")
            .keys()
            .filter_map(|key| key.as_slice().try_into().ok());
        counts.extend(kept.map(u32::from_ne_bytes).filter(|count| *count > 0));

        let far = self.uplink.map(|slot| config.uplink_addresses(slot).1);
        let layout = Layout::of(state, far, config.uplink_prefix6());
        let table = tables::network::table(&layout, &counts);
        let mut content = slots::elements(&slots);
        content.extend(tables::network::picks(&counts));
        content.extend(tables::network::ports(ports, &slots, state.prefix6()));
        content.insert(
            "self",
            tables::network::selves(tables::network::backends(state)),
        );
        (table, content, slots, counts)
    }

    /// What the kernel has otherwise than `state` says; afterwards nothing is taken as known that
    /// differs.
    pub(crate) fn differences(
        &mut self,
        around: Around<'_>,
        state: &NetworkState,
        ports: &[Entry],
    ) -> Result<Vec<String>, KernelError> {
        let (_, mut differences) = self.plan_base(around, state)?;
        let sysctls = sysctls(state);
        let values = sys::in_namespace(self.namespace.as_fd(), || {
            let values = sysctls.iter().map(|(name, _)| sys::sysctl(name));
            values.collect::<Vec<_>>()
        });
        let values = values.map_err(|error| KernelError::new("enter the namespace", &error))?;
        for ((name, wanted), is) in sysctls.iter().zip(values) {
            if is.is_ok_and(|is| is != *wanted) {
                differences.push(format!("sysctl net/{name} is not {wanted}"));
            }
        }
        if !differences.is_empty() {
            self.base_is_known = false;
        }
        let base = differences.len();
        let found = nft::dump(&mut self.nft, tables::network::TABLE)?;
        let (table, wanted, ..) = self.wanted(around.config, state, ports, found.as_ref());
        match found {
            None => differences.push("its table is missing".to_owned()),
            Some(found) => {
                differences.extend(found.differences(&table));
                differences.extend(tables::differences(&content_of(&table, &found), &wanted));
            }
        }
        if differences.len() > base {
            self.known = None;
        }
        Ok(differences)
    }
}

fn sysctls(state: &NetworkState) -> Vec<(&'static str, &'static str)> {
    let mesh = MESH_SYSCTLS.into_iter().filter(|_| state.is_mesh());
    let disabled = if state.ipv6 { "0" } else { "1" };
    let ipv6 = IPV6_SYSCTLS.map(|name| (name, disabled));
    SYSCTLS.into_iter().chain(ipv6).chain(mesh).collect()
}

/// Writes sysctls in the calling thread's namespace; a kernel without IPv6 lacks those.
fn set_sysctls(sysctls: &[(&str, &str)]) -> io::Result<()> {
    for (name, value) in sysctls {
        match sys::set_sysctl(name, value) {
            Err(error) if name.starts_with("ipv6") && error.kind() == io::ErrorKind::NotFound => {}
            result => drop(result?),
        }
    }
    Ok(())
}

/// Whether two states need the same links, addresses, routes and rules, but for what is on other
/// nodes.
fn same_base(old: &NetworkState, new: &NetworkState) -> bool {
    let tunnel = |state: &NetworkState| {
        let tunnel = state.tunnel();
        tunnel.map(|tunnel| (identity(tunnel), tunnel.local))
    };
    old.subnet == new.subnet && same_rules(old, new) && tunnel(old) == tunnel(new)
}

/// Whether two states need the same table, but for its elements.
fn same_rules(old: &NetworkState, new: &NetworkState) -> bool {
    let of = |state: &NetworkState| {
        let NetworkState { gateway, ipv6, .. } = *state;
        (gateway, ipv6, state.has_uplink(), state.is_mesh())
    };
    of(old) == of(new)
}

/// What an interface to other nodes cannot change.
fn identity(overlay: &Overlay) -> (u32, u16, bool) {
    (overlay.vni, overlay.port, overlay.local.is_ipv6())
}

/// The vips of `old` and those of `new` that are not the same in the other; both are sorted by
/// address.
fn changed_vips<'a>(old: &'a [Vip], new: &'a [Vip]) -> (Vec<&'a Vip>, Vec<&'a Vip>) {
    let (mut gone, mut come) = (Vec::new(), Vec::new());
    if std::ptr::eq(old, new) {
        return (gone, come);
    }
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        match (old.peek(), new.peek()) {
            (Some(one), Some(other)) if one == other => {
                old.next();
                new.next();
            }
            (Some(one), other) if other.is_none_or(|other| one.addr <= other.addr) => {
                gone.extend(old.next());
            }
            (_, Some(_)) => come.extend(new.next()),
            (_, None) => return (gone, come),
        }
    }
}

fn sorted(ports: &[Entry]) -> Vec<Entry> {
    let mut ports = ports.to_vec();
    ports.sort_unstable_by_key(Entry::key);
    ports
}

/// Whether `sorted` holds this entry.
fn has(sorted: &[Entry], entry: &Entry) -> bool {
    sorted
        .binary_search_by_key(&entry.key(), Entry::key)
        .is_ok_and(|at| sorted[at] == *entry)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Backends = BTreeMap<u8, Vec<u8>>;

    fn vips(of: &Backends) -> Vec<Vip> {
        let addr = |n: u8| Ipv4Addr::new(10, 0, 0, n);
        of.iter()
            .map(|(vip, backends)| Vip {
                addr: addr(*vip),
                backends: backends.iter().map(|n| addr(*n)).collect(),
            })
            .collect()
    }

    fn any_backends() -> impl Strategy<Value = Backends> {
        prop::collection::btree_map(0_u8..8, prop::collection::vec(0_u8..3, 0..2), 0..8)
    }

    proptest! {
        #[test]
        fn changed_vips_are_those_that_the_other_side_lacks(old in any_backends(), new in any_backends()) {
            let (old, new) = (vips(&old), vips(&new));
            let (gone, come) = changed_vips(&old, &new);
            prop_assert_eq!(gone, old.iter().filter(|vip| !new.contains(vip)).collect::<Vec<_>>());
            prop_assert_eq!(come, new.iter().filter(|vip| !old.contains(vip)).collect::<Vec<_>>());
        }
    }
}
