//! Where the datapath of one daemon keeps its things, and how they are called.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use shoal_types::spec::Ipv4Net;

use crate::ipv6::Prefix;

/// Settings of one daemon's datapath. Two daemons on a host need different `instance`s,
/// `exec_root`s and `uplink_pool`s.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Runtime state; namespaces are pinned under `netns/` in it.
    pub exec_root: PathBuf,
    /// Part of the names of everything made in the host's namespace: 4 to 8 lower-case letters
    /// and digits, unique on the host.
    pub instance: String,
    /// Private range that the networks' uplinks take a pair of addresses each from. Nothing else
    /// on the host may use it. A /16 is enough for 32,768 networks.
    pub uplink_pool: Ipv4Net,
    /// Where names that no network knows are asked for, in this order.
    pub dns_upstreams: Vec<SocketAddr>,
}

/// The settings are not usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("instance {0:?}: must be 4 to 8 lower-case letters and digits")]
    Instance(String),
    #[error("uplink pool {0}: must hold at least two addresses and at most 2^21")]
    UplinkPool(Ipv4Net),
}

/// The number of a network's uplink: names the pair of addresses and the host's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Slot(u32);

impl NetworkConfig {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let fits = (4..=8).contains(&self.instance.len())
            && self
                .instance
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !fits {
            return Err(ConfigError::Instance(self.instance.clone()));
        }
        // More slots than five hexadecimal digits would not fit an interface name.
        if !(11..=31).contains(&self.uplink_pool.prefix()) {
            return Err(ConfigError::UplinkPool(self.uplink_pool));
        }
        Ok(())
    }

    pub(crate) fn pins(&self) -> PathBuf {
        self.exec_root.join("netns")
    }

    /// Present when we turned forwarding on in the host, so that removal turns it off again.
    pub(crate) fn forwarding_marker(&self) -> PathBuf {
        self.exec_root.join("netns.forwarding")
    }

    /// The table in the host's namespace.
    pub(crate) fn host_table(&self) -> String {
        format!("shoal-{}", self.instance)
    }

    /// What all our interfaces in the host's namespace start with, and no other instance's: the
    /// rest is hexadecimal, and `u` is not.
    pub(crate) fn uplink_prefix(&self) -> String {
        format!("s{}u", self.instance)
    }

    pub(crate) fn uplink_name(&self, slot: Slot) -> String {
        format!("{}{:x}", self.uplink_prefix(), slot.0)
    }

    /// The slot that an interface of the host is the uplink of, if it is one of ours.
    pub(crate) fn uplink_slot(&self, interface: &str) -> Option<Slot> {
        let digits = interface.strip_prefix(&self.uplink_prefix())?;
        let slot = Slot(u32::from_str_radix(digits, 16).ok()?);
        (self.uplink_name(slot) == interface).then_some(slot)
    }

    /// The addresses of an uplink: the host's and the network's, a /31 (RFC 3021).
    pub(crate) fn uplink_addresses(&self, slot: Slot) -> (Ipv4Addr, Ipv4Addr) {
        let first = u32::from(self.uplink_pool.addr()) + 2 * slot.0;
        (first.into(), (first + 1).into())
    }

    /// Of the IPv6 addresses of uplinks.
    pub(crate) fn uplink_prefix6(&self) -> Prefix {
        Prefix::of(&self.instance)
    }

    /// The slot a new network takes: always the same for the same id, unless it is taken.
    pub(crate) fn free_slot(&self, id: &str, taken: &BTreeSet<Slot>) -> Option<Slot> {
        let count = u32::try_from(self.uplink_pool.len() / 2).expect("checked: at most 2^20");
        let hash = id.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        (0..count)
            .map(|step| Slot((hash % count + step) % count))
            .find(|slot| !taken.contains(slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(instance: &str, pool: &str) -> NetworkConfig {
        NetworkConfig {
            exec_root: "/run/x".into(),
            instance: instance.to_owned(),
            uplink_pool: pool.parse().unwrap(),
            dns_upstreams: Vec::new(),
        }
    }

    #[test]
    fn interface_names_are_recognised_by_their_own_instance_only() {
        let ours = config("abcd", "169.254.0.0/16");
        let other = config("abcdu1", "169.254.0.0/16");
        let slot = ours.free_slot("net", &BTreeSet::new()).unwrap();
        assert_eq!(ours.uplink_slot(&ours.uplink_name(slot)), Some(slot));
        assert_eq!(ours.uplink_slot(&other.uplink_name(slot)), None);
        assert_eq!(other.uplink_slot(&ours.uplink_name(slot)), None);
        assert!(
            config("abcdefgh", "10.0.0.0/11")
                .uplink_name(Slot((1 << 20) - 1))
                .len()
                <= 15
        );
    }

    #[test]
    fn slots_run_out_only_when_all_are_taken() {
        let config = config("abcd", "10.9.0.0/30");
        let first = config.free_slot("a", &BTreeSet::new()).unwrap();
        let second = config.free_slot("a", &BTreeSet::from([first])).unwrap();
        assert_ne!(first, second);
        assert_eq!(
            config.free_slot("a", &BTreeSet::from([first, second])),
            None
        );
        assert_ne!(
            config.uplink_addresses(first),
            config.uplink_addresses(second)
        );
    }

    #[test]
    fn unusable_settings_are_named() {
        for instance in ["abc", "abcdefghi", "ABCD", "ab-d"] {
            assert!(matches!(
                config(instance, "10.0.0.0/16").check(),
                Err(ConfigError::Instance(_))
            ));
        }
        assert!(matches!(
            config("abcd", "10.0.0.0/8").check(),
            Err(ConfigError::UplinkPool(_))
        ));
        assert!(matches!(
            config("abcd", "10.0.0.0/32").check(),
            Err(ConfigError::UplinkPool(_))
        ));
        assert_eq!(config("abcd", "10.0.0.0/16").check(), Ok(()));
    }
}
