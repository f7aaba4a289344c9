//! The node's own name servers and search domains: resolv.conf(5).

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
};

/// What containers inherit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    /// In order of preference; asked for every name the cluster does not know.
    pub(crate) servers: Vec<SocketAddr>,
    pub(crate) search: Vec<String>,
}

/// The node's own, as they are now.
pub(crate) fn read() -> io::Result<Resolver> {
    fs::read_to_string("/etc/resolv.conf").map(|text| parse(&text))
}

/// Reads the text of a resolv.conf. Lines it does not know, and servers that are not addresses (with a
/// scope, say), are passed over, as the C library does.
pub(crate) fn parse(text: &str) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                resolver
                    .servers
                    .extend(address.map(|address| SocketAddr::new(address, 53)));
            }
            // The last one wins.
            Some("search" | "domain") => resolver.search = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    resolver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_domains_are_read() {
        let text =
            "# c\nnameserver 10.0.0.2\nsearch a b\nnameserver fe80::1%eth0\nsearch c.org ; x\n";
        let resolver = parse(text);
        assert_eq!(resolver.servers, ["10.0.0.2:53".parse().unwrap()]);
        assert_eq!(resolver.search, ["c.org"]);
        assert_eq!(parse(""), Resolver::default());
    }
}
