//! The host's side: the uplinks' near ends, and the table of published ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use nix::errno::Errno;

use crate::{
    config::{NetworkConfig, Slot},
    ipv6,
    netlink::{
        Batch, KernelError, Net, Socket, nft,
        nft::Transaction,
        route::{End, Link, Mac, Route},
    },
    overlay::Mtu,
    sys,
    tables::{self, Content, host::Entry, network::UPLINK},
};

/// MTU where the host has no default route to take it from.
const ETHERNET_MTU: u32 = 1500;
const FORWARDING: &str = "ipv4/ip_forward";
const FORWARDING6: &str = "ipv6/conf/all/forwarding";
/// Behind the loopback interface's own route. Each interface has its own rank, or its route would take
/// the place of another's.
const LOOPBACK_RANK: u32 = 1024;

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
            .filter(|(route, _)| route.to.prefix == 0)
            .min_by_key(|(route, _)| (route.to.addr.is_ipv6(), route.metric))
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
            let mac_of_far = mac_of(far);
            if !link.up {
                found.push(format!("interface {name} is down"));
                batch.link_up(link.index, true);
            }
            if sys::sysctl(&format!("ipv4/conf/{name}/route_localnet")).is_ok_and(|is| is != "1") {
                found.push(format!("interface {name} does not route 127.0.0.0/8"));
                batch.route_localnet(link.index);
            }
            let prefix = self.config.uplink_prefix6();
            let v6 = |addr| IpAddr::from(prefix.addr(addr));
            let v4 = (IpAddr::from(near), IpAddr::from(far));
            let v6 = ipv6::is_there().then(|| (v6(near), v6(far)));
            for (near, far) in std::iter::once(v4).chain(v6) {
                let near_net = Net::host(near);
                if !addresses.contains(&(link.index, near, near_net.prefix)) {
                    found.push(format!("interface {name} lacks address {near}"));
                    batch.add_address(link.index, near, near_net.prefix);
                }
                let route = Route::new(Net::host(far), link.index).source(near);
                if !routes.contains(&(route, true)) {
                    found.push(format!("route to {far} is missing"));
                    batch.add_route(route);
                }
                if !neighbours.contains(&(link.index, far, mac_of_far)) {
                    found.push(format!("neighbour {far} is missing"));
                    batch.add_neighbour(link.index, far, mac_of_far);
                }
            }
            // What `route_localnet` does for IPv4. Nothing comes by it but answers: the kernel drops
            // what arrives from or for ::1 before addresses are translated back.
            let loopback = Route::local(Ipv6Addr::LOCALHOST.into(), link.index)
                .metric(LOOPBACK_RANK + link.index);
            if ipv6::is_there() && !routes.contains(&(loopback, true)) {
                found.push(format!("interface {name} does not route ::1"));
                batch.add_route(loopback);
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

    /// Turns forwarding on, and leaves a mark of what was off.
    pub(crate) fn enable_forwarding(&self) -> Result<(), KernelError> {
        if sys::sysctl(FORWARDING).is_ok_and(|is| is == "1")
            && (!ipv6::is_there() || sys::sysctl(FORWARDING6).is_ok_and(|is| is == "1"))
        {
            return Ok(());
        }
        let marker = self.config.forwarding_marker();
        (|| {
            let mut changed = fs::read_to_string(&marker).unwrap_or_default();
            let mut change = |name: &str, to: &str| {
                let is = sys::sysctl(name)?;
                if is == to {
                    return Ok(());
                }
                let _ = writeln!(changed, "{name} {is}");
                fs::write(&marker, &changed)?;
                sys::set_sysctl(name, to).map(drop)
            };
            change(FORWARDING, "1")?;
            if ipv6::is_there() {
                // A router takes no routes from other routers, unless it is told to.
                for name in listening_to_routers() {
                    change(&name, "2")?;
                }
                change(FORWARDING6, "1")?;
            }
            Ok(())
        })()
        .map_err(|error: io::Error| KernelError::new("sysctls of forwarding", &error))
    }

    /// Turns forwarding off where it was us who turned it on.
    pub(crate) fn restore_forwarding(&self) -> Result<(), KernelError> {
        let marker = self.config.forwarding_marker();
        let changed = match fs::read_to_string(&marker) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            changed => changed,
        };
        (|| {
            // Forwarding first, as it was turned on last.
            for (name, was) in changed?
                .lines()
                .rev()
                .filter_map(|line| line.split_once(' '))
            {
                match sys::set_sysctl(name, was) {
                    // An interface that has gone.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    result => drop(result?),
                }
            }
            fs::remove_file(marker)
        })()
        .map_err(|error: io::Error| KernelError::new("sysctls of forwarding", &error))
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
        if ipv6::is_there() && sys::sysctl(FORWARDING6).is_ok_and(|is| is != "1") {
            found.push(
                "sysctl net.ipv6.conf.all.forwarding is off: no clients of IPv6 get through"
                    .to_owned(),
            );
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

/// The settings of interfaces that take routes from routers as long as the host is none.
fn listening_to_routers() -> Vec<String> {
    let all = fs::read_dir("/proc/sys/net/ipv6/conf")
        .into_iter()
        .flatten();
    all.flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .map(|interface| format!("ipv6/conf/{interface}/accept_ra"))
        .filter(|name| sys::sysctl(name).is_ok_and(|is| is == "1"))
        .collect()
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
