//! `docs/control-api.md` describes the requests that the agent answers, as it answers them.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use serde_json::Value;

use crate::{
    operate::{lab, recent, start},
    support::Lab,
};

/// Posts a body; the status and the body of the answer.
fn post(lab: &Lab, path: &str, headers: &str, body: &str) -> (u16, String, String) {
    let mut stream = UnixStream::connect(lab.path("data/agent.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.0\r\nhost: agent\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_owned(), body.to_owned())
}

/// The text of a table's cell between the first backticks.
fn quoted(cell: &str) -> &str {
    cell.split('`').nth(1).unwrap_or_else(|| panic!("nothing quoted in `{cell}`"))
}

#[test]
fn the_documented_requests_are_those_that_there_are() {
    let text = fs::read_to_string("docs/control-api.md").unwrap();
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split(" | ").collect())
        .collect();
    let documented: BTreeSet<&str> = rows.iter().map(|row| quoted(row[0])).collect();
    assert_eq!(documented, watchbell::api::request::NAMES.iter().copied().collect());
    assert!(text.contains(&format!("POST /v{}/NAME", watchbell::api::API_VERSION)));

    let tomorrow = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
    let lab = lab(&recent(3));
    let agent = start(&lab, 3);
    let alert = {
        let (_, _, body) = post(&lab, "/v1/alerts", "", r#"{"limit":1}"#);
        let line: Value = serde_json::from_str(body.lines().next().unwrap()).unwrap();
        line["item"]["id"].as_str().unwrap().to_owned()
    };
    for row in rows {
        let name = quoted(row[0]);
        let body = quoted(row[1]).replace("ALERT-ID", &alert).replace("1be3d82ed5", &alert[..10]);
        // Silences end within a year.
        let body = body.replace("2030-01-01T00:00:00Z", &tomorrow.to_string());
        let (status, head, answer) = post(&lab, &format!("/v1/{name}"), "", &body);
        assert_eq!(status, 200, "{name}: {answer}");
        assert!(head.contains("watchbell-api: 1") && head.contains("watchbell-version: "), "{head}");
        let lines: Vec<Value> = answer
            .lines()
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{name}: {error}: {line}")))
            .collect();
        let (last, items) = lines.split_last().unwrap();
        assert_eq!(last["end"].as_u64(), Some(items.len() as u64), "{name}: {last}");
        // The fields that the last column names, outside of parentheses.
        let mut column = row[2].to_owned();
        while let (Some(open), Some(close)) = (column.find('('), column.find(')')) {
            column.replace_range(open..=close, "");
        }
        for item in items {
            for field in column.split('`').skip(1).step_by(2).filter(|field| !field.starts_with("watchbell ")) {
                assert!(item["item"].get(field).is_some(), "{name}: no `{field}` in {item}");
            }
        }
    }
    drop(agent);
}

#[test]
fn another_version_of_the_api_is_told_apart() {
    let lab = lab(&recent(1));
    let agent = start(&lab, 1);
    assert_eq!(post(&lab, "/v1/status", "watchbell-api: 1\r\n", "{}").0, 200);
    let (status, head, body) = post(&lab, "/v1/status", "watchbell-api: 2\r\n", "{}");
    assert_eq!(status, 400);
    insta::assert_snapshot!(body, @"the agent has version 1 of the control API, not 2");
    assert!(head.contains("watchbell-api: 1"));
    let (status, _, body) = post(&lab, "/v2/status", "", "{}");
    assert_eq!(status, 404);
    assert!(body.starts_with("unknown request `/v2/status`: post to /v1/NAME with one of status, events, "), "{body}");
    drop(agent);
}

/// An agent that was built before the API had versions, or with another one.
#[test]
fn a_client_says_that_the_agent_is_of_another_version() {
    let lab = Lab::new();
    lab.write("watchbell.toml", "data_dir = \"data\"\n");
    fs::create_dir_all(lab.path("data")).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(lab.path("data/agent.sock")).unwrap();
    let answers = ["", "watchbell-api: 7\r\nwatchbell-version: 9.1.0\r\n"];
    let agent = std::thread::spawn(move || {
        for headers in answers {
            // The first connection only sees whether somebody listens.
            drop(listener.accept().unwrap());
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).unwrap() > 0);
            let answer = format!("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n{headers}\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    for agent in ["an older version", "9.1.0"] {
        let finished = lab.watchbell(&["alerts", "list"]);
        assert_eq!(finished.code, Some(3));
        let expected = format!("the running agent is {agent}, this program is {}", env!("CARGO_PKG_VERSION"));
        assert!(finished.stderr.contains(&expected), "{}", finished.show());
    }
    agent.join().unwrap();
}
