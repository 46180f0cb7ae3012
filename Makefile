# The two commands a newcomer needs are `make demo` and `make test`; everything else is listed by `make help`.

CARGO   ?= cargo
PREFIX  ?= /usr/local
MINUTES ?= 30
BINS    := gatepost gatepost-verify gatepost-http gatepost-hl7 gatepost-fix
PACKAGES := -p gatepost -p gatepost-audit -p gatepost-http -p gatepost-hl7 -p gatepost-fix

.PHONY: help demo fuzz test test-long torture check bench bench-adapters bench-peers install build release sbom deb

help: ## Say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: build ## Watch a gateway lose nothing: real sockets, real HL7, a kill in the middle
	@target/debug/gatepost demo

build: ## Build the programs for development
	@test -e target/debug/gatepost || echo 'Building the programs, which takes a few minutes the first time …' >&2
	@$(CARGO) build --quiet --locked $(PACKAGES)

release: ## Build the programs for use, each with the list of what it is made of where cargo-auditable is installed
	@CARGO=$(CARGO) scripts/release $(PACKAGES)

sbom: ## Write the bill of materials (CycloneDX) of the programs to target/gatepost.cdx.json
	@mkdir -p target
	@scripts/sbom >target/gatepost.cdx.json
	@echo target/gatepost.cdx.json

deb: release ## Build the Debian package in target/debian
	@scripts/deb target/release target/debian

test: ## Run all tests
	@scripts/test

test-long: ## Run the tests that take long: storms of processes, testssl.sh, measurements
	@scripts/test-long

fuzz: ## Fuzz every parser of foreign bytes, SECONDS each (60)
	@scripts/fuzz all $(or $(SECONDS),60)

torture: ## Try for MINUTES (default 30) to make the gateway lose, double or reorder something
	@MINUTES=$(MINUTES) scripts/torture

check: ## Format, lints, dependency rules
	@scripts/check

bench: release ## Measure this machine's gateway with everything switched on
	@target/release/gatepost bench

bench-adapters: ## Measure how fast messages go through gatepost-hl7 and gatepost-fix
	@scripts/bench-adapters

bench-peers: ## Measure Redis, NATS, RabbitMQ and PostgreSQL at the same job, in the same run
	@scripts/bench-peers

install: release ## Install the programs under PREFIX (default /usr/local)
	install -d $(DESTDIR)$(PREFIX)/bin
	for bin in $(BINS); do install -m 0755 target/release/$$bin $(DESTDIR)$(PREFIX)/bin/; done
