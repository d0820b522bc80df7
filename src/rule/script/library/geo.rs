//! Geolocation of IP addresses, from configured databases on disk in MaxMind's format (`.mmdb`).

use rhai::Dynamic;

use super::{HostFunction, Returned, Topic, first, needs};
use crate::rule::{manifest::value::data, script::host::Call};

pub(super) const TOPIC: Topic = Topic {
    title: "Places",
    about: "`event.geo` is the actor's location according to Atlassian. `geo_ip` looks an address up in your own \
            databases: set `geoip = [\"GeoLite2-City.mmdb\", \"GeoLite2-ASN.mmdb\"]` under `[rules]`. Without a \
            database it returns `()`, so a rule that uses it works everywhere and reports more where a database is \
            available. A replay uses the current databases.",
    functions: FUNCTIONS,
};

const FUNCTIONS: &[HostFunction] = &[HostFunction {
    name: "geo_ip",
    parameters: &[needs("ip", "string")],
    gives: "a map, or `()`",
    about: "Look up an IP address in the configured databases. The map has those of `country` (two letters), \
            `country_name`, `city`, `asn` (a number) and `organization` that the databases know. The result is `()` \
            if they know nothing or none is configured.",
    examples: &[("geo_ip(event.ip).country", "()"), ("geo_ip(event.nothing)", "()")],
    errors: "",
    run: geo_ip,
}];

fn geo_ip(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let found = data(first(arguments, 0)).and_then(|text| call.resources()?.geo.look_up(&text));
    Ok(found.map_or(Dynamic::UNIT, Dynamic::from))
}
