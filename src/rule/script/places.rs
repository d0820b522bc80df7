//! Geolocation of IP addresses, from configured databases on disk in MaxMind's format (`.mmdb`).

use std::{path::PathBuf, sync::Arc};

use maxminddb::Reader;
use rhai::Map;
use serde_json::Value;

use crate::config::diagnostic::Diagnostic;
use crate::rule::script::address::address;

/// Maximum size of a database; real ones have a few hundred megabytes at most.
const MAX_BYTES: u64 = 1024 * 1024 * 1024;

/// The loaded address databases.
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
    /// Opens databases. One that cannot be read is reported and skipped.
    pub(in crate::rule) fn open(files: &[PathBuf]) -> (Arc<Self>, Vec<Diagnostic>) {
        let mut geo = Self::default();
        let mut diagnostics = Vec::new();
        for file in files {
            let reader = std::fs::metadata(file)
                .and_then(|metadata| {
                    // Opening a pipe would block until something writes to it.
                    if !metadata.is_file() {
                        return Err(std::io::Error::other("not a regular file"));
                    }
                    if metadata.len() > MAX_BYTES {
                        return Err(std::io::Error::other("larger than 1 GiB"));
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
                    Diagnostic::error("E005", file, format!("cannot read the address database: {error}"))
                        .help("list files in MaxMind's format (.mmdb) in `geoip` under `[rules]`"),
                ),
            }
        }
        (Arc::new(geo), diagnostics)
    }

    /// Content hashes of the databases.
    pub(in crate::rule) fn hashes(&self) -> &[blake3::Hash] {
        &self.hashes
    }

    /// Everything that the databases know about an address.
    pub(in crate::rule) fn look_up(&self, text: &str) -> Option<Map> {
        let found = address(text)?;
        let mut map = Map::new();
        for reader in &self.databases {
            // A record that is damaged counts as unknown.
            let record = reader.lookup(found).and_then(|found| found.decode::<Value>());
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
