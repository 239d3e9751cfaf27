#!/usr/bin/env bash
# Makes what the RDMA lab boots: a stock Debian kernel, downloaded and unpacked (not installed), and
# an initial file system with the modules it needs. Quick when all is there. Result: $LAB/vmlinuz
# and $LAB/initrd.
set -euo pipefail
cd "$(dirname "$0")/../.."
LAB=${MITOSIS_RDMA_LAB:-target/rdma-lab}
mkdir -p "$LAB"

missing=()
for package in qemu-system-x86 busybox-static kmod cpio gzip iproute2 python3 \
    ibverbs-providers ibverbs-utils libibverbs-dev; do
    status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "rdma-lab: installing ${missing[*]}" >&2
    DEBIAN_FRONTEND=noninteractive apt-get update -q >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
        "${missing[@]}" >&2
fi

# The `-cloud-` flavour has neither rdma_rxe nor 9p.
if [ ! -s "$LAB/vmlinuz" ]; then
    package=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image-/ {print $2; exit}')
    [ -n "$package" ] || { echo "rdma-lab: apt knows no linux-image-amd64" >&2; exit 1; }
    echo "rdma-lab: unpacking $package" >&2
    rm -rf "$LAB/kernel" "$LAB"/*.deb
    (cd "$LAB" && apt-get download -q "$package" >&2 && dpkg-deb -x "$package"_*.deb kernel)
    rm -f "$LAB"/*.deb
    release=$(ls "$LAB/kernel/lib/modules")
    depmod -b "$LAB/kernel" "$release"
    cp "$LAB/kernel/boot/vmlinuz-$release" "$LAB/vmlinuz.part"
    mv "$LAB/vmlinuz.part" "$LAB/vmlinuz"
    rm -f "$LAB/initrd"
fi

if [ ! -s "$LAB/initrd" ] || [ scripts/rdma/init -nt "$LAB/initrd" ] ||
    [ scripts/rdma/setup.sh -nt "$LAB/initrd" ]; then
    release=$(ls "$LAB/kernel/lib/modules")
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    mkdir -p "$root"/{bin,proc,sys,dev,host,over,new,mods}
    cp "$(command -v busybox)" "$root/bin/busybox"
    ln -s busybox "$root/bin/sh"
    cp scripts/rdma/init "$root/init"
    chmod 755 "$root/init"
    : >"$root/mods/order"
    for module in virtio_pci virtio_net 9p 9pnet_virtio overlay bridge crc32_generic ib_uverbs rdma_ucm rdma_rxe; do
        modprobe -d "$LAB/kernel" -S "$release" --show-depends "$module" 2>/dev/null |
            awk '$1 == "insmod" {print $2}'
    done | awk '!seen[$0]++' | while read -r path; do
        cp "$path" "$root/mods/"
        basename "$path" >>"$root/mods/order"
    done
    (cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$LAB/initrd.part"
    mv "$LAB/initrd.part" "$LAB/initrd"
fi
