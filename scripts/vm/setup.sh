#!/bin/sh
# Installs what guests need, and what is named besides.
exec "$(dirname "$0")/../packages.sh" qemu-system-x86 busybox-static kmod cpio gzip xz-utils iproute2 \
    python3 "$@"
