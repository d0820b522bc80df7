//! Where an address is, by a database on disk (MaxMind's format, `.mmdb`), where one is configured.

use std::{path::PathBuf, sync::Arc};

use maxminddb::Reader;
use rhai::{Dynamic, Map};
use serde_json::Value;

use super::{Answer, HostFunction, Subject, data, first, needs, net};
use crate::{diagnostic::Diagnostic, rule::engine::Call};

pub(super) const SUBJECT: Subject = Subject {
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

/// A database may not be larger: they are some hundred megabytes at most.
const MAX_BYTES: u64 = 1024 * 1024 * 1024;

/// Databases of addresses.
#[derive(Default)]
pub(in crate::rule) struct Geo {
    databases: Vec<Reader<Vec<u8>>>,
    hashes: Vec<blake3::Hash>,
}

impl std::fmt::Debug for Geo {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Geo({} databases)", self.databases.len())
    }
}

impl Geo {
    /// Reads databases. One that cannot be read is told, and left out.
    pub(in crate::rule) fn open(files: &[PathBuf]) -> (Arc<Self>, Vec<Diagnostic>) {
        let mut geo = Self::default();
        let mut diagnostics = Vec::new();
        for file in files {
            let reader = std::fs::metadata(file)
                .and_then(|metadata| {
                    // Opening a pipe would wait for somebody to write to it.
                    if !metadata.is_file() {
                        return Err(std::io::Error::other("it is not a regular file"));
                    }
                    if metadata.len() > MAX_BYTES {
                        return Err(std::io::Error::other("it is larger than 1 GiB"));
                    }
                    std::fs::read(file)
                })
                .map_err(|error| error.to_string())
                .and_then(|bytes| {
                    let hash = blake3::hash(&bytes);
                    Ok((Reader::from_source(bytes).map_err(|error| error.to_string())?, hash))
                });
            match reader {
                Ok((reader, hash)) => {
                    geo.databases.push(reader);
                    geo.hashes.push(hash);
                }
                Err(error) => diagnostics.push(
                    Diagnostic::error("E005", file, format!("the address database cannot be used: {error}"))
                        .help("`geoip` under `[rules]` names files in MaxMind's format (.mmdb)"),
                ),
            }
        }
        (Arc::new(geo), diagnostics)
    }

    /// Hashes of the databases.
    pub(in crate::rule) fn hashes(&self) -> &[blake3::Hash] {
        &self.hashes
    }

    fn look_up(&self, text: &str) -> Option<Map> {
        let address = net::address(text)?;
        let mut map = Map::new();
        for reader in &self.databases {
            // A database that is damaged in places is as one that does not know.
            let record = reader.lookup(address).and_then(|found| found.decode::<Value>());
            let Ok(Some(record)) = record else {
                continue;
            };
            for (name, pointer) in [
                ("country", "/country/iso_code"),
                ("country_name", "/country/names/en"),
                ("city", "/city/names/en"),
                ("asn", "/autonomous_system_number"),
                ("organization", "/autonomous_system_organization"),
            ] {
                match record.pointer(pointer) {
                    Some(Value::String(text)) => map.insert(name.into(), text.as_str().into()),
                    Some(Value::Number(number)) => map.insert(name.into(), number.as_i64().unwrap_or(0).into()),
                    _ => None,
                };
            }
        }
        (!map.is_empty()).then_some(map)
    }
}

fn geo_ip(call: &Call, arguments: &[&Dynamic]) -> Answer {
    let found = data(first(arguments, 0)).and_then(|text| call.resources()?.geo.look_up(&text));
    Ok(found.map_or(Dynamic::UNIT, Dynamic::from))
}
