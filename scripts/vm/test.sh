#!/usr/bin/env bash
# The suite between two kernels, in two emulated guests: test.sh [quick|groups|PROGRAM,PROGRAM...]. Debian's
# own kernel runs in one and another of Debian's in the other, which has cgroups of version 2 alone and a
# clock seven hours ahead. See docs/kernels.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
names=${1:-all}
# Those for which it matters which kernel it is, or which CPU.
some=clocks,cpu_timers,eventfd,handlers,limits,posix_timers,process_values,rseq,sealed
[ "$names" != quick ] || some=$some,socketpair_stream,vectors,waits
[ "$names" = quick ] || some=$names
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
    [ "$names" = all ] || [[ ",$some," == *",$program,"* ]] || continue
    gcc -O1 -g -D_GNU_SOURCE -pthread -rdynamic -o "$work/programs/$program" "$source"
done
agent="/usr/bin/python3 tests/vm/agent.py"
echo "$agent 10.77.0.1" >"$work/a.sh"
status=0
# guests WHAT SECONDS NAME GUEST...: runs guests; the log NAME of one of them says what came of it.
guests() {
    local what=$1 seconds=$2 log=$3
    shift 3
    rm -f "$work/failed"
    scripts/vm/guests.sh "$work" "$seconds" "$@" && return
    status=1
    failed+=("$what: $(grep -ahs '^guest\|^suite: FAILED' "$work/failed" "$work/$log.log" | paste -sd ';' || true)")
}
# What has failed is said once more at the end: what a machine shows of a long log is its end.
failed=()
end() {
    [ "$status" = 0 ] || printf 'vm: FAILED: %s\n' "${failed[@]}"
    exit "$status"
}
# suite SCRIPT ARGUMENT GUEST GUEST: runs it on the second guest.
suite() {
    echo "$agent 10.77.0.2 & /usr/bin/python3 tests/vm/$1 $mitosis $2 10.77.0.1 10.77.0.2" \
        >"$work/b.sh"
    guests "$1" "${MITOSIS_VM_SECONDS:-1500}" b "$3" "$4"
    grep -aE '^(kernels|http.server|program|suite|lesser|better|without|.* programs right)' \
        "$work/b.log" || true
    cp "$work/b.log" "$LAB/${1%.py}.log"
}
# Control groups of version 2 alone, and of version 1; one guest after the other, for either needs no other.
groups() {
    echo "/usr/bin/python3 tests/vm/groups.py $mitosis $3" >"$work/$1.sh"
    guests "groups $3" "${MITOSIS_VM_SECONDS:-300}" "$1" "$1:$2:cgroups=$3"
    grep -aE '^(groups|suite)' "$work/$1.log" || true
    cp "$work/$1.log" "$LAB/groups-$3.log"
}
if [ "$names" = all ] || [ "$names" = quick ] || [ "$names" = groups ]; then
    groups c other v2
    groups d debian v1
fi
[ "$names" != groups ] || end
if [ "$names" = all ] || [ "$names" = quick ]; then
    suite cpus.py "$work/programs/vectors" a:debian b:debian:cpu=max,-avx2,-bmi2,-pku
fi
suite suite.py "$work/programs" \
    a:debian:tsc=reliable:cgroups=v1 b:other:tsc=reliable:hours=7
end
