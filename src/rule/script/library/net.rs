//! IP addresses, versions 4 and 6.

use std::net::IpAddr;

use rhai::Dynamic;

use super::{HostFunction, Returned, Texts, Topic, first, needs, texts};
use crate::rule::manifest::value::data;
use crate::rule::script::{
    address::{address, network},
    host::Call,
};

pub(super) const TOPIC: Topic = Topic {
    title: "Addresses",
    about: "IPv4 and IPv6. An IPv4-mapped IPv6 address (`::ffff:10.0.0.1`) is treated as the IPv4 address.",
    functions: FUNCTIONS,
};

const FUNCTIONS: &[HostFunction] = &[
    HostFunction {
        name: "in_cidr",
        parameters: &[needs("ip", "string"), needs("networks", "string, list of strings, or named list")],
        gives: "true or false",
        about: "Test whether the IP address is in a network, or in one of several, in CIDR notation. A single \
                address is a network of one.",
        examples: &[
            (r#"in_cidr(event.ip, "203.0.113.0/24")"#, "true"),
            (r#"in_cidr("2001:db8::1", ["10.0.0.0/8", "2001:db8::/32"])"#, "true"),
            (r#"in_cidr(event.nothing, "10.0.0.0/8")"#, "false"),
        ],
        errors: "a network is invalid",
        run: in_cidr,
    },
    HostFunction {
        name: "is_private",
        parameters: &[needs("ip", "string")],
        gives: "true or false",
        about: "Test whether the IP address is not on the public internet: private, loopback, link-local, unique \
                local, unspecified, or carrier-grade NAT.",
        examples: &[
            (r#"is_private("10.1.2.3")"#, "true"),
            (r#"is_private("fd00::1")"#, "true"),
            ("is_private(event.ip)", "false"),
        ],
        errors: "",
        run: is_private,
    },
    HostFunction {
        name: "is_ip",
        parameters: &[needs("text", "string")],
        gives: "true or false",
        about: "Test whether the text is an IP address, of either version.",
        examples: &[(r#"is_ip("::1")"#, "true"), (r#"is_ip("example.com")"#, "false")],
        errors: "",
        run: is_ip,
    },
];

fn in_cidr(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let networks = texts(first(arguments, 1), "the network")?;
    let (Some(address), Some(networks)) = (data(first(arguments, 0)).and_then(|text| address(&text)), networks) else {
        return Ok(false.into());
    };
    match networks {
        Texts::One(one) => Ok(network(&one)?.contains(&address).into()),
        Texts::Many(many) => {
            for one in many {
                if network(&one)?.contains(&address) {
                    return Ok(true.into());
                }
            }
            Ok(false.into())
        }
        Texts::Named(list) => list.in_cidr(address).map(Dynamic::from),
    }
}

fn is_private(_: &Call, arguments: &[&Dynamic]) -> Returned {
    let address = data(first(arguments, 0)).and_then(|text| address(&text));
    Ok(address
        .is_some_and(|address| match address {
            IpAddr::V4(address) => {
                let [first, second, ..] = address.octets();
                address.is_private()
                    || address.is_loopback()
                    || address.is_link_local()
                    || address.is_unspecified()
                    // 100.64.0.0/10 (RFC 6598).
                    || (first == 100 && (64..128).contains(&second))
            }
            IpAddr::V6(address) => {
                let leading = address.segments().first().copied().unwrap_or(0);
                // fc00::/7 (RFC 4193) and fe80::/10 (RFC 4291).
                address.is_loopback()
                    || address.is_unspecified()
                    || leading & 0xfe00 == 0xfc00
                    || leading & 0xffc0 == 0xfe80
            }
        })
        .into())
}

fn is_ip(_: &Call, arguments: &[&Dynamic]) -> Returned {
    Ok(data(first(arguments, 0)).is_some_and(|text| address(&text).is_some()).into())
}
