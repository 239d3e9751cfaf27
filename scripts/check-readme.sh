#!/usr/bin/env bash
# Pastes the README's commands ("By hand") into a shell, in order, in namespaces of their own, and
# fails at the first that fails. Usage: check-readme.sh BINARY
set -euo pipefail
cd "$(dirname "$0")/.."

bin=$(realpath "${1:?usage: check-readme.sh BINARY}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Each block of the section, the build aside. Where a reader would pause, the script waits for what
# the reader would see.
{
    echo 'set -euo pipefail'
    echo 'trap '\''echo "check-readme: failed: $BASH_COMMAND" >&2'\'' ERR'
    awk '
        /^## / { inside = ($0 == "## By hand") }
        !inside { next }
        /^```sh$/ { block = 1; next }
        /^```$/ && block { block = 0; if (daemons) print "wait_for_sockets"; daemons = 0; next }
        !block || /^cargo / || /^export PATH/ { next }
        /node run/ { daemons = 1 }
        /^mitosis logs/ { print "sleep 2" }
        /^parent=/ { print; print "sleep 1"; next }
        { print }
    ' README.md
} > "$work/script"
grep -q '^mitosis fork' "$work/script" || { echo "check-readme: found no commands" >&2; exit 1; }

cat > "$work/prelude" <<'PRELUDE'
mount -t tmpfs none /run
mkdir -p /run/bin /run/mitosis
cp "$BIN" /run/bin/mitosis
export PATH="/run/bin:$PATH"
mount -t tmpfs none /tmp
mount -t tmpfs none /var/lib
ip link set lo up
# This tree may lie in what is hidden now, and some shells' shims insist on where they are.
cd /
wait_for_sockets() {
    for _ in $(seq 100); do
        [ -S /run/mitosis/a.sock ] && [ -S /run/mitosis/b.sock ] && return 0
        sleep 0.1
    done
    echo "check-readme: the nodes did not come up" >&2
    return 1
}
PRELUDE

# Pid 1 of the namespace is the shell: at its end all that is left of the nodes goes.
script=$(cat "$work/prelude" "$work/script")
if ! BIN="$bin" timeout --signal=KILL 120 unshare --mount --pid --net --uts --ipc --fork \
    --mount-proc --kill-child bash -c "$script" > "$work/log" 2>&1 </dev/null; then
    cat "$work/log" >&2
    echo "check-readme: the README's commands fail" >&2
    exit 1
fi
grep -E '[0-9]+ [0-9]+$' "$work/log" > /dev/null || {
    cat "$work/log" >&2
    echo "check-readme: the child's log shows no counting" >&2
    exit 1
}
echo "check-readme: $(grep -c mitosis "$work/script") commands of the README work"
