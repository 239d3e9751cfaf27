# Two commands: `make demo` shows it, `make test` proves it. Both do their own set-up; both need
# root, because nodes are made of namespaces.

CARGO ?= cargo

.PHONY: all setup build test test-runtimes test-rdma test-rdma-quick bench-rdma test-vm \
	test-vm-quick test-criu demo clean

all: build

setup:
	@scripts/setup.sh

build: setup
	$(CARGO) build --release -p mitosis

# Two tests at a time: each of the lab tests is several nodes already.
test: setup
	$(CARGO) test --workspace --no-fail-fast -- --test-threads=2

# Servers in many languages, forked idle and under load; installs them by name.
test-runtimes: setup
	@scripts/setup-runtimes.sh
	$(CARGO) test -p mitosis --test runtimes -- --test-threads=1

# In emulated guests with an emulated RDMA device, or on a real one: see docs/rdma.md.
test-rdma: build
	@scripts/rdma/test.sh 2

test-rdma-quick: build
	@scripts/rdma/test.sh 1

bench-rdma: build
	@scripts/rdma/test.sh 2 bench

# Between two kernels, in emulated guests: see docs/kernels.md.
test-vm: build
	@scripts/vm/test.sh

test-vm-quick: build
	@scripts/vm/test.sh quick

# The conformance programs under CRIU, for comparison, where one is on PATH: see docs/limits.md.
test-criu:
	@scripts/criu.sh

demo: build
	$${CARGO_TARGET_DIR:-target}/release/mitosis demo

clean:
	$(CARGO) clean
