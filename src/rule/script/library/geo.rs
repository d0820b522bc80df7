//! Where an address is, by a database on disk (MaxMind's format, `.mmdb`), where one is configured.

use rhai::Dynamic;

use super::{HostFunction, Returned, Topic, first, needs};
use crate::rule::{manifest::value::data, script::host::Call};

pub(super) const TOPIC: Topic = Topic {
    title: "Places",
    about: "`event.geo` is what Atlassian says of where the actor was. `geo_ip` looks an address up in databases of your own: set \
            `geoip = [\"GeoLite2-City.mmdb\", \"GeoLite2-ASN.mmdb\"]` under `[rules]`. Without one it gives `()`, so a rule that uses it works \
            everywhere and says more where it can. A replay uses the databases of today.",
    functions: FUNCTIONS,
};

const FUNCTIONS: &[HostFunction] = &[HostFunction {
    name: "geo_ip",
    parameters: &[needs("ip", "text")],
    gives: "a map, or `()`",
    about: "What the databases say of an address: `country` (two letters), `country_name`, `city`, `asn` (a number), `organization`; those that they \
            know. `()` where they know nothing, or there are none.",
    examples: &[("geo_ip(event.ip).country", "()"), ("geo_ip(event.nothing)", "()")],
    errors: "",
    run: geo_ip,
}];

fn geo_ip(call: &Call, arguments: &[&Dynamic]) -> Returned {
    let found = data(first(arguments, 0)).and_then(|text| call.resources()?.geo.look_up(&text));
    Ok(found.map_or(Dynamic::UNIT, Dynamic::from))
}
