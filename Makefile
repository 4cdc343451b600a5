# Banger's chores. Each target can be repeated: what is done already costs nothing.
# What has to work before there is a compiler is scripts/setup.sh; everything else with logic in it is xtask.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Recipes run cargo, which has its own parallelism and its own locks.
.NOTPARALLEL:

AGENT_TARGET := x86_64-unknown-linux-gnu

.PHONY: help
help: ## Show this list
	@printf 'Banger: disposable Linux machines on your own host.\n\n'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22
	@printf '\nNew here? make demo\n'

.PHONY: setup
setup: ## Install what is missing: Debian packages (sudo when not root) and vhost-device-vsock
	@scripts/setup.sh

.PHONY: build
build: ## Build the release and put it together under target/stage
	cargo build --locked --release --package banger --package bangerd
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --profile agent --target $(AGENT_TARGET) --package banger-agent
	@cargo xtask stage

.PHONY: demo
# When it began, so that what it says it took is what one has waited.
demo: export BANGER_DEMO_BEGAN := $(shell date +%s)
demo: setup build ## From nothing to a command running in a microVM
	@cargo xtask demo

.PHONY: clean-demo
clean-demo: ## Undo make demo: its images, kernel and daemon, the links in PATH
	@cargo xtask clean-demo

.PHONY: check
check: ## Formatting, lints, licences and advisories
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny --locked check; \
	else echo "skipped: cargo deny (not installed; cargo install --locked cargo-deny)"; fi

.PHONY: test
test: ## Every test, real guests included
	@scripts/setup.sh test
	@$(MAKE) --no-print-directory build
	@cargo xtask test

.PHONY: fuzz
fuzz: ## Fuzz what reads hostile bytes; longer: cargo xtask fuzz --seconds 600
	@scripts/setup.sh test
	@cargo xtask fuzz

.PHONY: bench
bench: setup build ## Measure against the raw VMM, print a table, keep it under target/bench
	cargo build --locked --release --package banger-agent-api --example agent-call
	@cargo bench --quiet --locked --package e2e --bench overhead
