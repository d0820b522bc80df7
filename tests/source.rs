use std::time::Duration;

use serde_json::{Value, json};
use watchbell::{
    model::{
        error_kind::ErrorKind,
        event::Event,
        legible::Flag,
        time::{self, Clock},
    },
    simulator::{Ending, Fault, Faults, Scenario, Simulated, SimulatorOptions},
    store::{AlertFilter, ScanFilter},
};

use crate::support::{Lab, Running, base, entry, evaluated, eventually, now, organization, stored_ids};

fn entries(count: usize) -> Vec<Value> {
    (0..count).map(|index| entry(&format!("e{index:04}"), "x", i64::try_from(index).unwrap(), "ann")).collect()
}

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|index| format!("e{index:04}")).collect()
}

#[test]
fn both_endings_deliver_everything_once_and_in_order() {
    for ending in [Ending::Cursor, Ending::Null] {
        for page_limit in [1, 7, 500] {
            let options = SimulatorOptions { ending, page_limit, ..organization(&entries(60)) };
            let lab = Lab::with_organization(options, "");
            lab.run_agent_until(|reader| evaluated(reader, 60));
            assert_eq!(stored_ids(&lab.reader().1), ids(60), "{ending:?} {page_limit}");
        }
    }
}

/// Polling continues after the end of the log: events that are processed later arrive with either ending, also after a
/// restart.
#[test]
fn events_that_are_processed_later_are_not_missed() {
    for ending in [Ending::Cursor, Ending::Null] {
        let clock = time::Clock::manual(time::after(base(), Duration::from_secs(100)));
        let mut given = entries(20);
        // It happened first and was processed last.
        given[0]["attributes"]["processedAt"] = time::after(base(), Duration::from_secs(400)).to_string().into();
        let options = SimulatorOptions { ending, page_limit: 8, clock: clock.clone(), ..organization(&given) };
        let lab = Lab::with_organization(options, "");
        lab.run_agent_with(&clock, |reader| evaluated(reader, 19));
        lab.run_agent_with(&clock, |reader| {
            clock.set(time::after(base(), Duration::from_secs(500)));
            evaluated(reader, 20)
        });
        assert_eq!(stored_ids(&lab.reader().1).last().map(String::as_str), Some("e0000"), "{ending:?}");
    }
}

/// Each fault, on every request: the agent reports the error kind, keeps retrying, and gets everything once it ends.
#[test]
fn every_fault_is_named_and_outlived() {
    for fault in Fault::ALL {
        let options = SimulatorOptions { page_limit: 10, faults: Faults::always(fault), ..organization(&entries(30)) };
        let lab = Lab::with_organization(options, "");
        let expected = match fault {
            Fault::RetryAfterSeconds
            | Fault::RetryAfterDate
            | Fault::XRetryAfter
            | Fault::ResetIso
            | Fault::ResetMinutes
            | Fault::ResetEpoch => Some(ErrorKind::RateLimited),
            Fault::ServerError | Fault::Unavailable => Some(ErrorKind::ServerError),
            Fault::BrokenJson => Some(ErrorKind::UnreadableAnswer),
            // Reported as a missing or a broken response, depending on how much of it arrived.
            Fault::CutOff => None,
            Fault::Unauthorized => Some(ErrorKind::KeyRefused),
            Fault::Forbidden => Some(ErrorKind::KeyLacksScope),
            Fault::NotFound => Some(ErrorKind::OrganizationNotFound),
            Fault::Redirect => Some(ErrorKind::Redirected),
            Fault::Oversized => Some(ErrorKind::OversizedAnswer),
            Fault::CursorRefused => Some(ErrorKind::CursorRefused),
            // Pages that are usable nevertheless.
            Fault::Slow
            | Fault::InvalidUtf8
            | Fault::Duplicates
            | Fault::Malformed
            | Fault::DeeplyNested
            | Fault::CursorStuck => None,
        };
        lab.run_agent_until(|reader| match reader.sources().unwrap().values().next() {
            Some(record) => match expected {
                Some(condition) => record.error.as_ref().is_some_and(|error| error.kind == condition),
                None => record.stored > 0 || record.error.is_some(),
            },
            None => false,
        });
        lab.simulator.as_ref().unwrap().set_faults(Faults::none());
        lab.run_agent_until(|reader| evaluated(reader, 30));
        assert_eq!(stored_ids(&lab.reader().1), ids(30), "{fault:?}");
    }
}

/// Long texts must not hide what comes after them.
#[test]
fn a_page_that_is_too_large_is_fetched_in_smaller_ones() {
    let mut given = entries(60);
    for entry in &mut given {
        entry["attributes"]["message"] = "m".repeat(700_000).into();
    }
    let lab = Lab::with_organization(organization(&given), "");
    lab.run_agent_until(|reader| evaluated(reader, 60));
    assert_eq!(stored_ids(&lab.reader().1), ids(60));
}

#[test]
fn entries_that_are_no_events_are_quarantined_and_the_rest_is_used() {
    let mut given: Vec<Simulated> =
        entries(3).iter().map(|entry| Simulated { processed: base(), json: entry.to_string() }).collect();
    let deep = format!(
        "{{\"id\":\"deep\",\"attributes\":{{\"action\":\"x\",\"y\":{}1{}}}}}",
        "[".repeat(5_000),
        "]".repeat(5_000)
    );
    for bad in ["17", "null", "[]", "\"x\"", "{}", "{\"id\":\"no-action\"}", &deep, "17"] {
        given.insert(1, Simulated { processed: base(), json: bad.to_owned() });
    }
    let options = SimulatorOptions {
        clock: Clock::manual(now()),
        ending: Ending::Null,
        ..SimulatorOptions::new(Scenario::of(given))
    };
    let lab = Lab::with_organization(options, "");
    // Polls overlap: entries that are not events return repeatedly, and are quarantined once.
    lab.run_agent_until(|reader| {
        evaluated(reader, 6) && reader.sources().unwrap().values().next().unwrap().duplicates > 12
    });
    let (_store, reader) = lab.reader();
    let stored: Vec<Event> = reader.scan(ScanFilter::default()).map(Result::unwrap).collect();
    // Every object is an event, with flags for what is unusual about it.
    let flagged: Vec<(String, Vec<&str>)> = stored
        .iter()
        .filter(|event| !event.flags.is_empty())
        .map(|event| (event.id.to_string(), event.flags.iter().map(Flag::name).collect()))
        .collect();
    assert_eq!(flagged[0], ("deep".to_owned(), vec!["too_deep"]));
    assert_eq!(flagged[1], ("no-action".to_owned(), vec!["action"]));
    assert_eq!(flagged[2].1, ["id", "action"]);
    assert_eq!(stored.len(), 6);
    let reasons: Vec<String> = reader.quarantined().map(|entry| entry.unwrap().reason).collect();
    assert_eq!(reasons, ["not a JSON object"; 4]);
}

#[test]
fn two_organizations_are_read_side_by_side() {
    let lab = Lab::with_organization(organization(&entries(10)), "");
    let other =
        Lab::with_organization(SimulatorOptions { org_id: "other".to_owned(), ..organization(&entries(4)) }, "");
    let config = format!(
        "[[source]]\nname = \"other\"\norg_id = \"other\"\nbase_url = \"{}\"\napi_key = {{ file = \"key\" }}\nbackfill = \"180d\"\npoll_interval = \"100ms\"\n",
        other.simulator.as_ref().unwrap().base_url()
    );
    let text = std::fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    lab.write("watchbell.toml", format!("{text}\n{config}"));
    lab.run_agent_until(|reader| evaluated(reader, 14));
    let stored: Vec<(String, u64)> =
        lab.reader().1.sources().unwrap().into_iter().map(|(name, record)| (name.to_string(), record.stored)).collect();
    // The same ids in two organizations are two events each.
    assert_eq!(stored, [("other".to_owned(), 4), ("test".to_owned(), 10)]);
}

/// A page as a real organization returned it (the public copy blanks all values, so ids and the values that the rule
/// reads are filled in): stored byte for byte, with the right alerts.
#[test]
fn a_real_envelope_is_stored_as_it_came() {
    let text = std::fs::read_to_string("tests/data/real-envelope.json").unwrap();
    let mut page: Value = serde_json::from_str(&text).unwrap();
    let entries = page["data"].as_array_mut().unwrap();
    let count = entries.len();
    for (index, entry) in entries.iter_mut().enumerate() {
        entry["id"] = json!(format!("real-{index}"));
        entry["attributes"]["time"] =
            json!(time::from_millis(base().as_millisecond() + i64::try_from(index).unwrap() * 1_000).to_string());
        if index == 3 {
            entry["attributes"]["action"] = json!("user_logged_in_as_user");
            entry["attributes"]["actor"]["email"] = json!("admin@example.com");
        }
    }
    let raws: Vec<String> = entries.iter().map(ToString::to_string).collect();
    let simulated = raws.iter().map(|raw| Simulated { processed: base(), json: raw.clone() }).collect();
    let lab = Lab::with_organization(
        SimulatorOptions { clock: Clock::manual(now()), ..SimulatorOptions::new(Scenario::of(simulated)) },
        "",
    );
    for file in watchbell::rule::SHIPPED {
        lab.write(&format!("rules/{}", file.path), file.text);
    }
    lab.run_agent_until(|reader| evaluated(reader, count as u64));
    let (_store, reader) = lab.reader();
    let stored: Vec<String> = reader.scan(ScanFilter::default()).map(|event| event.unwrap().raw.to_string()).collect();
    assert_eq!(stored, raws);
    let alerts: Vec<(String, String)> = reader
        .alerts(AlertFilter::default())
        .map(Result::unwrap)
        .map(|alert| (alert.title, alert.first_events[0].to_string()))
        .collect();
    assert_eq!(
        alerts,
        [(
            "admin@example.com logged in as noor.haddad@example.com from 203.0.113.4 (Berlin, Germany)".to_owned(),
            "real-3".to_owned()
        )]
    );
}

/// An earlier process logged elsewhere, or its log is gone.
#[test]
fn a_restarted_agent_tells_of_a_source_that_still_fails() {
    let options = SimulatorOptions { faults: Faults::always(Fault::Unauthorized), ..organization(&[]) };
    let lab = Lab::with_organization(options, "");
    for start in ["first", "second", "third"] {
        let mut command = lab.command(&["run"]);
        let log = lab.path(start);
        command.stdout(std::process::Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
        let agent = Running(command.spawn().unwrap());
        let told = || {
            std::fs::read_to_string(&log)
                .unwrap()
                .lines()
                .any(|line| line.contains("WARN") && line.contains("key_refused"))
        };
        assert!(tokio::runtime::Runtime::new().unwrap().block_on(eventually(told)), "{start}");
        drop(agent);
    }
}

/// An entry that claims to be processed years from now: polling goes on from where the log really is.
#[test]
fn a_processing_time_in_the_future_does_not_stop_polling() {
    let clock = Clock::manual(time::after(base(), Duration::from_secs(100)));
    let mut given = entries(20);
    given[3]["attributes"]["processedAt"] = "2099-01-01T00:00:00Z".into();
    given[19]["attributes"]["processedAt"] = time::after(base(), Duration::from_secs(400)).to_string().into();
    // The simulator holds entries back until they are processed: this one claims a time, and is there all the same.
    let simulated = given.iter().enumerate().map(|(index, entry)| Simulated {
        processed: time::after(base(), Duration::from_secs(if index == 19 { 400 } else { 10 })),
        json: entry.to_string(),
    });
    let options = SimulatorOptions {
        clock: clock.clone(),
        ending: Ending::Null,
        page_limit: 8,
        ..SimulatorOptions::new(Scenario::of(simulated.collect()))
    };
    let lab = Lab::with_organization(options, "");
    lab.run_agent_with(&clock, |reader| evaluated(reader, 19));
    lab.run_agent_with(&clock, |reader| {
        clock.set(time::after(base(), Duration::from_secs(500)));
        evaluated(reader, 20)
    });
}

/// This machine's clock is two hours behind: the times of events are not taken for times in the future, rules that
/// remember see them in order, and an alert reports the clock.
#[test]
fn a_clock_that_is_behind_hides_nothing_and_is_reported() {
    let right = Clock::manual(time::after(base(), Duration::from_secs(7_300)));
    let given: Vec<Value> = (0..12).map(|index| entry(&format!("e{index}"), "x", 7_200 + index, "ann")).collect();
    let lab = Lab::with_organization(SimulatorOptions { clock: right, ..organization(&given) }, "");
    let counts = "fn rule(event) { count(event.actor_key(), \"10m\") == 12 }";
    lab.write("rules/counts.rhai", crate::support::rule("team.counts", "", counts));
    let behind = Clock::manual(base());
    let of = |reader: &watchbell::store::Reader, rule: &str| {
        reader.alerts(AlertFilter::default()).map(Result::unwrap).filter(|alert| alert.rule.as_str() == rule).count()
    };
    lab.run_agent_with(&behind, |reader| evaluated(reader, 12) && of(reader, "builtin.clock_wrong") == 1);
    let (_store, reader) = lab.reader();
    assert_eq!(of(&reader, "team.counts"), 1);
    let clock =
        reader.alerts(AlertFilter::default()).map(Result::unwrap).find(|alert| alert.rule.as_str() != "team.counts");
    assert_eq!(clock.unwrap().title, "This machine's clock is 2 hours behind test's server");
    assert!(reader.scan(ScanFilter::default()).map(Result::unwrap).all(|event| event.flags.is_empty()));
}

/// With a clock that is five days ahead, events that arrive are no silence; set right again, silence is still noticed.
#[test]
fn silence_is_judged_right_with_a_wrong_clock() {
    let right = Clock::manual(time::after(base(), Duration::from_secs(100)));
    let options = SimulatorOptions { clock: right.clone(), ..organization(&entries(20)) };
    let lab = Lab::with_organization(options, "drop_off = \"1h\"");
    let own = Clock::manual(time::after(right.now(), Duration::from_secs(5 * 86_400)));
    let of = |reader: &watchbell::store::Reader, rule: &str| {
        reader.alerts(AlertFilter::default()).map(Result::unwrap).filter(|alert| alert.rule.as_str() == rule).count()
    };
    let stage = std::cell::Cell::new(0);
    lab.run_agent_with(&own, |reader| match stage.get() {
        0 if evaluated(reader, 20) && of(reader, "builtin.clock_wrong") == 1 => {
            assert_eq!(of(reader, "builtin.log_drop_off"), 0);
            own.set(right.now());
            stage.set(1);
            false
        }
        1 => {
            let record = reader.sources().unwrap().into_values().next().unwrap();
            // A poll since the clock was set right.
            if record.clock_skew == Some(0) {
                let later = time::after(right.now(), Duration::from_secs(2 * 3_600));
                right.set(later);
                own.set(later);
                stage.set(2);
            }
            false
        }
        stage => stage == 2 && of(reader, "builtin.log_drop_off") == 1,
    });
}

/// A first start with a clock that is ahead reads the log from where it should begin.
#[test]
fn the_first_start_with_a_clock_that_is_ahead_misses_nothing() {
    let right = Clock::manual(time::after(base(), Duration::from_secs(100)));
    let options = SimulatorOptions { clock: right.clone(), ..organization(&entries(20)) };
    let lab = Lab::with_organization(options, "");
    let own = Clock::manual(time::after(right.now(), Duration::from_secs(400 * 86_400)));
    lab.run_agent_with(&own, |reader| evaluated(reader, 20));
    assert_eq!(stored_ids(&lab.reader().1), ids(20));
}
