#!/bin/sh
# Installs the runtimes of the matrix (docs/runtimes.md) and builds its servers into
# target/runtimes. Quick when all is there. Needs root for what is missing.
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh

# Only the npm of Debian is a package of its own.
npm=
command -v npm >/dev/null || npm=npm
scripts/packages.sh curl golang-go nginx-light nodejs openjdk-17-jdk-headless perl php-apcu php-cli \
    postgresql redis-server ruby ruby-webrick $npm

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
