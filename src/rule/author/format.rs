//! The formatter for rule files: indentation, spaces and blank lines. It leaves strings and comments as they are and
//! only changes whitespace, so formatting never changes what a rule does.

/// One level of indentation.
const INDENT: &str = "    ";

/// The kind of token that a character is part of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    Code,
    /// A string in double quotes.
    Text,
    /// A string in backticks. The open braces of `${ }` are tracked separately.
    Template,
    LineComment,
    BlockComment(u32),
    /// A raw string `#"…"#`, with its number of `#`.
    Raw(usize),
}

/// Returns the formatted text of a rule file.
pub fn format(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut scanner = Scanner { inside: Inside::Code, templates: Vec::new(), open: Vec::new(), level: 0 };
    let mut blank = 0;
    for line in text.lines() {
        if scanner.inside != Inside::Code {
            // Inside a string or a comment, where whitespace matters.
            result.push_str(line);
            result.push('\n');
            scanner.line(line, &mut String::new());
            continue;
        }
        let trimmed = line.trim();
        if trimmed.is_empty() {
            blank += 1;
            continue;
        }
        if blank > 0 && !result.is_empty() {
            result.push('\n');
        }
        blank = 0;
        // A line that starts with closing brackets is indented like the line that opened them.
        let closing = trimmed.chars().take_while(|character| ")]}".contains(*character)).count();
        let inside = match closing {
            0 => scanner.open.last().copied().unwrap_or(0),
            _ => {
                let opened = scanner.open.len().checked_sub(closing).and_then(|at| scanner.open.get(at));
                opened.map_or(0, |inside| inside.saturating_sub(1))
            }
        };
        let operator = trimmed.split_whitespace().next().unwrap_or_default();
        let continues = ["&&", "||", "??", "."].iter().any(|start| trimmed.starts_with(start))
            || ["+", "-", "*", "/", "==", "!="].contains(&operator);
        scanner.level = inside + usize::from(continues);
        for _ in 0..scanner.level {
            result.push_str(INDENT);
        }
        let mut spaced = String::with_capacity(trimmed.len() + 8);
        scanner.line(trimmed, &mut spaced);
        // A string or comment that continues on the next line keeps its trailing spaces.
        let ends_in_code = matches!(scanner.inside, Inside::Code);
        result.push_str(if ends_in_code { spaced.trim_end() } else { &spaced });
        result.push('\n');
    }
    result
}

struct Scanner {
    inside: Inside,
    /// For each template with an open `${ }`, the number of brackets that were open at its start.
    templates: Vec<usize>,
    /// For each open bracket, the indentation of its contents. Brackets opened on the same line indent only once.
    open: Vec<usize>,
    /// The indentation of the current line.
    level: usize,
}

impl Scanner {
    /// Scans a line and writes it with normalized spaces.
    fn line(&mut self, line: &str, out: &mut String) {
        let characters: Vec<char> = line.chars().collect();
        let at = |index: usize| characters.get(index).copied();
        let mut index = 0;
        while let Some(character) = at(index) {
            match self.inside {
                Inside::Code => match character {
                    '"' => self.inside = Inside::Text,
                    '`' => self.inside = Inside::Template,
                    '/' if at(index + 1) == Some('/') => self.inside = Inside::LineComment,
                    '/' if at(index + 1) == Some('*') => {
                        self.inside = Inside::BlockComment(1);
                        out.push('/');
                        index += 1;
                    }
                    '#' if matches!(at(index + 1), Some('"' | '#')) => {
                        let hashes = characters.iter().skip(index).take_while(|character| **character == '#').count();
                        if at(index + hashes) == Some('"') {
                            self.inside = Inside::Raw(hashes);
                            for _ in 0..hashes {
                                out.push('#');
                            }
                            index += hashes;
                        }
                    }
                    '\'' => {
                        // A character literal, which may be a quote or a bracket.
                        let end = if at(index + 1) == Some('\\') {
                            (index + 3..characters.len()).find(|end| at(*end) == Some('\''))
                        } else {
                            Some(index + 2).filter(|end| at(*end) == Some('\''))
                        };
                        if let Some(end) = end {
                            out.extend(characters.get(index..end).unwrap_or(&[]));
                            index = end;
                        }
                    }
                    '(' | '[' | '{' => self.open.push(self.level + 1),
                    ')' | ']' | '}' => {
                        self.open.pop();
                        if character == '}' && self.templates.last() == Some(&self.open.len()) {
                            self.templates.pop();
                            self.inside = Inside::Template;
                        }
                    }
                    ',' => {
                        // Inside `${ }` of a template, spaces are code and not part of the string.
                        while out.ends_with(' ') && !out.trim_end().is_empty() {
                            out.pop();
                        }
                        out.push(',');
                        if at(index + 1).is_some_and(|next| next != ' ') {
                            out.push(' ');
                        }
                        index += 1;
                        continue;
                    }
                    ' ' | '\t' => {
                        let before_comment = characters.get(index..).is_some_and(|rest| {
                            let rest: String = rest.iter().collect();
                            rest.trim_start().starts_with("//")
                        });
                        // Comments may be aligned.
                        if before_comment || !out.ends_with(' ') {
                            out.push(' ');
                        }
                        index += 1;
                        continue;
                    }
                    _ => {}
                },
                Inside::Text => match character {
                    '\\' => {
                        out.push('\\');
                        index += 1;
                    }
                    '"' => self.inside = Inside::Code,
                    _ => {}
                },
                Inside::Template => match character {
                    '\\' => {
                        out.push('\\');
                        index += 1;
                    }
                    '`' => self.inside = Inside::Code,
                    '$' if at(index + 1) == Some('{') => {
                        out.push('$');
                        index += 1;
                        self.templates.push(self.open.len());
                        self.open.push(self.level + 1);
                        self.inside = Inside::Code;
                    }
                    _ => {}
                },
                Inside::LineComment => {}
                Inside::BlockComment(depth) => {
                    if character == '*' && at(index + 1) == Some('/') {
                        self.inside = if depth > 1 { Inside::BlockComment(depth - 1) } else { Inside::Code };
                        out.push('*');
                        index += 1;
                    } else if character == '/' && at(index + 1) == Some('*') {
                        self.inside = Inside::BlockComment(depth + 1);
                        out.push('/');
                        index += 1;
                    }
                }
                Inside::Raw(hashes) => {
                    let closes = character == '"' && (1..=hashes).all(|offset| at(index + offset) == Some('#'));
                    if closes && out.len() > hashes && !out.ends_with('#') {
                        self.inside = Inside::Code;
                        out.push('"');
                        for _ in 1..hashes {
                            out.push('#');
                        }
                        index += hashes;
                    }
                }
            }
            if let Some(character) = at(index) {
                out.push(character);
            }
            index += 1;
        }
        match self.inside {
            Inside::LineComment => self.inside = Inside::Code,
            // A string in double quotes ends at the end of its line, unless the line ends with a backslash.
            Inside::Text if !line.ends_with('\\') => self.inside = Inside::Code,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::format;

    #[test]
    fn brackets_opened_on_the_same_line_indent_once() {
        let right = "fn f(x) {\n    list.push(#{\n        a: [1,\n            2],\n    });\n    call(a, |b| {\n        b\n    })\n        .c()\n}\n";
        assert_eq!(format(&right.replace("    ", "")), right);
    }

    #[test]
    fn spaces_and_indentation_are_normalized() {
        let written = "const RULE = #{\n  id:  \"a.b\",title: \"x ,  y\",\n};\n\n\n\nfn rule(event)  {\n\tevent.a   == `a  ${f(1,2)}  b`   // why\n  && [1,2][0] == '\"'\n}";
        let right = "const RULE = #{\n    id: \"a.b\", title: \"x ,  y\",\n};\n\nfn rule(event) {\n    event.a == `a  ${f(1, 2)}  b`   // why\n        && [1, 2][0] == '\"'\n}\n";
        assert_eq!(format(written), right);
        assert_eq!(format(right), right);
    }

    #[test]
    fn multiline_strings_and_comments_are_unchanged() {
        let written =
            "let a = `one\n   two  ${ b }\n\n  three`;\n/* a\n      b */\nlet c = #\"x\n   y \"quoted\" \"#;\n";
        assert_eq!(format(written), written);
    }
}
