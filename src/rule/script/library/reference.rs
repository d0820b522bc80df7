//! What authors read about the language: the reference (`docs/rule-language.md`) and an editor's definitions (`*.d.rhai`), both
//! made from the tables that the engine's registrations are made from.

use std::fmt::Write;

use super::{HostFunction, TOPICS};
use crate::rule::manifest::metadata;

/// The event that the examples are about.
pub const EXAMPLE_EVENT: &str = r#"{
  "id": "7d0f3a52-0001-4000-8000-000000000001",
  "type": "events",
  "attributes": {
    "time": "2026-03-01T12:00:00Z",
    "processedAt": "2026-03-01T12:00:01Z",
    "action": "user_logged_in_as_user",
    "actor": { "id": "712020:0f3a-dana", "name": "Dana Wilson", "email": "dana.wilson@example.com" },
    "context": [
      { "id": "712020:77c1-ines", "type": "users", "attributes": { "name": "Inês Carvalho", "email": "ines.carvalho@example.com" } }
    ],
    "container": [
      { "id": "site-1", "type": "sites", "attributes": { "siteName": "example-corp", "siteHostName": "https://example-corp.atlassian.net" } }
    ],
    "location": { "ip": "203.0.113.21", "countryName": "Germany", "city": "Berlin", "regionName": "" }
  },
  "message": { "content": "Dana Wilson logged in as Inês Carvalho", "format": "simple" },
  "links": { "self": "https://api.atlassian.com/admin/v1/orgs/00000000-0000-0000-0000-000000000000/events/7d0f3a52" }
}"#;

/// The lists that the examples look into: file names and texts.
pub const EXAMPLE_LISTS: [(&str, &str); 2] = [
    ("admins.txt", "# Who may administer.\ndana.wilson@example.com\nines.carvalho@example.com\n"),
    ("offices.csv", "network,city\n203.0.113.0/24,Berlin\n198.51.100.0/24,Porto\n"),
];

const HEAD: &str = "# The rule language

*Made by `watchbell rules reference`; a test holds it to the program.*

A rule is one `.rhai` file: `const RULE = #{ … }`, which says what it is, and functions, of which `fn rule(event)` must be there. The language
is [Rhai](https://rhai.rs/book/), whose [standard library](https://rhai.rs/book/lib/) is there except for what touches the world outside: no
files, no network, no clock, no `eval`, no waiting. A call may use 500,000 operations and a second (`max_operations`, `max_time` under `[rules]`);
texts are bounded to 256 KiB, lists and maps to 20,000 items and 100 levels, and a value to 8 MiB with all that it holds. A call that reaches a
limit ends with a rule error, whatever it catches. `print` and `debug` write 20 lines a minute and rule to the agent's log.

Some of the standard library is bounded further. `curry` takes values of 4 KiB at most: write a closure instead. `chars` gives a list.
`parse_json` reads any JSON, and only JSON. Values cannot be tagged, and `get_fn_metadata_list` is off. There is no `this`:
a function is given what it works on as a parameter. A large list or map costs operations each time it is read: one for each 512 bytes.

## Absent data

Events are ragged: any field may be absent, null, or of another type than documented. What is absent reads as `()`, at any depth, and is
never an error. So does what a documented field would have below it, where it is a text, a number or a list instead:

```rhai
event.attributes.actor.email              // () where there is no actor
event.targets(\"users\")[0].attributes.name // () where there are no targets
event.ip ?? \"unknown\"                     // the other value where it is ()
!(event.nothing > 5)                      // no comparison with () holds, except `!=`
for target in event.nothing { }           // runs no time
`${event.actor.name}`                     // an empty text
```

`contains`, `starts_with`, `ends_with`, `len`, `is_empty`, `to_lower`, `to_upper`, `split`, `keys` and `values` of `()` are what they would be of
something empty. The functions below give `()`, false or an empty list for absent data and for data of a wrong type; only what you write
yourself (a pattern, a time zone, the name of a list) is held to, and throws if it is wrong.

## Unusual events

Nothing that is a JSON object is left out. What a strict reader would refuse is read as the nearest thing, and `event.flags` says so; it is an
empty list otherwise.

| flag | what it says |
| --- | --- |
| `surrogate` | half a surrogate pair: it reads as U+FFFD |
| `number` | a number too large for a float: it reads as a text |
| `too_deep` | more than 64 levels: what is deeper reads as `()` |
| `duplicate_key` | a name twice in one object: the last counts |
| `control` | a control character other than tab and line breaks in a text |
| `bidi` | a mark that turns the direction of text around |
| `escape` | an escape that JSON does not know: it reads as it is written |
| `id` | no id, or one that is no text, has more than 512 bytes, or holds control characters or half a surrogate pair: a hash stands for it |
| `action` | no action, or one that Atlassian would not write: with capitals, spaces around it, or other characters than letters, digits and `_ . : -`. `event.action` is in lower case, without spaces around it and without invisible characters, or `()` |
| `time` | a time that is not legible, or before 2012 or a day after its arrival: that of `processedAt` counts, else that of the arrival |
| `too_large` | more than 5,000 values, or 64 KiB of text: rules see long texts and lists cut, `…` at the end of a text; the event is stored whole |

A rule with `flagged: true` looks at such events only; `atlassian.monitoring.event_tampered` is one. A time may have a blank in place of its `T`.

## Counting and time

Windows and dedup periods go by the time of events; none counts as later than its arrival. Where `fn unique` is there and the threshold is one,
each match opens an alert, whether it has a value or not; above that, a match without a value counts for nothing.

";

const FUNCTIONS: [(&str, &str, &str); 10] = [
    (
        "rule",
        "true or false",
        "Whether to alert. It must be there. If it throws, the rule does not match, and an alert says that it fails.",
    ),
    ("title", "a text", "The alert's title. Name who did what to whom: people read it on a phone."),
    ("severity", "a text", "`info`, `low`, `medium`, `high` or `critical`, where it depends on the event."),
    ("dedup", "a text", "What matches of one alert have in common; else the title. Within one source."),
    ("description", "a text", "What it means."),
    ("runbook", "a text", "What to do about it."),
    ("reference", "a text", "Where to read more."),
    ("destinations", "a list of texts", "Names of destinations, in place of the configured routing."),
    ("context", "a map", "Evidence, kept with the alert and sent with it."),
    (
        "unique",
        "a text, a number, or `()`",
        "With `threshold`: counts distinct values instead of matches. `()` counts for nothing.",
    ),
];

/// The reference, as Markdown.
pub fn reference() -> String {
    let mut text = HEAD.to_owned();
    text.push_str("## `RULE`\n\n| key | value | meaning |\n| --- | --- | --- |\n");
    for key in metadata::KEY_TABLE {
        writeln!(text, "| `{}` | {} | {} |", key.name, key.takes, key.about).ok();
    }
    text.push_str("\n## Functions of a rule\n\nAll take the event. Those that are not there, or throw, are replaced by the key of the same name in `RULE`; ");
    text.push_str(
        "an error is kept with the alert and counted.\n\n| function | gives | meaning |\n| --- | --- | --- |\n",
    );
    for (name, gives, about) in FUNCTIONS {
        writeln!(text, "| `fn {name}(event)` | {gives} | {about} |").ok();
    }
    text.push_str(
        "| `fn expired(key, event)` | true or false | Whether to alert now that what the rule expected did not happen: see `expect`. |\n",
    );
    text.push_str(
        "\nA file with `fn check(source)` or `fn check_agent(agent)` in place of `fn rule` is a check: it runs on a timer and judges the agent itself. \
         `rules/builtin/` has those that are built in.\n\n## Host functions\n\nThe examples are about this event:\n\n```json\n",
    );
    text.push_str(EXAMPLE_EVENT);
    text.push_str("\n```\n\nand these lists:\n");
    for (name, content) in EXAMPLE_LISTS {
        write!(text, "\n`lists/{name}`:\n\n```\n{content}```\n").ok();
    }
    for subject in TOPICS {
        write!(text, "\n### {}\n\n{}\n", subject.title, subject.about).ok();
        for function in subject.functions {
            write!(text, "\n#### `{}`\n\n{} Gives {}.", signature(function), function.about, function.gives).ok();
            if !function.errors.is_empty() {
                write!(text, " Throws where there is {}.", function.errors).ok();
            }
            text.push_str("\n\n```rhai\n");
            for (call, value) in function.examples {
                writeln!(text, "{call} // {value}").ok();
            }
            text.push_str("```\n");
        }
    }
    text
}

/// Definition files for editors that know Rhai: file names and texts.
pub fn definitions() -> Vec<(String, String)> {
    let mut text = String::from(
        "module static;\n\n/// The event: Atlassian's own names, and `action`, `activity`, `category`, `actor`, `time`, `ip`, `geo`, `source`.\nconst event: map;\n\n\
         /// The rule's parameters, as `RULE.params` and the overrides say.\nconst params: map;\n",
    );
    for function in TOPICS.iter().flat_map(|subject| subject.functions) {
        for arguments in function.least()..=function.parameters.len() {
            writeln!(text, "\n/// {}", function.about).ok();
            for (call, value) in function.examples {
                writeln!(text, "///\n///     {call} // {value}").ok();
            }
            let parameters: Vec<String> = function
                .parameters
                .iter()
                .take(arguments)
                .map(|parameter| format!("{}: {}", parameter.name, type_of(parameter.takes)))
                .collect();
            writeln!(text, "fn {}({}) -> {};", function.name, parameters.join(", "), type_of(function.gives)).ok();
        }
    }
    vec![("watchbell.d.rhai".to_owned(), text)]
}

fn signature(function: &HostFunction) -> String {
    let mut text = format!("{}(", function.name);
    for (index, parameter) in function.parameters.iter().enumerate() {
        let separator = if index > 0 { ", " } else { "" };
        let name = if parameter.optional { format!("[{}]", parameter.name) } else { parameter.name.to_owned() };
        write!(text, "{separator}{name}").ok();
    }
    text.push(')');
    text
}

/// A type as editors know it.
fn type_of(words: &str) -> &'static str {
    match words {
        "true or false" => "bool",
        "text" | "a text" => "String",
        "map" | "event" => "map",
        "list" | "a list" | "a list of maps" => "array",
        "number" => "int",
        _ => "?",
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_function_of_a_rule_is_documented() {
        let documented: Vec<&str> = super::FUNCTIONS.iter().skip(1).map(|(name, _, _)| *name).collect();
        assert_eq!(documented, crate::rule::script::compiled::OPTIONAL_FUNCTIONS);
    }
}
