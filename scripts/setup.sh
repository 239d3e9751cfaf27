#!/bin/sh
# Installs what the build, the tests and the demonstration need. Quick when all is there.
#
# Debian packages by name, and the Python packages of tests and benchmarks in a virtual environment
# under target/, so nothing of the system's Python is changed.
set -eu
cd "$(dirname "$0")/.."

scripts/packages.sh gcc libc6-dev make iproute2 util-linux procps runc crun python3 python3-venv libssl-dev \
    nodejs

if ! command -v cargo >/dev/null; then
    echo "setup: no cargo: a Rust toolchain (1.85 or later) is needed; see https://rustup.rs" >&2
    exit 1
fi

venv=target/venv
pins="numpy==2.2.6 fdk==0.1.128 pyaes==1.6.1 jinja2==3.1.6 pillow==11.3.0"
if [ "$(cat $venv/pins 2>/dev/null || true)" != "$pins" ]; then
    echo "setup: Python packages into $venv"
    rm -rf "$venv"
    mkdir -p target
    /usr/bin/python3 -m venv "$venv"
    # shellcheck disable=SC2086
    "$venv/bin/pip" install -q --disable-pip-version-check $pins
    printf '%s\n' "$pins" >"$venv/pins"
fi
