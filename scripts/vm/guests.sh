#!/usr/bin/env bash
# Runs one to three guests joined by a network and waits until all have ended.
#
#   guests.sh WORKDIR SECONDS GUEST...
#
# A GUEST is NAME:KERNEL[:OPTION...], where KERNEL is what scripts/vm/kernel.sh made by that name, and
# an OPTION is
#   hours=N      its clock is N hours ahead of this machine's
#   cgroups=v1   it has version 1 of them for memory and pids, which Linux 6.1 still has (usually:
#                version 2 alone)
#   cpu=MODEL    a CPU of QEMU's (usually: max)
#   tsc=HOW      what its kernel thinks of the time stamp counter (usually: unstable); only where it is
#                reliable do programs read the time without a system call
#
# Each guest runs WORKDIR/NAME.sh as root, sees this machine's files read-only, and has the address
# 10.77.0.N, with an emulated RDMA device rxe0 where its kernel's modules have it. What it prints goes
# to WORKDIR/NAME.log. Exit status 0 when each of the scripts ended with 0 within SECONDS, of a clock that goes
# as fast as the guests get on (patience.py), and which they have as $LAB_CLOCK. The guests
# are emulated (no KVM needed): figures from them give shapes, not absolutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
LAB=${MITOSIS_VM_LAB:-target/vm-lab}
work=$(cd "$1" && pwd)
seconds=$2
shift 2
guests=("$@")
pids=()
cleanup() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -f "$work"/*.sock
}
trap cleanup EXIT

# Neighbours are joined by a wire each; a guest with two of them bridges. nic NUMBER HERE THERE
nic() {
    local path="local.path=$work/$2.sock,remote.type=unix,remote.path=$work/$3.sock"
    nics+=(-netdev "dgram,id=n$1,local.type=unix,$path")
    nics+=(-device "virtio-net-pci,netdev=n$1,mac=52:54:00:77:0$1:0$number,romfile=")
}

# option GUEST KEY DEFAULT
option() {
    local word
    for word in ${1//:/ }; do
        case $word in "$2"=*) echo "${word#*=}"; return ;; esac
    done
    echo "$3"
}

echo 0.00 >"$work/clock"
number=0
names=()
for guest in "${guests[@]}"; do
    IFS=: read -r name kernel _ <<<"$guest"
    names+=("$name")
    number=$((number + 1))
    nics=()
    card=0
    if [ "$number" -gt 1 ]; then nic $card "$number-left" "$((number - 1))-right"; card=1; fi
    if [ "$number" -lt ${#guests[@]} ]; then nic $card "$number-right" "$((number + 1))-left"; fi
    if [ ${#guests[@]} = 1 ]; then
        nics=(-netdev user,id=n0,restrict=on -device virtio-net-pci,netdev=n0,romfile=)
    fi
    append="console=ttyS0 quiet panic=-1 tsc=$(option "$guest" tsc unstable) nokaslr mitigations=off random.trust_cpu=on"
    append="$append lab.name=$name lab.addr=10.77.0.$number lab.work=$work lab.cwd=$PWD"
    # At boot a kernel counts ten ticks of its timer, and panics where a busy machine gave it no time for them.
    append="$append no_timer_check"
    append="$append lab.cgroups=$(option "$guest" cgroups v2)"
    clock=$(date -u -d "$(option "$guest" hours 0) hours" +%Y-%m-%dT%H:%M:%S)
    cpu=$(option "$guest" cpu max)
    # One thread for all CPUs of a guest: with one each, a CPU was seen to run into an instruction that another
    # had just changed back (kernels patch their own code with int3), and the guest panicked.
    qemu-system-x86_64 -accel tcg,thread=single -M q35 -cpu "$cpu" -smp 2 -m "${LAB_MEM:-1500}" \
        -nodefaults -no-user-config -display none -no-reboot -serial "file:$work/$name.log" \
        -kernel "$LAB/$kernel/vmlinuz" -initrd "$LAB/$kernel/initrd" -append "$append" \
        -device virtio-rng-pci -rtc "base=$clock" \
        -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
        -virtfs "local,path=$work,mount_tag=lab,security_model=none,readonly=on" \
        "${nics[@]}" </dev/null &
    pids+=($!)
done

scripts/vm/patience.py "$work/clock" "$seconds" "${pids[@]}" || true
status=0
for name in "${names[@]}"; do
    said=$(sed -n "s/^lab-status: $name \([0-9]*\).*/\1/p" "$work/$name.log")
    [ "$said" != 0 ] || continue
    case $said in
        '') why="did not end within $seconds s of its clock, which says $(cat "$work/clock")" ;;
        *) why="failed with $said" ;;
    esac
    echo "guest $name $why; its last lines:" >&2
    tail -n 40 "$work/$name.log" >&2
    echo "guest $name $why" >>"$work/failed"
    status=1
done
exit $status
