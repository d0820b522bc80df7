//! Addresses of the internet, and networks of them, as texts.

use std::net::IpAddr;

use ipnet::IpNet;

/// The address that a text is, as IPv4 where it stands for one.
pub(in crate::rule) fn address(text: &str) -> Option<IpAddr> {
    text.trim().parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// The network that a text is; an address is a network of one.
pub(in crate::rule) fn network(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    text.parse::<IpNet>()
        .ok()
        .or_else(|| address(text).map(IpNet::from))
        .ok_or_else(|| format!("`{text}` is not a network: write `10.0.0.0/8` or `2001:db8::/32`"))
}
