#!/bin/sh
# Installs the runtimes of the matrix (docs/runtimes.md) and builds its servers into
# target/runtimes. Quick when all is there. Needs root for what is missing.
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh

packages="curl golang-go nginx-light nodejs openjdk-17-jdk-headless perl php-apcu php-cli
    redis-server ruby ruby-webrick"
# Only the npm of Debian is a package of its own.
command -v npm >/dev/null || packages="$packages npm"

missing=
for package in $packages; do
    status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "setup-runtimes: missing:$missing (run as root, or install them)" >&2
        exit 1
    fi
    echo "setup-runtimes: installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    # Installing a server must not start it.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    apt-get update -q
    # shellcheck disable=SC2086
    apt-get install -q -y --no-install-recommends $missing
fi

out=${CARGO_TARGET_DIR:-target}/runtimes
from=tests/runtimes
mkdir -p "$out"
newer() { [ ! -e "$1" ] || [ "$2" -nt "$1" ]; }

if newer "$out/go-http" $from/go/main.go; then
    echo "setup-runtimes: the server in Go"
    go build -o "$out/go-http" $from/go/main.go
fi
if newer "$out/Server.class" $from/Server.java; then
    echo "setup-runtimes: the server in Java"
    javac -d "$out" $from/Server.java
fi
if newer "$out/tokio/release/runtime-tokio" $from/tokio/src/main.rs; then
    echo "setup-runtimes: the server on tokio"
    cargo build --quiet --release --locked --manifest-path $from/tokio/Cargo.toml --target-dir "$out/tokio"
fi
pin="@fnproject/fdk@0.0.76"
if [ "$(cat "$out/pin" 2>/dev/null || true)" != "$pin" ]; then
    echo "setup-runtimes: $pin"
    npm install --silent --no-audit --no-fund --no-save --prefix "$out" "$pin"
    printf '%s\n' "$pin" >"$out/pin"
fi
