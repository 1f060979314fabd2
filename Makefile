# make, or make help, lists what there is to do. Every target says what it installs or builds.

GO        ?= go
# Pure Go in place of libolm, for the encrypting clients of the tests and the demo.
TAGS      := goolm
BIN       := bin
VERSION   ?=
FUZZTIME  ?= 30s
BENCHTIME ?= 1s
BENCH     ?= .
PARTS     ?=
# The demo's homeserver with freshen before it: dendrite or synapse.
HOMESERVER ?= dendrite
KILLS     ?= 200
CLIENTS   ?= 500
SEED      ?= 0
# For one package's tests; the homeservers of some take their time on a small machine.
TIMEOUT   ?= 20m

# What make package calls it, and from when it is: to the second, so that the same commit gives the same bytes.
PACKAGE_VERSION = $(or $(VERSION),$(shell git describe --tags --always --dirty))
PACKAGE_EPOCH   = $(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct))
ARCHS          ?= amd64 arm64

LDFLAGS := -s -w $(if $(VERSION),-X freshen/internal/app.linkedVersion=$(VERSION))
LINTER  := $(GO) tool -modfile=tools/go.mod golangci-lint

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c

.DEFAULT_GOAL := help
.PHONY: help build package demo test soak lint docs bench microbench fuzz go compiler servers clients dendrite synapse clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: go ## Build freshen into bin/freshen, static (VERSION=v1.2.3 to name it)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/freshen ./cmd/freshen
	@echo "Built $(BIN)/freshen: $$($(BIN)/freshen version)"

package: go ## Build a Debian package and an archive for each of ARCHS into bin, the same bytes for the same commit (on Linux)
	@echo 'nfpm, which packs them, comes through tools/nfpm/go.mod; building it takes about a minute the first time, and freshen as long.'
	@for arch in $(ARCHS); do VERSION='$(PACKAGE_VERSION)' SOURCE_DATE_EPOCH='$(PACKAGE_EPOCH)' deploy/package/build.sh $$arch $(BIN); done

demo: go ## Watch freshen between two real homeservers (HOMESERVER=synapse puts it before Synapse, KEEP=1 leaves them running)
	@echo 'The demo needs Go, and Python 3 with venv for HOMESERVER=synapse. The first time it downloads and builds the'
	@echo 'homeservers into .cache: that takes minutes. All that it starts listens on loopback addresses alone.'
	$(GO) run -tags $(TAGS) ./cmd/freshen-demo --homeserver $(HOMESERVER) $(if $(filter-out 0,$(KEEP)),--keep)

# SYNAPSE_VERSION=1.163.2 runs the tests, and the demo, with that version of Synapse in place of the pinned one.
test: go compiler servers clients dendrite synapse ## Run all tests, with the race detector and real homeservers
	$(GO) test -race -tags $(TAGS) -timeout $(TIMEOUT) ./...

soak: go compiler servers ## Kill freshen KILLS=200 times under load, on SQLite and on Postgres, and upset three instances, and let CLIENTS=500 sync through two (SEED= of a run that failed)
	CI=$${CI:-true} $(GO) test -race -tags $(TAGS) -count=1 -timeout 3h -v -run 'TestCrash|TestThreeInstances' ./soak -kills $(KILLS) -seed $(SEED)
	CI=$${CI:-true} $(GO) test -tags $(TAGS) -count=1 -timeout 1h -v -run TestCrowd ./soak -clients $(CLIENTS) -seed $(SEED)

lint: go ## Look for mistakes: gofmt, go vet, golangci-lint
	@unformatted=$$(gofmt -l .); \
	if [ -n "$$unformatted" ]; then echo "Not formatted, run gofmt -w on:" >&2; echo "$$unformatted" >&2; exit 1; fi
	$(GO) vet -tags $(TAGS) ./...
	@echo 'golangci-lint comes through tools/go.mod; building it takes about a minute the first time.'
	$(LINTER) run ./...

docs: go ## Write the table of keys in docs/configuration.md anew, from the code
	$(GO) generate ./internal/config

bench: go ## Measure freshen beside a direct connection and print a table (15 minutes; PARTS=sync,wake for some)
	$(GO) build -o $(BIN)/bench ./internal/bench
	$(BIN)/bench $(if $(PARTS),-only $(PARTS))

microbench: go ## Run the packages' own benchmarks (BENCH=regexp, BENCHTIME=1s)
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -benchtime $(BENCHTIME) -tags $(TAGS) -timeout $(TIMEOUT) \
		$$(grep -rlE '^func Benchmark' --include='*_test.go' . | xargs -r -n1 dirname | sort -u)

fuzz: go ## Fuzz each target for a while (FUZZTIME=30s)
	@grep -rHoE '^func Fuzz[A-Za-z0-9_]+' --include='*_test.go' . | sort | while IFS=: read -r file target; do \
		target=$${target#func }; package=$$(dirname "$$file"); \
		echo "$$package $$target, $(FUZZTIME)"; \
		$(GO) test -tags $(TAGS) -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$package" || exit 1; \
	done

clean: ## Remove what was built: bin and .cache
	rm -rf $(BIN) .cache

# The Go toolchain fetches the version that go.mod asks for by itself, unless it is too old to know how.
go:
	@command -v $(GO) >/dev/null || { echo 'Go is missing: install Go 1.26 or newer from https://go.dev/dl/' >&2; exit 1; }
	@$(GO) version >/dev/null 2>&1 && $(GO) list -m >/dev/null || { \
		echo "$$($(GO) version 2>&1) cannot build this: go.mod asks for Go $$(awk '$$1 == "go" {print $$2}' go.mod)" >&2; exit 1; }

# The race detector is linked by a C compiler.
compiler:
	@if command -v "$$($(GO) env CC)" >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo 'Installing a C compiler, which the race detector needs: apt-get install gcc libc6-dev'; \
		apt-get update -q && apt-get install -y -q --no-install-recommends gcc libc6-dev; \
	else \
		echo 'The race detector needs a C compiler: as root, apt-get install -y gcc libc6-dev' >&2; exit 1; \
	fi

# The tests start their own Postgres, nginx and Caddy from the programs of these packages, on free ports and in temporary
# directories, have prometheus' promtool look at what deploy/prometheus holds, systemd at its units and mandoc at the manual,
# and ask three shells to complete commands. The packages' own services are of no use: policy-rc.d, by which Debian's packages ask whether they may start
# what they bring, says no while they are installed, and they are taken out of what starts with the machine.
servers:
	@missing=; \
	command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing+=' postgresql'; \
	PATH="$$PATH:/usr/sbin" command -v nginx >/dev/null || missing+=' nginx'; \
	python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=' python3-venv'; \
	command -v promtool >/dev/null || missing+=' prometheus'; \
	for program in caddy fish mandoc zsh; do command -v $$program >/dev/null || missing+=" $$program"; done; \
	command -v systemd-analyze >/dev/null || missing+=' systemd'; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing what tests start, and no service that runs: apt-get install$$missing"; \
		policy=/usr/sbin/policy-rc.d; \
		if [ ! -e $$policy ]; then trap "rm -f $$policy" EXIT; printf '#!/bin/sh\nexit 101\n' > $$policy; chmod 755 $$policy; fi; \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; \
		! command -v systemctl >/dev/null || for package in $${missing/python3-venv/}; do systemctl disable -q "$$package" 2>/dev/null || true; done; \
	else \
		echo "Tests that need these Debian packages are left out (with CI set, they fail): as root, apt-get install$$missing" >&2; \
	fi

# Tests take matrix-js-sdk through the whole story, in Node.js and in a browser. They install it by themselves, with the Node.js
# that it needs, by npm from a lock file and into .cache; npm and the browser must be there.
clients:
	@missing=; \
	command -v npm >/dev/null || missing+=' npm'; \
	command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
		command -v google-chrome-stable >/dev/null || [ -e '/Applications/Google Chrome.app' ] || missing+=' chromium'; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing what the tests' clients run in: apt-get install$$missing"; \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; \
	else \
		echo "Tests of clients that need these Debian packages are left out (with CI set, they fail): as root, apt-get install$$missing" >&2; \
	fi

# The tests build Dendrite by themselves; here it is compiled into Go's build cache beforehand, where its progress shows
# and no test's deadline runs.
dendrite:
	@echo 'Making sure that Dendrite, the homeserver of the tests, is compiled. The first time this takes some minutes.'
	@CGO_ENABLED=0 GOWORK=off GOFLAGS=-buildvcs=false $(GO) -C internal/testbed/dendrite build -v -o /dev/null tool 2>&1 | awk ' \
		/^go: downloading / { if (++d % 25 == 0) { print "  … " d " modules downloaded"; fflush() }; next } \
		/[ :]/ { print; fflush(); next } \
		{ if (++n % 50 == 0) { print "  … " n " packages compiled"; fflush() } } \
		END { if (n) print "  " n " packages compiled" }'

# The tests install Synapse by themselves, too, into a virtual environment in .cache: 53 packages, 240 MB, a minute or two.
synapse: go
	@$(GO) run ./internal/testbed/prepare
