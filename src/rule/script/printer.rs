//! What rules print: for their authors, and so little of it that a rule in a loop fills no disk. Lines are bounded, escaped, and
//! limited for each rule and minute.

use std::{collections::HashMap, time::Duration};

use crate::model::text::{clipped, escaped};

/// Lines of one rule in one minute.
const LINES: u32 = 20;
const MINUTE: Duration = Duration::from_secs(60);
/// UTF-16 units of a line.
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
    /// What is to be logged where a rule prints a text `now`, by a clock that only goes on; nothing where it has printed too much.
    pub(in crate::rule) fn line(&mut self, rule: &str, text: &str, now: Duration) -> Option<String> {
        let minute = self.0.entry(rule.to_owned()).or_insert(Minute { began: now, lines: 0 });
        let mut left_out = 0;
        if now.saturating_sub(minute.began) >= MINUTE {
            left_out = minute.lines.saturating_sub(LINES);
            *minute = Minute { began: now, lines: 0 };
        }
        minute.lines = minute.lines.saturating_add(1);
        // Escaping can make a text six times as long: what is shown is cut after it, what is escaped before it.
        let line = || clipped(&escaped(&clipped(text, LINE)), LINE);
        match minute.lines.cmp(&LINES) {
            std::cmp::Ordering::Less if left_out > 0 => {
                Some(format!("{} ({left_out} lines before this one are left out)", line()))
            }
            std::cmp::Ordering::Less => Some(line()),
            std::cmp::Ordering::Equal => {
                Some(format!("{} (a rule may print {LINES} lines a minute: what follows is left out)", line()))
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
        assert!(shown[19].ends_with("what follows is left out)"), "{}", shown[19]);
        assert_eq!(printer.line("a.c", "other", at(6)).as_deref(), Some("other"));
        assert_eq!(printer.line("a.b", "z", at(64)), None);
        assert_eq!(printer.line("a.b", "z", at(65)).as_deref(), Some("z (81 lines before this one are left out)"));
        assert!(printer.line("a.b", &"\n".repeat(1_000_000), at(66)).unwrap().len() <= LINE + 2);
    }
}
