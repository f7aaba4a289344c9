//! The host's side: the uplinks' near ends, and the table of published ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::Ipv4Addr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use nix::errno::Errno;

use crate::{
    config::{NetworkConfig, Slot},
    netlink::{
        Batch, KernelError, Socket, nft,
        nft::Transaction,
        route::{End, Link, Mac, Route, everything, host_net},
    },
    overlay::Mtu,
    sys,
    tables::{self, Content, host::Entry, network::UPLINK},
};

/// MTU where the host has no default route to take it from.
const ETHERNET_MTU: u32 = 1500;
const FORWARDING: &str = "ipv4/ip_forward";

/// Sockets and knowledge about the namespace that the datapath was opened in. Its methods are
/// called on the datapath's own thread, which is in that namespace.
#[derive(Debug)]
pub(crate) struct Host {
    config: NetworkConfig,
    namespace: OwnedFd,
    table: nft::Table,
    pub(crate) route: Socket,
    nft: Socket,
    /// What our table holds, and the generation at which that was true.
    known: Option<(u32, Arc<Content>)>,
    /// The entries that `known` is made of; empty when it is not known which.
    published: Vec<Entry>,
}

impl Host {
    pub(crate) fn open(config: &NetworkConfig) -> io::Result<Self> {
        Ok(Self {
            table: tables::host::table(config),
            config: config.clone(),
            namespace: sys::current_namespace()?,
            route: Socket::route()?,
            nft: Socket::netfilter()?,
            known: None,
            published: Vec::new(),
        })
    }

    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    pub(crate) fn transactions(&self) -> u64 {
        self.route.transactions + self.nft.transactions
    }

    /// The MTU of the interface that the host's default route leaves by, and of those that have
    /// addresses.
    pub(crate) fn mtu(&mut self) -> Result<Mtu, KernelError> {
        let routes = self.route.routes()?;
        let default = routes
            .iter()
            .filter(|(route, _)| route.to == everything())
            .min_by_key(|(route, _)| route.metric)
            .and_then(|(route, _)| route.interface);
        let links = self.route.links()?;
        let link = links.iter().find(|link| Some(link.index) == default);
        let out = link.map_or(ETHERNET_MTU, |link| link.mtu);
        // An address of the loopback interface is reached by any other.
        let carrying: BTreeMap<_, _> = links
            .iter()
            .filter(|link| link.name != "lo")
            .map(|link| (link.index, link.mtu))
            .collect();
        let addresses = self.route.addresses()?.into_iter();
        let at = addresses.filter_map(|(on, addr, _)| Some((addr, *carrying.get(&on)?)));
        Ok(Mtu {
            out,
            at: at.collect(),
        })
    }

    /// Our interfaces in the host, by slot.
    pub(crate) fn uplinks(&mut self) -> Result<BTreeMap<Slot, Link>, KernelError> {
        let links = self.route.links()?;
        let ours = |link: Link| Some((self.config.uplink_slot(&link.name)?, link));
        Ok(links.into_iter().filter_map(ours).collect())
    }

    /// The slot whose uplink ends in `namespace`, if one does.
    pub(crate) fn uplink_into(
        &mut self,
        namespace: BorrowedFd<'_>,
    ) -> Result<Option<Slot>, KernelError> {
        let Some(id) = self.route.namespace_id(namespace)? else {
            return Ok(None);
        };
        let ends_there = |link: &Link| link.peer.is_some_and(|(_, peer)| peer == id);
        Ok(self
            .uplinks()?
            .into_iter()
            .find(|(_, link)| ends_there(link))
            .map(|(slot, _)| slot))
    }

    /// Makes the pair for `slot`, its far end in `namespace`.
    pub(crate) fn create_uplink(
        &mut self,
        slot: Slot,
        namespace: BorrowedFd<'_>,
        mtu: u32,
    ) -> Result<(), KernelError> {
        let (near, far) = self.config.uplink_addresses(slot);
        let mut batch = Batch::default();
        batch.add_veth(
            End {
                name: &self.config.uplink_name(slot),
                mac: Some(mac_of(near)),
            },
            End {
                name: UPLINK,
                mac: Some(mac_of(far)),
            },
            namespace,
            mtu,
        );
        first(self.route.transact(batch))
    }

    /// Removes uplinks. Synchronous and slow (about 30 ms each), but a slot is free afterwards.
    pub(crate) fn delete_uplinks(
        &mut self,
        links: impl IntoIterator<Item = u32>,
    ) -> Vec<KernelError> {
        let mut batch = Batch::default();
        links.into_iter().for_each(|index| batch.delete_link(index));
        let errors = self.route.transact(batch).err().unwrap_or_default();
        // A namespace that died meanwhile took its uplink along.
        errors
            .into_iter()
            .filter(|error| error.errno() != Errno::ENODEV)
            .collect()
    }

    /// What the near ends of these uplinks lack, and what gives it to them.
    pub(crate) fn plan_uplinks(
        &mut self,
        slots: &BTreeSet<Slot>,
    ) -> Result<(Batch, Vec<String>), KernelError> {
        let uplinks = self.uplinks()?;
        let (addresses, routes) = (self.route.addresses()?, self.route.routes()?);
        let neighbours = self.route.neighbours()?;
        let (mut batch, mut found) = (Batch::default(), Vec::new());
        for slot in slots {
            let name = self.config.uplink_name(*slot);
            let Some(link) = uplinks.get(slot) else {
                found.push(format!("interface {name} is missing"));
                continue;
            };
            let (near, far) = self.config.uplink_addresses(*slot);
            if !link.up {
                found.push(format!("interface {name} is down"));
                batch.link_up(link.index, true);
            }
            if sys::sysctl(&format!("ipv4/conf/{name}/route_localnet")).is_ok_and(|is| is != "1") {
                found.push(format!("interface {name} does not route 127.0.0.0/8"));
                batch.route_localnet(link.index);
            }
            if !addresses.contains(&(link.index, near, 32)) {
                found.push(format!("interface {name} lacks address {near}"));
                batch.add_address(link.index, near, 32);
            }
            let route = Route::new(host_net(far), link.index).source(near);
            if !routes.contains(&(route, true)) {
                found.push(format!("route to {far} is missing"));
                batch.add_route(route);
            }
            if !neighbours.contains(&(link.index, far, mac_of(far))) {
                found.push(format!("neighbour {far} is missing"));
                batch.add_neighbour(link.index, far, mac_of(far));
            }
        }
        Ok((batch, found))
    }

    pub(crate) fn apply_uplinks(&mut self, slots: &BTreeSet<Slot>) -> Vec<KernelError> {
        match self.plan_uplinks(slots) {
            Ok((batch, _)) => self.route.transact(batch).err().unwrap_or_default(),
            Err(error) => vec![error],
        }
    }

    /// Sees to it that the near end of an uplink carries packets, after the far end came up.
    pub(crate) fn settle_uplink(&mut self, slot: Slot) -> Result<(), KernelError> {
        match self.route.link(&self.config.uplink_name(slot))? {
            Some(link) => self.route.settle(link.index),
            None => Ok(()),
        }
    }

    /// Turns forwarding on, and leaves a mark if it was off.
    pub(crate) fn enable_forwarding(&self) -> Result<(), KernelError> {
        let marker = self.config.forwarding_marker();
        (|| {
            if sys::sysctl(FORWARDING)? != "1" {
                fs::write(marker, "0\n")?;
                sys::set_sysctl(FORWARDING, "1")?;
            }
            Ok(())
        })()
        .map_err(|error: io::Error| KernelError::new("sysctl net.ipv4.ip_forward", &error))
    }

    /// Turns forwarding off if it was us who turned it on.
    pub(crate) fn restore_forwarding(&self) -> Result<(), KernelError> {
        let marker = self.config.forwarding_marker();
        (|| {
            if marker.exists() {
                sys::set_sysctl(FORWARDING, "0")?;
                fs::remove_file(marker)?;
            }
            Ok(())
        })()
        .map_err(|error: io::Error| KernelError::new("sysctl net.ipv4.ip_forward", &error))
    }

    /// What our table holds now; `None` when there is no such table or its rules are not ours.
    pub(crate) fn content(&mut self) -> Result<Option<Arc<Content>>, KernelError> {
        let generation = nft::generation(&mut self.nft)?;
        if self
            .known
            .as_ref()
            .is_none_or(|(known, _)| *known != generation)
        {
            let found = nft::dump(&mut self.nft, &self.table.name)?;
            self.known = found
                .filter(|found| found.differences(&self.table).is_empty())
                .map(|found| (generation, content_of(&self.table, &found).into()));
            self.published.clear();
        }
        Ok(self.known.as_ref().map(|(_, content)| content.clone()))
    }

    /// Publishes `entries`, and leaves `kept` as long as no entry takes its port.
    pub(crate) fn apply_ports(
        &mut self,
        entries: &[Entry],
        kept: Content,
    ) -> Result<(), KernelError> {
        let current = self.content()?;
        let is_more_kept = kept.values().any(|elements| !elements.is_empty());
        let is_same = !entries.is_empty() && self.published == entries;
        if current.is_some() && is_same && !is_more_kept {
            return Ok(());
        }
        let mut wanted = tables::host::ports(entries);
        tables::fill(&mut wanted, kept);
        self.published.clear();
        // Without our table nothing is known, and the next look reads it again.
        let before = self.known.as_ref().map(|(generation, _)| *generation);
        let mut transaction = Transaction::new(&self.table);
        if let Some(current) = &current {
            tables::change(&mut transaction, current, &wanted);
        } else {
            if nft::tables(&mut self.nft)?.contains(&self.table.name) {
                transaction.delete_table();
            }
            transaction.create_table();
            tables::change(&mut transaction, &Content::new(), &wanted);
        }
        let batch = transaction.finish();
        if !batch.is_empty() {
            self.known = None;
            first(self.nft.transact(batch))?;
            if let Some(before) = before {
                let generation = nft::own_generation(&mut self.nft, before, true)?;
                self.known = generation.map(|generation| (generation, wanted.into()));
            }
        }
        if self.known.is_some() && !is_more_kept {
            self.published = entries.to_vec();
        }
        Ok(())
    }

    pub(crate) fn port_differences(
        &mut self,
        entries: &[Entry],
    ) -> Result<Vec<String>, KernelError> {
        let wanted = tables::host::ports(entries);
        let Some(found) = nft::dump(&mut self.nft, &self.table.name)? else {
            return Ok(vec![format!("table {} is missing", self.table.name)]);
        };
        let mut differences = found.differences(&self.table);
        differences.extend(tables::differences(
            &content_of(&self.table, &found),
            &wanted,
        ));
        if !differences.is_empty() {
            self.known = None;
        }
        Ok(differences)
    }

    /// What in the host keeps published ports and the way out from working, in sentences.
    pub(crate) fn warnings(&mut self) -> Result<Vec<String>, KernelError> {
        let mut found = Vec::new();
        if sys::sysctl(FORWARDING).is_ok_and(|is| is != "1") {
            found.push("sysctl net.ipv4.ip_forward is off: nothing is forwarded".to_owned());
        }
        for chain in nft::dropping_forward_chains(&mut self.nft)? {
            let uplinks = self.config.uplink_prefix();
            found.push(format!(
                "chain {chain} drops forwarded packets by default: unless it has rules that accept \
                 what comes from and goes to interfaces {uplinks}*, published ports and the way \
                 out do not work"
            ));
        }
        Ok(found)
    }

    pub(crate) fn delete_table(&mut self) -> Result<(), KernelError> {
        self.known = None;
        if !nft::tables(&mut self.nft)?.contains(&self.table.name) {
            return Ok(());
        }
        let mut transaction = Transaction::new(&self.table);
        transaction.delete_table();
        first(self.nft.transact(transaction.finish()))
    }
}

/// Hardware address of an interface with this address, locally administered as Docker's are: both
/// ends know it without asking.
pub(crate) fn mac_of(addr: Ipv4Addr) -> Mac {
    let [a, b, c, d] = addr.octets();
    [0x02, 0x42, a, b, c, d]
}

/// The elements of the table's own sets.
pub(crate) fn content_of(table: &nft::Table, found: &nft::Found) -> Content {
    let elements = |name: &str| found.elements.get(name).cloned().unwrap_or_default();
    table
        .sets
        .iter()
        .map(|set| (set.name, elements(set.name)))
        .collect()
}

/// The first error is the cause; those after it follow from it.
pub(crate) fn first(result: Result<(), Vec<KernelError>>) -> Result<(), KernelError> {
    result.map_err(|errors| {
        errors
            .into_iter()
            .next()
            .expect("an error list is not empty")
    })
}
