//! Bounds of the values that a rule makes.
//!
//! Rhai counts the items and the texts of lists and maps when one of its functions has changed one. It does not count how deep values
//! nest, names in maps, what closures hold, and what is assigned into a part of a value. All that is looked at here, each time a
//! variable is read: a step adds only as much as is written in it or as Rhai lets through. Reading a large value costs operations, as
//! it may be copied. So nothing recurses much further than [`MAX_DEPTH`], and values of any thread can be dropped, cloned, compared
//! and shown. `this`, which is no variable, is not part of the language.
//!
//! A closure shares the variables that it captures, so a value can be made to hold itself. What a call captured is therefore looked
//! through when the call has ended, and emptied where it holds closures: nothing is left behind.

use rhai::{Array, Blob, Dynamic, EvalAltResult, FnPtr, ImmutableString, Map, Position};

/// Size of a text a rule may build, in bytes.
pub(in crate::rule) const MAX_STRING: usize = 256 * 1024;
/// Items of a list or a map a rule may build, all levels counted.
pub(in crate::rule) const MAX_ITEMS: usize = 20_000;
/// Levels of lists, maps and closures inside each other.
pub(in crate::rule) const MAX_DEPTH: usize = 100;
/// Closures that capture closures.
const MAX_CLOSURES: usize = 8;
/// Bytes of one value with all that it holds.
pub(in crate::rule) const MAX_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of a value, its texts not counted, that cost one operation to read: texts are shared, all else is copied.
const BYTES_OF_AN_OPERATION: usize = 512;
/// Captured variables of one call.
const MAX_CAPTURED: usize = 10_000;
/// Bytes that the captured variables of one call hold together.
const MAX_CAPTURED_BYTES: usize = 64 * 1024 * 1024;

/// Marks a shared value that need not be looked at: a captured variable that was, or one that the host made. Rhai lets hosts tag values.
const SEEN: i32 = 0x5ea1;

/// Marks a shared value of the host's own, so that reading it costs nothing. Rules cannot set tags.
pub(in crate::rule) fn trusted(mut value: Dynamic) -> Dynamic {
    value.set_tag(SEEN);
    value
}

/// What a call has captured.
#[derive(Debug, Default)]
pub(in crate::rule) struct Watch {
    captured: Vec<Dynamic>,
    bytes: usize,
}

impl Watch {
    /// Looks at a variable that is about to be read. Gives the operations that reading it costs.
    pub(in crate::rule) fn read(&mut self, variable: &mut Dynamic) -> Result<u64, Box<EvalAltResult>> {
        if variable.is_shared() && variable.tag() != SEEN {
            self.capture(variable)?;
        }
        // What is read-only, such as the event, was bounded when it was made, and is not copied.
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

    /// Forgets a call that has ended, and breaks what holds itself.
    pub(in crate::rule) fn end(&mut self) {
        self.bytes = 0;
        for mut cell in self.captured.drain(..) {
            let holds = cell.read_lock::<Dynamic>().is_some_and(|value| is_or_holds_closure(&value));
            if holds && let Some(mut value) = cell.write_lock::<Dynamic>() {
                // Dropped only when the lock is released: what it holds may be this cell.
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

/// What a value weighs, with all that it holds.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::rule) struct Weight {
    /// Lists, maps, functions and single values.
    pub(in crate::rule) nodes: usize,
    /// Bytes of texts.
    pub(in crate::rule) text: usize,
    /// About how many bytes it takes.
    pub(in crate::rule) bytes: usize,
    /// Levels of lists, maps and functions.
    depth: usize,
    /// Levels of functions that hold values.
    closures: usize,
}

impl Weight {
    /// Weighs a value, as far as it is within the bounds.
    pub(in crate::rule) fn of(value: &Dynamic) -> Self {
        let mut weight = Self::default();
        weight.add(value, 0, 0);
        weight
    }

    /// Whether it is within the bounds.
    pub(in crate::rule) fn check(self) -> Result<(), Box<EvalAltResult>> {
        if self.depth > MAX_DEPTH || self.closures > MAX_CLOSURES {
            return Err(too_large("a value would nest more than 100 levels deep"));
        }
        // Twice of what Rhai allows: its own limits come first.
        if self.bytes > MAX_BYTES || self.nodes > 2 * MAX_ITEMS || self.text > 2 * MAX_STRING {
            return Err(too_large("a value would take more than 8 MiB"));
        }
        Ok(())
    }

    fn add(&mut self, value: &Dynamic, depth: usize, closures: usize) {
        /// What a value takes by itself, with its place in a list or a map.
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

/// Whether a value is, or holds, a function with values of its own.
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

    /// A cell that holds a closure that captured the cell.
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
