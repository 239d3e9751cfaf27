#!/usr/bin/env bash
# The suite between two kernels, in two emulated guests: test.sh [quick|PROGRAM,PROGRAM...]. Debian's own
# kernel runs in one and another of Debian's in the other, which has cgroups of version 2 alone and a
# clock seven hours ahead. See docs/kernels.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
names=${1:-all}
# Those for which it matters which kernel it is, or which CPU.
[ "$names" != quick ] ||
    names=clocks,cpu_timers,eventfd,handlers,limits,posix_timers,process_values,rseq,sealed,socketpair_stream,vectors,waits
target=${CARGO_TARGET_DIR:-target}
mitosis=$(realpath "${MITOSIS:-$target/release/mitosis}")
[ -x "$mitosis" ] || { echo "vm: build $mitosis first (make build)" >&2; exit 1; }
scripts/vm/setup.sh
scripts/vm/kernel.sh debian linux-image-amd64 unix_diag
scripts/vm/kernel.sh other "${MITOSIS_VM_KERNEL:-linux-image-6.12-amd64}" unix_diag

LAB=${MITOSIS_VM_LAB:-target/vm-lab}
work=$(mktemp -d "$(realpath "$LAB")/run.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/programs"
for source in tests/conformance/*.c; do
    program=$(basename "$source" .c)
    [ "$names" = all ] || [[ ",$names," == *",$program,"* ]] || continue
    gcc -O1 -g -D_GNU_SOURCE -pthread -o "$work/programs/$program" "$source"
done
agent="/usr/bin/python3 tests/vm/agent.py"
echo "$agent 10.77.0.1" >"$work/a.sh"
echo "$agent 10.77.0.2 & /usr/bin/python3 tests/vm/suite.py $mitosis $work/programs \
    10.77.0.1 10.77.0.2" >"$work/b.sh"
status=0
scripts/vm/guests.sh "$work" "${MITOSIS_VM_SECONDS:-900}" \
    a:debian:tsc=reliable:cgroups=v1 b:other:tsc=reliable:hours=7 || status=$?
grep -aE '^(kernels|http.server|program|suite|.* programs right)' "$work/b.log" || true
exit "$status"
