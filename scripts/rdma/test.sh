#!/usr/bin/env bash
# The RDMA suite in emulated guests: test.sh [1|2|3] [bench|transports|placement]. Two guests unless told
# otherwise; with one, both nodes share its device. `bench` also measures and writes bench/results/rdma.json,
# `transports` does that alone; `placement` only compares where pages are registered, into bench/results/rdma-placement.json.
#
# MITOSIS_RDMA_TEST names the tests that are to be run, by a part of their name.
#
# With MITOSIS_RDMA_DEVICE set the suite runs on this machine's own device instead, at the address
# MITOSIS_RDMA_ADDRESS (see docs/rdma.md).
set -euo pipefail
cd "$(dirname "$0")/../.."
guests=${1:-2}
bench=${2:-no}
seconds=560
[ "$bench" != bench ] || seconds=1200
target=${CARGO_TARGET_DIR:-target}
mitosis=$(realpath "${MITOSIS:-$target/release/mitosis}")
[ -x "$mitosis" ] || { echo "rdma: build $mitosis first (make build)" >&2; exit 1; }
LAB=${MITOSIS_VM_LAB:-target/vm-lab}
mkdir -p "$LAB"
work=$(mktemp -d "$(realpath "$LAB")/run.XXXXXX")
trap 'rm -rf "$work"' EXIT
gcc -O2 -o "$work/pattern" tests/rdma/pattern.c
cargo build -q -p mitosis-rdma-sys --example keys
cargo build -q -p mitosis-transport --example pairs
keys=$(realpath "$target/debug/examples/keys")
pairs=$(realpath "$target/debug/examples/pairs")
suite="env MITOSIS_RDMA_TEST=${MITOSIS_RDMA_TEST:-} /usr/bin/python3 tests/rdma/suite.py $mitosis $work/pattern $keys $pairs $bench"

if [ -n "${MITOSIS_RDMA_DEVICE:-}" ]; then
    address=${MITOSIS_RDMA_ADDRESS:?the address of the device, for the nodes to listen at}
    /usr/bin/python3 tests/vm/agent.py "$address" &
    agent=$!
    trap 'kill $agent 2>/dev/null || true; rm -rf "$work"' EXIT
    $suite "$address"
    exit
fi

scripts/vm/setup.sh ibverbs-providers ibverbs-utils libibverbs-dev
scripts/vm/kernel.sh rdma linux-image-amd64 ib_uverbs rdma_ucm rdma_rxe
names=(a b c)
names=("${names[@]:0:$guests}")
addresses=$(seq -s ' ' -f '10.77.0.%g' 1 "$guests")
number=0
for name in "${names[@]}"; do
    number=$((number + 1))
    agent="/usr/bin/python3 tests/vm/agent.py 10.77.0.$number"
    if [ "$number" = "$guests" ]; then
        echo "$agent & $suite $addresses"
    else
        echo "$agent"
    fi >"$work/$name.sh"
done
status=0
scripts/vm/guests.sh "$work" "${MITOSIS_VM_SECONDS:-$seconds}" "${names[@]/%/:rdma}" || status=$?
last=${names[-1]}
grep -aE '^(auto chose|with daemon|16 MiB|set aside|reserved|keys|unpinned|pinned again|in the shadow|children of|slow owner|pages of|descriptor|placement|pairs|shared|revoked|grandchild|forbidden|suite)' "$work/$last.log" || true
if [ "$status" = 0 ] && { [ "$bench" = bench ] || [ "$bench" = transports ]; }; then
    python3 scripts/vm/results.py "$work/$last.log" transports >bench/results/rdma.json
    cat bench/results/rdma.json
fi
if [ "$status" = 0 ] && [ "$bench" = placement ]; then
    python3 scripts/vm/results.py "$work/$last.log" placement >bench/results/rdma-placement.json
    cat bench/results/rdma-placement.json
fi
exit "$status"
