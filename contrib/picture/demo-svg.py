#!/usr/bin/env python3
"""Draw docs/assets/demo.svg: the real output of `watchbell demo`, as a terminal shows it.

    cargo build --release
    python3 contrib/picture/demo-svg.py [--binary target/release/watchbell] [--output docs/assets/demo.svg]

The demo runs in a pseudo-terminal with a fixed seed and duration, so the alerts are the same each time; only their
times differ. The picture shows the alerts of the rules in SHOWN as they were printed, and says how many it leaves out.
It needs Python 3.9 or newer on Linux or macOS, and only its standard library.
"""

import argparse
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from xml.sax.saxutils import escape

DEMO = ["demo", "--seed", "7", "--duration", "20s"]
SHOWN = ["atlassian.identity.account_takeover"]
COLUMNS = 104
MOST_LINES = 30

# A window that is dark on any page, with a border that separates it from a dark one.
BACKGROUND, BAR, BORDER, TEXT, DIM = "#0d1117", "#161b22", "#484f58", "#e6edf3", "#9198a1"
# The eight colours of a terminal: black, red, green, yellow, blue, magenta, cyan, white.
COLOURS = ["#484f58", "#ff7b72", "#56d364", "#e3b341", "#79c0ff", "#d2a8ff", "#56d4dd", "#ffffff"]
# As a background, red must leave white text legible.
BACKGROUNDS = ["#484f58", "#b62324", "#196c2e", "#845306", "#0d419d", "#6e40c9", "#1b7c83", "#b1bac4"]

FONT = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"
FONT_SIZE, CELL, LINE, PADDING, BAR_HEIGHT = 14, 8.5, 20, 16, 36
SGR = re.compile(r"\x1b\[([0-9;]*)m")
# Sequences that move the cursor or set a title.
OTHER_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-ln-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
NOT_XML = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def run(binary):
    """Run the demo. Returns its standard output as a terminal receives it, and its standard error."""
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "WATCHBELL_CONFIG")}
    environment.update(TERM="xterm-256color", COLUMNS=str(COLUMNS))
    # In a new session the program cannot ask the terminal that this script runs in for its width.
    with tempfile.TemporaryFile() as notes:
        child = subprocess.Popen([binary, *DEMO], stdin=subprocess.DEVNULL, stdout=side, stderr=notes, env=environment,
                                 start_new_session=True)
        os.close(side)
        written = bytearray()
        while True:
            try:
                part = os.read(terminal, 65_536)
            except OSError:  # Linux: the other side is closed
                break
            if not part:
                break
            written += part
        os.close(terminal)
        code = child.wait()
        notes.seek(0)
        said = notes.read().decode("utf-8", "replace")
    if code != 0:
        sys.exit(f"{binary} {' '.join(DEMO)} exited with {code}:\n{said}")
    return written.decode("utf-8", "replace").replace("\r\n", "\n"), said


def alerts(output):
    """Split the output into alerts: blocks of lines that start with a bullet and end with an empty line."""
    blocks = []
    for line in OTHER_ESCAPES.sub("", output).split("\n"):
        if SGR.sub("", line).startswith("● "):
            blocks.append([])
        if blocks:
            blocks[-1].append(line)
    for block in blocks:
        while block and not SGR.sub("", block[-1]).strip():
            block.pop()
    return blocks


def rule(block):
    """The id of the rule that raised an alert."""
    for line in block:
        if found := re.match(r"  rule      (\S+)", SGR.sub("", line)):
            return found.group(1)
    return ""


def runs(lines):
    """The runs of equal style of each line: (column, text, style). A style may continue on the next line."""
    style = {}
    for line in lines:
        column, found = 0, []
        for number, part in enumerate(SGR.split(line)):
            if number % 2:
                style = styled(style, part)
                continue
            part = NOT_XML.sub("\ufffd", part)
            if part:
                found.append((column, part, dict(style)))
            column += len(part)
        yield found


def styled(style, codes):
    """The style after an SGR sequence."""
    for code in (int(code or 0) for code in codes.split(";")):
        if code == 0:
            style = {}
        elif code == 1:
            style = {**style, "bold": True}
        elif code == 2:
            style = {**style, "dim": True}
        elif code == 22:
            style = {key: value for key, value in style.items() if key not in ("bold", "dim")}
        elif 30 <= code <= 37:
            style = {**style, "colour": COLOURS[code - 30]}
        elif 90 <= code <= 97:
            style = {**style, "colour": COLOURS[code - 90]}
        elif 40 <= code <= 47:
            style = {**style, "background": BACKGROUNDS[code - 40]}
    return style


def drawn(lines):
    """The lines as an SVG."""
    width = COLUMNS * CELL + 2 * PADDING
    height = BAR_HEIGHT + len(lines) * LINE + 2 * PADDING
    title = "watchbell " + " ".join(DEMO)
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}"'
        f' viewBox="0 0 {width:g} {height:g}"'
        f' font-family="{FONT}" font-size="{FONT_SIZE}" fill="{TEXT}" xml:space="preserve" role="img">',
        f"<title>{escape(title)}</title>",
        "<!-- Made by contrib/picture/demo-svg.py from the output of the program. -->",
        f'<rect x="0.5" y="0.5" width="{width - 1:g}" height="{height - 1:g}" rx="8" fill="{BACKGROUND}"'
        f' stroke="{BORDER}"/>',
        f'<path d="M1 {BAR_HEIGHT}V8.5A7.5 7.5 0 0 1 8.5 1H{width - 8.5:g}'
        f'A7.5 7.5 0 0 1 {width - 1:g} 8.5V{BAR_HEIGHT}Z"'
        f' fill="{BAR}"/>',
    ]
    for number, colour in enumerate(("#ff5f57", "#febc2e", "#28c840")):
        svg.append(f'<circle cx="{20 + 20 * number}" cy="{BAR_HEIGHT / 2:g}" r="6" fill="{colour}"/>')
    middle = f'x="{width / 2:g}" y="{BAR_HEIGHT / 2 + 5:g}"'
    svg.append(f'<text {middle} text-anchor="middle" fill="{DIM}">{escape(title)}</text>')
    for number, line in enumerate(runs(lines)):
        top = BAR_HEIGHT + PADDING + number * LINE
        for column, text, style in line:
            if background := style.get("background"):
                svg.append(
                    f'<rect x="{PADDING + column * CELL:g}" y="{top}" width="{len(text) * CELL:g}" height="{LINE}"'
                    f' fill="{background}"/>'
                )
            shown = text.strip(" ")
            if not shown:
                continue
            # The length holds each run to its columns, whichever font the reader has.
            left = PADDING + (column + len(text) - len(text.lstrip(" "))) * CELL
            attributes = f'x="{left:g}" y="{top + 15}" textLength="{len(shown) * CELL:g}"'
            attributes += ' lengthAdjust="spacingAndGlyphs"'
            if colour := style.get("colour", DIM if style.get("dim") else None):
                attributes += f' fill="{colour}"'
            if style.get("bold"):
                attributes += ' font-weight="700"'
            svg.append(f"<text {attributes}>{escape(shown)}</text>")
    svg.append("</svg>")
    return "\n".join(svg) + "\n"


def main():
    parser = argparse.ArgumentParser(description="Draw the output of `watchbell demo` as an SVG.")
    parser.add_argument("--binary", default="target/release/watchbell")
    parser.add_argument("--output", default="docs/assets/demo.svg")
    arguments = parser.parse_args()

    output, said = run(arguments.binary)
    found = alerts(output)
    chosen = [next((block for block in found if rule(block) == wanted), None) for wanted in SHOWN]
    if None in chosen:
        sys.exit(f"the demo raised no alert of {SHOWN[chosen.index(None)]}")

    def dim(text):
        return f"\x1b[2m{text}\x1b[0m"

    lines, before = [], 0
    for block in chosen:
        skipped = found.index(block) - before
        if skipped:
            lines += [dim(f"  … {skipped} alerts, not shown here"), ""]
        lines += [*block, ""]
        before = found.index(block) + 1
    if len(found) > before:
        lines += [dim(f"  … {len(found) - before} more alerts, not shown here"), ""]
    lines += [line for line in said.splitlines() if "events fetched and evaluated" in line]
    if len(lines) > MOST_LINES:
        sys.exit(f"{len(lines)} lines are more than {MOST_LINES}: show fewer alerts")
    with open(arguments.output, "w", encoding="utf-8") as file:
        file.write(drawn(lines))
    print(f"{arguments.output}: {len(lines)} lines, {len(chosen)} of {len(found)} alerts")


if __name__ == "__main__":
    main()
