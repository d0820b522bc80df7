//! Limits on the values that a rule builds.
//!
//! Rhai counts the items and strings of lists and maps after one of its functions has changed one. It does not count
//! how deep values nest, keys of maps, what closures capture, and what is assigned to a part of a value. All of this
//! is checked here each time a variable is read: one step can add no more than is written in it or Rhai lets through.
//! Reading a large value costs operations, because it may be copied. So nothing recurses much further than
//! [`MAX_DEPTH`], and any thread can drop, clone, compare and format values. `this` is not a variable, so it is not
//! part of the language.
//!
//! A closure shares the variables that it captures, so a value can be made to contain itself. When a call ends,
//! everything it captured is therefore checked, and emptied if it contains closures: nothing leaks.

use rhai::{Array, Blob, Dynamic, EvalAltResult, FnPtr, ImmutableString, Map, Position};

/// Maximum size of a string, in bytes.
pub(in crate::rule) const MAX_STRING: usize = 256 * 1024;
/// Maximum number of items of a list or map, all levels together.
pub(in crate::rule) const MAX_ITEMS: usize = 20_000;
/// Maximum nesting of lists, maps and closures.
pub(in crate::rule) const MAX_DEPTH: usize = 100;
/// Maximum nesting of closures that capture closures.
const MAX_CLOSURES: usize = 8;
/// Maximum size of one value with everything in it, in bytes.
pub(in crate::rule) const MAX_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of a value, without its strings, that one read operation pays for: strings are shared, everything else is
/// copied.
const BYTES_OF_AN_OPERATION: usize = 512;
/// Maximum number of variables that one call captures.
const MAX_CAPTURED: usize = 10_000;
/// Maximum total size of the variables that one call captures, in bytes.
const MAX_CAPTURED_BYTES: usize = 64 * 1024 * 1024;

/// Tags a shared value that need not be checked: a captured variable that was checked before, or a value of the host.
/// Rhai lets hosts tag values.
const SEEN: i32 = 0x5ea1;

/// Tags a shared value of the host, so that reading it costs nothing. Rules cannot set tags.
pub(in crate::rule) fn trusted(mut value: Dynamic) -> Dynamic {
    value.set_tag(SEEN);
    value
}

/// Tracks the variables that a call captures.
#[derive(Debug, Default)]
pub(in crate::rule) struct Watch {
    captured: Vec<Dynamic>,
    bytes: usize,
}

impl Watch {
    /// Checks a variable that is about to be read. Returns the operations that reading it costs.
    pub(in crate::rule) fn read(&mut self, variable: &mut Dynamic) -> Result<u64, Box<EvalAltResult>> {
        if variable.is_shared() && variable.tag() != SEEN {
            self.capture(variable)?;
        }
        // Read-only values, such as the event, were bounded when they were made, and are not copied.
        if variable.is_read_only() {
            return Ok(0);
        }
        let weight = Weight::of(variable);
        weight.check()?;
        let copied = weight.bytes.saturating_sub(weight.text);
        Ok(u64::try_from(copied / BYTES_OF_AN_OPERATION).unwrap_or(u64::MAX))
    }

    fn capture(&mut self, variable: &mut Dynamic) -> Result<(), Box<EvalAltResult>> {
        let weight = Weight::of(variable);
        weight.check()?;
        self.bytes = self.bytes.saturating_add(weight.bytes);
        if self.captured.len() >= MAX_CAPTURED || self.bytes > MAX_CAPTURED_BYTES {
            return Err(too_large("closures would capture more than 10,000 variables or 64 MiB"));
        }
        variable.set_tag(SEEN);
        self.captured.push(variable.clone());
        Ok(())
    }

    /// Ends a call: clears its state and breaks reference cycles.
    pub(in crate::rule) fn end(&mut self) {
        self.bytes = 0;
        for mut cell in self.captured.drain(..) {
            let holds = cell.read_lock::<Dynamic>().is_some_and(|value| is_or_holds_closure(&value));
            if holds && let Some(mut value) = cell.write_lock::<Dynamic>() {
                // Drop after releasing the lock: the content may be this very cell.
                let held = std::mem::take(&mut *value);
                drop(value);
                drop(held);
            }
        }
    }
}

/// An error that counts as exceeding a limit.
pub(in crate::rule) fn too_large(what: &str) -> Box<EvalAltResult> {
    EvalAltResult::ErrorDataTooLarge(what.to_owned(), Position::NONE).into()
}

/// The size of a value, including everything in it.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::rule) struct Weight {
    /// Number of lists, maps, functions and single values.
    pub(in crate::rule) nodes: usize,
    /// Bytes of strings.
    pub(in crate::rule) text: usize,
    /// Approximate size in bytes.
    pub(in crate::rule) bytes: usize,
    /// Nesting of lists, maps and functions.
    depth: usize,
    /// Nesting of functions that capture values.
    closures: usize,
}

impl Weight {
    /// Weighs a value, stopping at the limits.
    pub(in crate::rule) fn of(value: &Dynamic) -> Self {
        let mut weight = Self::default();
        weight.add(value, 0, 0);
        weight
    }

    /// Fails if a limit is exceeded.
    pub(in crate::rule) fn check(self) -> Result<(), Box<EvalAltResult>> {
        if self.depth > MAX_DEPTH || self.closures > MAX_CLOSURES {
            return Err(too_large("a value would nest more than 100 levels deep"));
        }
        // Twice what Rhai allows: its own limits apply first.
        if self.bytes > MAX_BYTES || self.nodes > 2 * MAX_ITEMS || self.text > 2 * MAX_STRING {
            return Err(too_large("a value would take more than 8 MiB"));
        }
        Ok(())
    }

    fn add(&mut self, value: &Dynamic, depth: usize, closures: usize) {
        /// Size of a value itself, with its slot in a list or map.
        const NODE: usize = 48;
        self.nodes += 1;
        self.bytes += NODE;
        if self.check().is_err() {
            return;
        }
        if let Some(items) = value.read_lock::<Array>() {
            self.depth = self.depth.max(depth + 1);
            items.iter().for_each(|item| self.add(item, depth + 1, closures));
        } else if let Some(map) = value.read_lock::<Map>() {
            self.depth = self.depth.max(depth + 1);
            for (name, item) in map.iter() {
                self.bytes += name.len();
                self.add(item, depth + 1, closures);
            }
        } else if let Some(function) = value.read_lock::<FnPtr>() {
            if function.is_curried() {
                self.depth = self.depth.max(depth + 1);
                self.closures = self.closures.max(closures + 1);
                function.iter_curry().for_each(|item| self.add(item, depth + 1, closures + 1));
            }
        } else if let Some(text) = value.read_lock::<ImmutableString>() {
            self.text += text.len();
            self.bytes += text.len();
        } else if let Some(blob) = value.read_lock::<Blob>() {
            self.bytes += blob.len();
        }
    }
}

/// Whether a value is or contains a function with captured values.
pub(in crate::rule) fn is_or_holds_closure(value: &Dynamic) -> bool {
    Weight::of(value).closures > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(levels: usize) -> Dynamic {
        (0..levels).fold(Dynamic::from(1_i64), |inner, _| Dynamic::from_array(vec![inner]))
    }

    #[test]
    fn depth_size_and_names_count() {
        assert!(Weight::of(&nested(MAX_DEPTH)).check().is_ok());
        assert!(Weight::of(&nested(MAX_DEPTH + 1)).check().is_err());
        let many = Dynamic::from_array(vec![Dynamic::from(1_i64); 2 * MAX_ITEMS + 1]);
        assert!(Weight::of(&many).check().is_err());
        let long = Map::from([("x".repeat(MAX_BYTES).into(), Dynamic::UNIT)]);
        assert!(Weight::of(&Dynamic::from_map(long)).check().is_err());
    }

    /// A cell that contains a closure that captured the cell.
    #[test]
    fn what_holds_itself_is_let_go() {
        let mut cell = Dynamic::from(0_i64).into_shared();
        let mut function = FnPtr::new("f").unwrap();
        function.add_curry(cell.clone());
        let mut watch = Watch::default();
        watch.read(&mut cell).unwrap();
        *cell.write_lock::<Dynamic>().unwrap() = Dynamic::from(function.clone());
        assert!(Weight::of(&cell).check().is_err());
        watch.end();
        assert!(cell.read_lock::<Dynamic>().unwrap().is_unit());
    }
}
