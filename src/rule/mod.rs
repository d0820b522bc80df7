//! Rules: loading files into a [`RuleSet`] of compiled rules, and the sandbox in which they run.
//!
//! Only `load` and `watch` access the file system. Nothing here reads a clock on behalf of a rule.

mod author;
mod cycle;
mod load;
mod manifest;
mod plan;
mod script;
mod set;
mod unmatched;
mod version;

pub use author::docs::{Documented, documentation, navigator_layer};
pub use author::format::format;
pub use author::lint::{lint, lint_exception};
pub use author::template::{Scaffold, anonymise, quoted, scaffold};
pub use author::test_file;
pub use author::test_file::{Case, Expected, ExpectedAlert};
pub use load::files::{fingerprint_on_disk, rule_files, stamp_on_disk, test_files};
pub use load::loader::{LoadWatch, Loaded, Loader, RuleSources, parse_exceptions, unreadable_root};
pub use load::shipped::{BUILTIN, SHIPPED, ShippedFile};
pub use load::watch::{WatchMode, Watcher};
pub use manifest::exception::{EXCEPTIONS, Exception, ExceptionCondition};
pub use manifest::metadata::{KEY_TABLE, Metadata, MetadataKey, Stage};
pub(crate) use manifest::overrides::read_one as read_override;
pub use manifest::overrides::{OVERRIDES, Overrides, RuleOverride};
pub use manifest::problem::{FailureKind, RuleFailure};
pub use manifest::selector::Selector;
pub use plan::Plan;
pub use script::call::{CallWatch, Finding, RuleHost, RuleInput};
pub use script::compiled::{CompiledRule, EXPIRED, OPTIONAL_FUNCTIONS, RuleKind};
pub use script::library::{
    EXAMPLE_EVENT, EXAMPLE_LISTS, HostFunction, Parameter, TOPICS, Topic, definitions, reference,
};
pub use script::memory::{Expectation, LATENESS, MEMORY, Memory, Quota, Remembered};
pub use script::meter::Limits;
pub use script::stack;
pub use script::trace::{Note, Trace, Tracer, line_of};
pub use script::view::{EventView, MatchInfo, frozen};
pub use script::vocabulary::{Vocabulary, certainty};
pub use set::{BrokenFile, Ended, Guarded, Ignored, RuleSet, RuleSetContext};
pub use unmatched::Unmatched;
