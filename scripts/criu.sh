#!/usr/bin/env bash
# The conformance programs under CRIU, for comparison: criu.sh [NAME,NAME...]. Writes what came of each to
# stdout as JSON, and shows it meanwhile. Needs a `criu` on PATH, or named by CRIU: see docs/limits.md.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for source in tests/conformance/*.c; do
    program=$(basename "$source" .c)
    [ $# = 0 ] || [[ ",$1," == *",$program,"* ]] || continue
    gcc -O1 -g -D_GNU_SOURCE -pthread -rdynamic -o "$work/$program" "$source"
done
timeout "${CRIU_SECONDS:-1200}" /usr/bin/python3 tests/criu/conformance.py "$work"
