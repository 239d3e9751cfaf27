# The lab's switch: a network namespace with one bridge, held by this shell.
#
# It ends when the lab closes its end of the pipe, which a killed lab does too. It is the last to
# go, so it also removes what namespaces alone do not: the control groups of the lab's nodes.
# Argument: the lab's name, part of the name of each of its nodes.
set -eu
lab=$1
ip link add br0 type bridge
ip link set br0 up
ip link set lo up
echo ready
while read -r _; do :; done
for _ in 1 2 3 4 5 6 7 8 9 10; do
    left=$(find /sys/fs/cgroup -depth -type d -name "*$lab*" 2>/dev/null || true)
    [ -n "$left" ] || break
    for group in $left; do
        find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
    done
    sleep 0.1
done
