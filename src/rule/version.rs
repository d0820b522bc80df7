//! Rule versions. Two rules with the same version give the same results, and a version changes whenever the rule's
//! results could.
//!
//! A version is a hash of everything a rule consists of and reads. Versions are stored and compared across releases of
//! the program, so the hashed bytes use their own encoding: each string is preceded by its length, each list by its
//! count, and nothing depends on how a library prints its values. The examples in `tests/data/versions.txt` must stay
//! as they are.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rhai::{Array, Dynamic, ImmutableString, Map};

use crate::model::name::{RuleId, RuleVersion};
use crate::rule::{
    manifest::{
        exception::{Exception, ExceptionCondition},
        metadata::{Metadata, Stage},
        reads::ReadLists,
    },
    script::{compiled::CompiledRule, lists::Lists},
    set::RuleSet,
};

/// Hashes a rule's own file, its imports, and the effect of its overrides.
pub(super) fn of_content(text: &str, imports: &[Arc<str>], metadata: &Metadata) -> RuleVersion {
    let mut encoder = Encoder::default();
    encoder.text("content");
    encoder.text(text);
    encoder.count(imports.len());
    imports.iter().for_each(|import| encoder.text(import));
    let params = metadata.params.iter();
    encoder.count(params.len());
    for (name, value) in params {
        encoder.text(name);
        encoder.value(value);
    }
    encoder.text(metadata.severity.as_str());
    encoder.number(metadata.threshold.into());
    encoder.duration(metadata.window);
    encoder.duration(metadata.dedup_period);
    encoder.texts(metadata.destinations.as_deref());
    encoder.finish()
}

impl RuleSet {
    /// Returns the version of each detection rule.
    pub fn versions(&self) -> BTreeMap<RuleId, RuleVersion> {
        self.detections.iter().map(|rule| (rule.id().clone(), in_set(self, rule))).collect()
    }
}

/// Returns a rule's version in its set. It covers the rules that it subscribes to, its exceptions, and what it reads.
fn in_set(set: &RuleSet, rule: &Arc<CompiledRule>) -> RuleVersion {
    let mut encoder = Encoder::default();
    encoder.text("rule");
    let rules = set.with_what_it_hears(rule);
    let exceptions = |rule: &CompiledRule| -> Vec<&Arc<Exception>> {
        set.context.exceptions.iter().filter(|exception| exception.is_about(&rule.metadata)).collect()
    };
    // A subscriber reads the events of the rules it subscribes to.
    let reads_catalog =
        rules.iter().any(|rule| rule.reads.catalog || exceptions(rule).iter().any(|exception| exception.reads.catalog));
    encoder.count(rules.len());
    for rule in &rules {
        encoder.text(rule.id().as_str());
        encoder.text(&rule.hash);
        encoder.text(match rule.metadata.stage {
            Stage::Active => "active",
            Stage::Shadow => "shadow",
        });
        encoder.lists(&rule.reads.lists, rule.lists());
        encoder.count(if rule.reads.geo { rule.places().len() } else { 0 });
        if rule.reads.geo {
            rule.places().iter().for_each(|hash| encoder.text(&hash.to_hex()));
        }
        let exceptions = exceptions(rule);
        encoder.count(exceptions.len());
        for exception in exceptions {
            encoder.exception(exception, rule.lists());
        }
        encoder.actions(set, rule, reads_catalog);
    }
    encoder.count(set.context.ignored.len());
    for (source, patterns) in &*set.context.ignored {
        encoder.text(source.as_str());
        encoder.texts(Some(patterns.texts()));
    }
    encoder.finish()
}

/// Hashes values so that no two different sequences of values produce the same bytes.
#[derive(Default)]
struct Encoder(blake3::Hasher);

impl Encoder {
    fn finish(self) -> RuleVersion {
        let mut bytes = [0; 16];
        self.0.finalize_xof().fill(&mut bytes);
        RuleVersion::of_bytes(bytes)
    }

    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn count(&mut self, count: usize) {
        self.number(count as u64);
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.update(text.as_bytes());
    }

    fn texts<T: AsRef<str>>(&mut self, texts: Option<&[T]>) {
        self.number(texts.is_some().into());
        let texts = texts.unwrap_or_default();
        self.count(texts.len());
        texts.iter().for_each(|text| self.text(text.as_ref()));
    }

    fn duration(&mut self, duration: Duration) {
        self.number(duration.as_secs());
        self.number(duration.subsec_nanos().into());
    }

    fn value(&mut self, value: &Dynamic) {
        if let Some(text) = value.read_lock::<ImmutableString>() {
            self.text("text");
            self.text(&text);
        } else if let Ok(flag) = value.as_bool() {
            self.text("flag");
            self.number(flag.into());
        } else if let Ok(number) = value.as_int() {
            self.text("integer");
            self.0.update(&number.to_le_bytes());
        } else if let Ok(number) = value.as_float() {
            self.text("float");
            self.number(number.to_bits());
        } else if let Ok(character) = value.as_char() {
            self.text("character");
            self.number(u32::from(character).into());
        } else if let Some(items) = value.read_lock::<Array>() {
            self.text("list");
            self.count(items.len());
            items.iter().for_each(|item| self.value(item));
        } else if let Some(map) = value.read_lock::<Map>() {
            self.text("map");
            self.count(map.len());
            for (name, value) in &*map {
                self.text(name);
                self.value(value);
            }
        } else {
            self.text(value.type_name());
        }
    }

    fn lists(&mut self, read: &ReadLists, lists: &Lists) {
        let names: Vec<&str> = match read {
            ReadLists::Named(names) => names.iter().map(String::as_str).collect(),
            ReadLists::Any => lists.names().collect(),
        };
        self.count(names.len());
        for name in names {
            self.text(name);
            self.text(lists.hash(name).unwrap_or_default());
        }
    }

    fn exception(&mut self, exception: &Exception, lists: &Lists) {
        self.text(exception.id.as_str());
        match &exception.condition {
            ExceptionCondition::Expression { text, .. } => {
                self.text("expression");
                self.text(text);
            }
            ExceptionCondition::Values { slot, values } => {
                self.text("values");
                self.text(slot);
                self.count(values.len());
                values.iter().for_each(|fields| self.texts(Some(fields)));
            }
        }
        match exception.expires {
            None => self.text("never"),
            Some(expires) => {
                self.text("until");
                self.0.update(&expires.as_millisecond().to_le_bytes());
            }
        }
        self.lists(&exception.reads.lists, lists);
    }

    /// Hashes the parts of the organizations' action lists that a rule depends on.
    fn actions(&mut self, set: &RuleSet, rule: &CompiledRule, reads_catalog: bool) {
        for activity in rule.metadata.activities.iter().flatten() {
            self.text(activity);
            let actions: Vec<&str> = set.context.catalog.named(activity).map(AsRef::as_ref).collect();
            self.texts(Some(&actions));
        }
        if !reads_catalog {
            return;
        }
        for action in set.context.catalog.ids().filter(|action| set.is_wanted_by(action, rule.id())) {
            self.text(action);
            self.text(set.context.catalog.name(action).unwrap_or_default());
            self.text(set.context.catalog.category(action).as_str());
        }
    }
}
