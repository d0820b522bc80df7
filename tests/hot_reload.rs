use std::{collections::BTreeSet, fs, sync::Arc};

use tokio_util::sync::CancellationToken;
use watchbell::{
    agent::{Agent, AgentOptions},
    deliver::{Terminal, TerminalFormat},
    model::time::Clock,
    rule::RuleSet,
    simulator::{Scenario, SimulatorOptions},
    source::Timing,
};

use crate::support::{Lab, eventually, rule};

fn ids(set: &RuleSet) -> Vec<String> {
    set.detections.iter().map(|rule| rule.id().to_string()).collect()
}

/// A change, and the rules that run once it has been loaded.
type Step<'a> = (&'a dyn Fn(&Lab), &'a [&'a str]);

/// Runs an agent, makes one change after another, and waits until each has been loaded.
fn changes(prepare: impl Fn(&Lab), watch: &str, steps: &[Step<'_>]) {
    let mut lab = Lab::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _entered = runtime.enter();
    let options = SimulatorOptions::new(Scenario::of(Vec::new()));
    lab.start_simulator(options.clone());
    lab.write("key", &options.key);
    lab.write_config(&options.org_id, "");
    let config = fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    lab.write("watchbell.toml", format!("{config}\n[rules]\n{watch}\n"));
    prepare(&lab);
    let terminal = Terminal::new(Box::new(std::io::sink()), TerminalFormat::Human);
    let agent_options = AgentOptions { clock: Clock::system(), timing: Timing::default(), terminal, pulse: None };
    let agent = Agent::open(lab.config(), agent_options).unwrap();
    let rules = agent.rules();
    let stop = CancellationToken::new();
    let task = runtime.spawn(agent.run(stop.clone()));
    // The watches exist once the reloader runs, which the first change that is loaded proves.
    for (number, (change, expected)) in steps.iter().enumerate() {
        change(&lab);
        let expected: BTreeSet<String> = expected.iter().map(|id| (*id).to_owned()).collect();
        let taken_up = runtime.block_on(eventually(|| {
            let set: Arc<RuleSet> = rules.borrow().clone();
            ids(&set).into_iter().collect::<BTreeSet<_>>() == expected
        }));
        assert!(taken_up, "step {number}: {:?} instead of {expected:?}", ids(&rules.borrow()));
    }
    stop.cancel();
    runtime.block_on(task).unwrap().unwrap();
}

fn text(id: &str) -> String {
    rule(id, "", "fn rule(event) { true }")
}

#[test]
fn every_way_to_change_a_file_is_taken_up() {
    for watch in ["watch = \"auto\"", "watch = \"poll\""] {
        changes(
            |lab| lab.write("rules/one.rhai", text("a.one")),
            watch,
            &[
                (&|lab| lab.write("rules/deep/er/two.rhai", text("a.two")), &["a.one", "a.two"]),
                // Written in place.
                (&|lab| lab.write("rules/one.rhai", text("a.uno")), &["a.uno", "a.two"]),
                // Written the way editors do: a new file is renamed to the old name.
                (
                    &|lab| {
                        lab.write("rules/.one.rhai.swp", text("a.eins"));
                        fs::rename(lab.path("rules/.one.rhai.swp"), lab.path("rules/one.rhai")).unwrap();
                    },
                    &["a.eins", "a.two"],
                ),
                // Broken: the last good version keeps running.
                (
                    &|lab| {
                        lab.write("rules/one.rhai", "const RULE = #{");
                        lab.write("rules/three.rhai", text("a.three"));
                    },
                    &["a.eins", "a.two", "a.three"],
                ),
                (
                    &|lab| fs::rename(lab.path("rules/three.rhai"), lab.path("rules/renamed.rhai")).unwrap(),
                    &["a.eins", "a.two", "a.three"],
                ),
                (&|lab| fs::remove_file(lab.path("rules/renamed.rhai")).unwrap(), &["a.eins", "a.two"]),
                (&|lab| fs::remove_dir_all(lab.path("rules/deep")).unwrap(), &["a.eins"]),
                (&|lab| lab.write("rules/one.rhai", text("a.well")), &["a.well"]),
            ],
        );
    }
}

/// The way Kubernetes mounts a ConfigMap: files are links into `..data`, which is a link that is swapped.
#[test]
fn swapped_symbolic_links_are_taken_up() {
    use std::os::unix::fs::symlink;
    changes(
        |lab| {
            lab.write("rules/..2026_1/a.rhai", text("a.first"));
            lab.write("rules/..2026_2/a.rhai", text("a.second"));
            symlink("..2026_1", lab.path("rules/..data")).unwrap();
            symlink("..data/a.rhai", lab.path("rules/a.rhai")).unwrap();
        },
        "",
        &[
            (&|_| {}, &["a.first"]),
            (
                &|lab| {
                    symlink("..2026_2", lab.path("rules/..data_tmp")).unwrap();
                    fs::rename(lab.path("rules/..data_tmp"), lab.path("rules/..data")).unwrap();
                },
                &["a.second"],
            ),
        ],
    );
    // The directory itself is a link.
    changes(
        |lab| {
            fs::remove_dir(lab.path("rules")).unwrap();
            lab.write("v1/a.rhai", text("a.first"));
            lab.write("v2/a.rhai", text("a.second"));
            symlink("v1", lab.path("rules")).unwrap();
        },
        "",
        &[
            (&|_| {}, &["a.first"]),
            (
                &|lab| {
                    symlink("v2", lab.path("next")).unwrap();
                    fs::rename(lab.path("next"), lab.path("rules")).unwrap();
                },
                &["a.second"],
            ),
            (&|lab| lab.write("v2/a.rhai", text("a.third")), &["a.third"]),
        ],
    );
}
