#!/usr/bin/env bash
# Measures the speed of replays as a user sees it: whole processes over a store on disk, warm cache, best of three runs.
#
#   benches/replay.sh [DIRECTORY [EVENTS [peers]]]
#
# Creates the store and the rules in DIRECTORY if they do not exist. With `peers`, plain Python and the rsigma engine
# run the same hundred rules over a file of the first 100,000 events (this downloads and builds rsigma).
set -euo pipefail
cd "$(dirname "$0")/.."
directory=${1:-target/flood}
events=${2:-1000000}

cargo build --release --quiet --bin watchbell --example flood --example bare_rhai
[ -e "$directory/data/store" ] || cargo run --release --quiet --example flood -- "$directory" "$events"
[ -e "$directory/small.jsonl" ] || head -n 100000 "$directory/events.jsonl" > "$directory/small.jsonl"
watchbell=$PWD/target/release/watchbell

# Prints the seconds of the fastest of three runs, and the highest memory use of any.
best() {
    local fastest='' memory=0
    for _ in 1 2 3; do
        local line
        line=$( { /usr/bin/time -o /dev/stdout -f '%e %M' "$@" 2> /dev/null || true; } | tail -n 1)
        local seconds=${line% *} kilobytes=${line#* }
        if [ -z "$fastest" ] || awk "BEGIN { exit !($seconds < $fastest) }"; then fastest=$seconds; fi
        if [ "$kilobytes" -gt "$memory" ]; then memory=$kilobytes; fi
    done
    echo "$fastest $memory"
}

show() {
    local name=$1 count=$2 found=$3
    awk -v name="$name" -v count="$count" -v found="$found" 'BEGIN {
        split(found, part, " ")
        printf "%-44s %7.2f s %10.0f events/s %6.0f MB\n", name, part[1], count / part[1], part[2] / 1024
    }'
}

cd "$directory"
for rules in rare declared written; do
    for threads in 1 2; do
        found=$(best "$watchbell" replay --rules "$rules" --threads "$threads" --show-alerts 0)
        show "$rules, threads: $threads" "$events" "$found"
    done
done
for rules in opaque stateful; do
    for threads in 1 2; do
        found=$(best "$watchbell" replay --rules "$rules" --events small.jsonl --threads "$threads" --show-alerts 0)
        show "$rules, 100,000 events of a file, threads: $threads" 100000 "$found"
    done
done
printf '%-44s ' "opaque, bare Rhai calls, one thread"; "$OLDPWD/target/release/examples/bare_rhai" opaque small.jsonl
if [ "${3:-}" = peers ]; then
    printf '%-44s ' "written, plain Python"; python3 "$OLDPWD/benches/peers/loop.py" small.jsonl
    cargo build --release --quiet --manifest-path "$OLDPWD/benches/peers/sigma/Cargo.toml" --target-dir "$OLDPWD/target/peers"
    printf '%-44s ' "written, rsigma"; "$OLDPWD/target/peers/release/sigma-peer" small.jsonl
fi
