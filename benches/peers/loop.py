"""A hundred detection rules as in a home-made script: functions over events read with json.loads.

The same rules as `written` in examples/flood.rs. Usage: loop.py EVENTS.jsonl; prints events per second and matches.
"""

import json
import sys
import time


def rule(index):
    if index % 4 == 0:
        action = f"jira_action_{index % 55}"
        return lambda event: event["attributes"]["action"] == action and event["attributes"]["actor"][
            "email"
        ].endswith("7@example.com")
    if index % 4 == 1:
        email = f"person{index}@example.com"
        return (
            lambda event: event["attributes"]["actor"]["email"] == email
            and event["attributes"]["action"] != "user_login"
        )
    if index % 4 == 2:
        ids = [f"712020:{index * 7 + more:08}" for more in range(6)]
        return (
            lambda event: event["attributes"]["context"][0]["id"] in ids
            and event["attributes"]["location"]["countryName"] == "Germany"
        )
    ip = f"203.0.113.{index}"
    return lambda event: event["attributes"]["location"]["ip"] == ip and event["attributes"][
        "action"
    ].startswith("jira_action_1")


def main():
    rules = [rule(index) for index in range(100)]
    events = matches = 0
    begun = time.perf_counter()
    with open(sys.argv[1], encoding="utf-8") as lines:
        for line in lines:
            event = json.loads(line)
            events += 1
            for matching in rules:
                try:
                    matches += matching(event)
                except (KeyError, IndexError, TypeError):
                    pass
    print(f"{events / (time.perf_counter() - begun):.0f} events/s, {matches} matches")


main()
