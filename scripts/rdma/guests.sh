#!/usr/bin/env bash
# Runs one to three lab guests joined by a network and waits until all have ended.
#
#   guests.sh WORKDIR SECONDS NAME...
#
# Each guest NAME runs WORKDIR/NAME.sh as root, sees this machine's files read-only, and has the
# address 10.77.0.N on eth0, with an emulated RDMA device rxe0 on it. What it prints goes to
# WORKDIR/NAME.log. Exit status 0 when each of the scripts ended with 0 within SECONDS. The guests
# are emulated (no KVM needed): figures from them give shapes, not absolutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
LAB=${MITOSIS_RDMA_LAB:-target/rdma-lab}
work=$(cd "$1" && pwd)
seconds=$2
shift 2
names=("$@")
pids=()
cleanup() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -f "$work"/*.sock
}
trap cleanup EXIT

# Three guests need a hub: a multicast group on the loopback device. Two have a wire.
net() {
    case ${#names[@]} in
    1) echo "user,id=n0,restrict=on" ;;
    2) if [ "$1" = 1 ]; then here=a there=b; else here=b there=a; fi
        echo "dgram,id=n0,local.type=unix,local.path=$work/$here.sock,remote.type=unix,remote.path=$work/$there.sock" ;;
    *) echo "socket,id=n0,mcast=230.77.0.1:$((20000 + $$ % 20000)),localaddr=127.0.0.1" ;;
    esac
}

number=0
for name in "${names[@]}"; do
    number=$((number + 1))
    append="console=ttyS0 quiet panic=-1 tsc=unstable nokaslr mitigations=off random.trust_cpu=on"
    append="$append lab.name=$name lab.addr=10.77.0.$number lab.work=$work lab.cwd=$PWD"
    qemu-system-x86_64 -accel tcg,thread=multi -M q35 -cpu max -smp 2 -m "${LAB_MEM:-1500}" \
        -nodefaults -no-user-config -display none -no-reboot -serial "file:$work/$name.log" \
        -kernel "$LAB/vmlinuz" -initrd "$LAB/initrd" -append "$append" \
        -device virtio-rng-pci \
        -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
        -netdev "$(net $number)" \
        -device "virtio-net-pci,netdev=n0,mac=52:54:00:77:00:0$number,romfile=" </dev/null &
    pids+=($!)
done

deadline=$((SECONDS + seconds))
for pid in "${pids[@]}"; do
    while kill -0 "$pid" 2>/dev/null && [ $SECONDS -lt $deadline ]; do sleep 0.2; done
done
status=0
for name in "${names[@]}"; do
    if ! grep -q "^lab-status: $name 0" "$work/$name.log"; then
        echo "guest $name failed or did not end within $seconds s; its last lines:" >&2
        tail -n 40 "$work/$name.log" >&2
        status=1
    fi
done
exit $status
