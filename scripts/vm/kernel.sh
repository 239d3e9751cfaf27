#!/usr/bin/env bash
# Makes what a guest boots: a stock Debian kernel, downloaded and unpacked (not installed), and an
# initial file system with the modules it needs.
#
#   kernel.sh NAME PACKAGE [MODULE...]
#
# PACKAGE is one of Debian's names for the newest kernel of a series, such as linux-image-amd64. The
# result is LAB/NAME/vmlinuz and LAB/NAME/initrd. Quick when all is there. Needs the packages that
# scripts/vm/setup.sh installs.
set -euo pipefail
cd "$(dirname "$0")/../.."
name=$1
package=$2
shift 2
LAB=${MITOSIS_VM_LAB:-target/vm-lab}
here=$LAB/$name
mkdir -p "$here"

# The `-cloud-` flavours have neither 9p nor rdma_rxe.
if [ ! -s "$here/vmlinuz" ]; then
    exact=$(apt-cache depends "$package" | awk '/Depends: linux-image-/ {print $2; exit}')
    [ -n "$exact" ] || { echo "vm: apt knows no package $package" >&2; exit 1; }
    echo "vm: unpacking $exact" >&2
    rm -rf "$here/kernel" "$here"/*.deb
    (cd "$here" && apt-get download -q "$exact" >&2 && dpkg-deb -x "$exact"_*.deb kernel)
    rm -f "$here"/*.deb
    release=$(ls "$here/kernel/lib/modules")
    depmod -b "$here/kernel" "$release"
    cp "$here/kernel/boot/vmlinuz-$release" "$here/vmlinuz.part"
    mv "$here/vmlinuz.part" "$here/vmlinuz"
    rm -f "$here/initrd"
fi

if [ ! -s "$here/initrd" ] || [ scripts/vm/init -nt "$here/initrd" ] ||
    [ scripts/vm/kernel.sh -nt "$here/initrd" ]; then
    release=$(ls "$here/kernel/lib/modules")
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    mkdir -p "$root"/{bin,proc,sys,dev,host,over,new,mods}
    cp "$(command -v busybox)" "$root/bin/busybox"
    ln -s busybox "$root/bin/sh"
    cp scripts/vm/init "$root/init"
    chmod 755 "$root/init"
    : >"$root/mods/order"
    for module in virtio_pci virtio_net 9p 9pnet_virtio overlay bridge crc32_generic "$@"; do
        modprobe -d "$here/kernel" -S "$release" --show-depends "$module" 2>/dev/null |
            awk '$1 == "insmod" {print $2}'
    done | awk '!seen[$0]++' | while read -r path; do
        module=$(basename "${path%.xz}")
        case $path in
            *.xz) xz -dc "$path" >"$root/mods/$module" ;;
            *) cp "$path" "$root/mods/$module" ;;
        esac
        echo "$module" >>"$root/mods/order"
    done
    (cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$here/initrd.part"
    mv "$here/initrd.part" "$here/initrd"
fi
