#!/bin/bash
# Takes all raw data anew and rewrites the tables made from it. Root; a few minutes.
#
# Usage: bench/run.sh [PATH-OF-MITOSIS]; a quiet machine, or the figures are of its other work.
set -euo pipefail
cd "$(dirname "$0")/.."
mitosis=${1:-${CARGO_TARGET_DIR:-target}/release/mitosis}
failed=0
for name in floors mechanisms shadow core copies scale; do
    # Figures that could be taken are kept even if others could not.
    "$mitosis" bench "$name" -o json --plot bench/results >"bench/results/$name.json.new" || failed=1
    if [ -s "bench/results/$name.json.new" ]; then
        mv "bench/results/$name.json.new" "bench/results/$name.json"
    else
        rm "bench/results/$name.json.new"
    fi
done
bench/table.py BENCHMARKS.md docs/paging.md
exit $failed
