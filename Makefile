# Two commands: `make demo` shows it, `make test` proves it. Both do their own set-up; both need
# root, because nodes are made of namespaces.

CARGO ?= cargo

.PHONY: all setup build test demo clean

all: build

setup:
	@scripts/setup.sh

build: setup
	$(CARGO) build --release -p mitosis

# Two tests at a time: each of the lab tests is several nodes already.
test: setup
	$(CARGO) test --workspace --no-fail-fast -- --test-threads=2

demo: build
	$${CARGO_TARGET_DIR:-target}/release/mitosis demo

clean:
	$(CARGO) clean
