#!/usr/bin/env python3
"""Writes the tables of a Markdown file from committed raw data.

Usage: bench/table.py FILE.md...

Everything between `<!-- results: NAME -->` and `<!-- end -->` is replaced by the table of
bench/results/NAME.json, so that no number in the text was typed by hand.
"""
import datetime
import json
import pathlib
import re
import sys

RESULTS = pathlib.Path(__file__).parent / "results"


def short(value):
    if value is None:
        return "-"
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3
    return f"{value:.{digits}f}"


def verdict(figure):
    target, met = figure["target"], figure["met"]
    if target is None:
        return ""
    ((kind, limit),) = target.items()
    words = {"most": f"<= {limit:g} {figure['samples']['unit']}",
             "ratio-most": f"<= {limit:g} x", "ratio-least": f">= {limit:g} x"}
    outcome = {True: "kept", False: "**missed**", None: "not judged"}[met]
    return f"{words[kind]}: {outcome}"


def row(figure, paper):
    ratio = f"{short(figure['ratio'])} x {figure['peer']}" if figure["peer"] else ""
    values = [short(figure[key]) for key in ("min", "median", "max")]
    samples = figure["samples"]
    cells = [figure["name"], *values, samples["unit"], str(len(samples["values"])), ratio,
             verdict(figure)]
    if paper:
        published = figure.get("paper")
        cells.append("" if published is None else short(published))
    return "| " + " | ".join(cells) + " |"


def table(name):
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return "(no run has been committed yet)"
    report = json.loads(path.read_text())
    machine = report["machine"]
    when = datetime.datetime.fromtimestamp(machine["unix_time"], datetime.timezone.utc)
    lines = [f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, "
             f"{machine['memory_mib']} MiB, {when:%Y-%m-%d %H:%M} UTC; raw data: "
             f"`bench/results/{name}.json`"
             + ("; **a quick run, which shows the shape and is not to be quoted**"
                if report["quick"] else "")]
    for section in report["sections"]:
        paper = any(figure.get("paper") is not None for figure in section["figures"])
        lines += ["", "| what | min | median | max | unit | n | beside its peer | promise |"
                  + (" published (OSDI'23) |" if paper else ""),
                  "|---|---:|---:|---:|---|---:|---|---|" + ("---:|" if paper else "")]
        lines += [row(figure, paper) for figure in section["figures"]]
        lines += [""] + [f"- {note}" for note in section["notes"]] if section["notes"] else []
    return "\n".join(lines)


def main():
    for path in map(pathlib.Path, sys.argv[1:]):
        text = path.read_text()
        fill = lambda match: f"{match[1]}\n{table(match[2])}\n{match[3]}"
        text = re.sub(r"(<!-- results: (\S+) -->).*?(<!-- end -->)", fill, text, flags=re.S)
        path.write_text(text)


main()
