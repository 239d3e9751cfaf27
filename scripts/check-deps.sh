#!/usr/bin/env bash
# Dependencies point only down. The table between the "edges" marks of ARCHITECTURE.md says what
# each crate may depend on; this compares it with what cargo says. Tests may use more
# (dev-dependencies), products may not.
set -euo pipefail
cd "$(dirname "$0")/.."

allowed=$(sed -n '/<!-- edges -->/,/<!-- \/edges -->/p' ARCHITECTURE.md |
    sed -n 's/^| `\([a-z-]*\)` |\([^|]*\)|.*/\1\2/p' | tr -d '`,')
actual=$(cargo metadata --format-version 1 --no-deps --offline 2>/dev/null ||
    cargo metadata --format-version 1 --no-deps)

# The first column of the code map.
mapped=$(sed -n '/^## Code map/,/^### /s/^| \[`\([a-z-]*\)`\].*/\1/p' ARCHITECTURE.md)

ALLOWED="$allowed" MAPPED="$mapped" ACTUAL="$actual" python3 - <<'PY'
import json, os, sys

allowed = {}
for line in os.environ["ALLOWED"].splitlines():
    name, *deps = line.split()
    allowed[name] = set(deps)

used = {name: set() for name in allowed}
failed = False
def complain(text):
    global failed
    failed = True
    print("check-deps:", text, file=sys.stderr)

packages = json.loads(os.environ["ACTUAL"])["packages"]
names = {p["name"] for p in packages}
edges = 0
order = list(allowed)
for package in sorted(packages, key=lambda p: p["name"]):
    name = package["name"]
    if name not in allowed:
        complain(f"{name} is not in the table of ARCHITECTURE.md")
        continue
    for dep in package["dependencies"]:
        if dep["kind"] == "dev" or dep["name"] not in names:
            continue
        edges += 1
        used[name].add(dep["name"])
        if dep["name"] not in allowed[name]:
            complain(f"{name} depends on {dep['name']}, which the table does not allow")
# The table itself must point only down: a row may name only rows above it.
for at, name in enumerate(order):
    for dep in sorted(allowed[name]):
        if dep not in order[:at]:
            complain(f"the table lets {name} depend on {dep}, which is not above it")
    for dep in sorted(allowed[name] - used[name]):
        complain(f"the table lets {name} depend on {dep}, which it does not")
mapped = set(os.environ["MAPPED"].split())
for name in sorted(names - mapped - {"mitosis-fuzz"}):
    complain(f"the code map does not name {name}")
for name in sorted(mapped - names - {"fuzz"}):
    complain(f"the code map names {name}, which is not in the workspace")
for name in sorted(set(order) - names):
    complain(f"{name} is in the table, but not in the workspace")
if failed:
    sys.exit(1)
print(f"check-deps: {edges} edges between {len(names)} crates, all in the table")
PY
