//! Parsing IP addresses and networks.

use std::net::IpAddr;

use ipnet::IpNet;

/// Parses an IP address. An IPv4-mapped IPv6 address becomes IPv4.
pub(in crate::rule) fn address(text: &str) -> Option<IpAddr> {
    text.trim().parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// Parses a network; a single address is a network of one.
pub(in crate::rule) fn network(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    text.parse::<IpNet>()
        .ok()
        .or_else(|| address(text).map(IpNet::from))
        .ok_or_else(|| format!("invalid network `{text}`: expected CIDR notation, such as `10.0.0.0/8`"))
}
