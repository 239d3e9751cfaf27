#!/usr/bin/env bash
# `unsafe` lives in mitosis-sys, mitosis-stub and mitosis-rdma-sys. Every other crate must forbid it in the eyes of
# the compiler (#![forbid(unsafe_code)] in each crate root), and its tests must do without as well.
set -euo pipefail
cd "$(dirname "$0")/.."

fence='mitosis-sys mitosis-stub mitosis-rdma-sys'
failed=0
complain() { echo "check-unsafe: $*" >&2; failed=1; }

for dir in crates/* fuzz; do
    name=$(basename "$dir")
    case " $fence " in *" $name "*) continue ;; esac
    roots=0
    for root in "$dir/src/lib.rs" "$dir/src/main.rs"; do
        [ -f "$root" ] || continue
        roots=$((roots + 1))
        grep -q '^#!\[forbid(unsafe_code)\]' "$root" || complain "$root lacks #![forbid(unsafe_code)]"
    done
    [ "$roots" -gt 0 ] || complain "$dir has neither src/lib.rs nor src/main.rs"
    # Tests, examples and binaries are crates of their own, which the attribute above does not
    # reach. Comments and strings may speak of it; a block, function, impl or trait may not.
    while IFS= read -r file; do
        if grep -nE '\bunsafe[[:space:]]+(\{|fn|impl|trait|extern)|\bunsafe\{' "$file" |
            grep -vE '^[0-9]+:[[:space:]]*//' >&2; then
            complain "$file: unsafe outside of: $fence"
        fi
    done < <(find "$dir" -name '*.rs' -not -path '*/target/*')
done

[ "$failed" -eq 0 ] || exit 1
echo "check-unsafe: none outside of: $fence"
