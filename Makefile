# Aquifer: everything that is done with this tree. `make help` lists it.
#
# One cargo profile (release) and one target folder serve build, demo, tests and benchmarks, because RocksDB's C++
# takes a quarter of an hour a profile. The folder lies outside of the tree, so that a fresh checkout reuses it.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

export CARGO_TARGET_DIR ?= $(HOME)/.cache/aquifer/target
export CARGO_TERM_COLOR ?= auto
export RUST_LIB_BACKTRACE ?= 0
CARGO ?= cargo
BINARY ?= $(CARGO_TARGET_DIR)/release/aquifer

PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
DESTDIR ?=

# Slow groups of tests/tests/it, one module each, in the order in which they are run; the most that one may take.
GROUPS := guest backup_restore_qemu incremental self_healing guest_first nbd_source deletion image_source bad_input damage quiesce remote filter_method kill9 jobs api_conformance unmanaged domains s3 multi_host
GROUP_TIMEOUT := 1200
TEST_THREADS ?= 2
BENCH_DATA ?= $(HOME)/.cache/aquifer/bench
BENCH_PEERS ?= $(HOME)/.cache/aquifer/peers

.PHONY: help deps build demo test test-newer-qemu s3-servers lint unit slow $(GROUPS:%=slow-%) bench bench-data bench-lines bench-live bench-several bench-scale bench-s3 bench-index dist install install-files clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 16

deps: ## install the Debian packages that build, demo and tests need (as root; else print the command)
	@scripts/deps.sh

build: deps ## build the binary
	$(CARGO) build --release --locked --workspace --bins

demo: build ## back up a live guest, restore it, prove the restored disks
	$(CARGO_TARGET_DIR)/release/demo

test: deps lint unit slow ## everything that must hold before a change lands
	@echo "== all tests passed"

lint:
	@echo "== format, lints, documentation"
	$(CARGO) fmt --all --check
	rustfmt --edition 2024 --check crates/testkit/guest/init.rs
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --locked --workspace --no-deps

# All targets at once: the tests that run the binary find it beside themselves, built with the same features.
unit:
	@echo "== unit tests and quick integration tests"
	$(CARGO) build --release --locked --workspace --all-targets
	$(CARGO) test --release --locked --workspace

slow: $(GROUPS:%=slow-%)

$(GROUPS:%=slow-%): slow-%: unit
	@echo "== slow group $* ($$($${AQUIFER_QEMU_PREFIX:+$$AQUIFER_QEMU_PREFIX/usr/bin/}qemu-system-x86_64 --version | head -n 1))"
	timeout $(GROUP_TIMEOUT) $(CARGO) test --release --locked --workspace --test it -- \
	    --ignored --test-threads=$(TEST_THREADS) $*::

test-newer-qemu: unit ## the slow groups against the QEMU of bookworm-backports, unpacked beside the installed one
	AQUIFER_QEMU_PREFIX=$$(scripts/qemu-backports.sh) $(MAKE) slow

s3-servers: build ## race creates on S3 servers that others run (moto, s3s-fs, garage); builds two of them first
	scripts/s3-servers.sh "$(BINARY)"

bench: build bench-data ## measure against floors and every peer found, on three days of a real disk: ROUNDS=7 PEER_ROUNDS=3
	benches/peers.sh "$(BENCH_PEERS)"
	$(CARGO_TARGET_DIR)/release/compare run "$(BENCH_DATA)" "$(BENCH_PEERS)" $(or $(ROUNDS),7) $(or $(PEER_ROUNDS),3) \
	    "$(BENCH_DATA)/rows.tsv"
	$(CARGO_TARGET_DIR)/release/compare report "$(BENCH_DATA)/rows.tsv" docs/BENCHMARKS.md docs/bench.svg

bench-lines: bench-data ## read over 10 ms, 50 ms and TLS, against nbdcopy's best setting
	$(CARGO) build --release --locked --package aquifer-nbd --example nbdread
	benches/lines.sh $(CARGO_TARGET_DIR)/release/examples/nbdread "$(BENCH_DATA)/day1.raw"

bench-live: build ## an unchanged disk of 5 GiB and one of 1 TiB of a running QEMU, with its bitmap
	benches/live.sh "$(BINARY)"

bench-several: build bench-data ## four disks and four machines at once against one after the other
	benches/several.sh "$(BINARY)" "$(BENCH_DATA)/day0.raw"

bench-scale: build bench-data ## time and memory for 1, 10 and 100 GiB, 10 TiB, and 1 to 64 backups: needs 60 GiB of room
	benches/scale.sh "$(BINARY)" "$(BENCH_DATA)" "$(BENCH_DATA)/scale.tsv"
	$(CARGO_TARGET_DIR)/release/compare scale "$(BENCH_DATA)/scale.tsv" docs/BENCHMARKS.md docs/scale.svg

bench-data: deps ## make the three days of a disk that the other benchmarks read (root)
	@scripts/deps.sh bench
	benches/dataset.sh "$(BENCH_DATA)"

bench-s3: build ## measure backup and restore over HTTP against the same server's own puts and gets
	benches/s3.sh "$(BINARY)"

bench-index: deps ## how the chunk index behaves at size: CHUNKS=20000000
	$(CARGO) run --release --locked --package aquifer-index --example fill -- $(or $(CHUNKS),20000000)

dist: deps ## an optimised build, packed with all that `install` places
	$(CARGO) build --profile dist --locked --package aquifer-cli
	scripts/dist.sh $(CARGO_TARGET_DIR)/dist/aquifer

install: build install-files ## install under PREFIX (default /usr/local; DESTDIR and SYSCONFDIR as usual)

install-files:
	scripts/install.sh "$(BINARY)" "$(DESTDIR)" "$(PREFIX)" "$(SYSCONFDIR)"

clean: ## remove what was built, the test guest and the benchmark's data
	rm -rf "$(CARGO_TARGET_DIR)" "$(HOME)/.cache/aquifer"
