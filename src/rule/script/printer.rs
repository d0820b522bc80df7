//! Output of rules' `print` and `debug`. It is meant for rule authors, so lines are truncated, escaped, and limited
//! per rule and minute: a rule in a loop must not fill the disk.

use std::{collections::HashMap, time::Duration};

use crate::model::text::{clipped, escaped};

/// Maximum number of lines per rule and minute.
const LINES: u32 = 20;
const MINUTE: Duration = Duration::from_secs(60);
/// Maximum length of a line, in UTF-16 units.
const LINE: usize = 2_000;

/// Limits what rules print.
#[derive(Debug, Default)]
pub(in crate::rule) struct Printer(HashMap<String, Minute>);

#[derive(Debug)]
struct Minute {
    began: Duration,
    lines: u32,
}

impl Printer {
    /// The line to log when a rule prints a text at the monotonic time `now`; `None` if it has printed too much.
    pub(in crate::rule) fn line(&mut self, rule: &str, text: &str, now: Duration) -> Option<String> {
        let minute = self.0.entry(rule.to_owned()).or_insert(Minute { began: now, lines: 0 });
        let mut left_out = 0;
        if now.saturating_sub(minute.began) >= MINUTE {
            left_out = minute.lines.saturating_sub(LINES);
            *minute = Minute { began: now, lines: 0 };
        }
        minute.lines = minute.lines.saturating_add(1);
        // Escaping can make a text six times as long, so truncate before and after it.
        let line = || clipped(&escaped(&clipped(text, LINE)), LINE);
        match minute.lines.cmp(&LINES) {
            std::cmp::Ordering::Less if left_out > 0 => {
                Some(format!("{} ({left_out} earlier lines were omitted)", line()))
            }
            std::cmp::Ordering::Less => Some(line()),
            std::cmp::Ordering::Equal => {
                Some(format!("{} (limit of {LINES} lines per minute reached; further lines are omitted)", line()))
            }
            std::cmp::Ordering::Greater => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_prints_twenty_lines_a_minute() {
        let mut printer = Printer::default();
        let at = Duration::from_secs;
        let shown: Vec<String> = (0..100).filter_map(|_| printer.line("a.b", "x\ny", at(5))).collect();
        assert_eq!(shown.len(), 20);
        assert_eq!(shown[0], "x\\ny");
        assert!(shown[19].ends_with("further lines are omitted)"), "{}", shown[19]);
        assert_eq!(printer.line("a.c", "other", at(6)).as_deref(), Some("other"));
        assert_eq!(printer.line("a.b", "z", at(64)), None);
        assert_eq!(printer.line("a.b", "z", at(65)).as_deref(), Some("z (81 earlier lines were omitted)"));
        assert!(printer.line("a.b", &"\n".repeat(1_000_000), at(66)).unwrap().len() <= LINE + 2);
    }
}
