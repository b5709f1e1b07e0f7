# CI runs these targets as they stand here. 'make help' lists them.
GO        ?= go
BIN       ?= bin
GOFMT      = $$($(GO) env GOROOT)/bin/gofmt
LINT       = honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME  ?= 10s
# The race detector needs a C compiler. Where there is none, the tests run without it. All else is built without cgo, so that
# packages are compiled once.
RACE      ?= $(if $(shell command -v gcc),-race)
GOTEST     = $(if $(RACE),CGO_ENABLED=1 )$(GO) test $(RACE)
export CGO_ENABLED = 0
TESTFLAGS ?=
# What --version says: the tag or commit of this tree, where git knows it.
VERSION   ?= $(if $(wildcard .git),$(shell git describe --tags --always --dirty --abbrev=12 2>/dev/null))
LDFLAGS    = $(if $(VERSION),-X tapestry.dev/tapestry/version.stamped=$(VERSION))
# Options of tapestry-lab bench, as --chart DIR.
BENCHFLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help build image release manifests demo demo-soak picture test unit e2e-lab e2e e2e-full lint fmt fuzz attacks restarts bench bench-quick bench-micro peers kubernetes-binaries api-test hubble ci clean

help: ## list the targets
	@echo "Tapestry, a userspace network for Kubernetes. Start with 'make demo'. Targets:"
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  \033[1m%-19s\033[0m  %s\n", $$1, $$2}' $(MAKEFILE_LIST) | \
	  if [ -t 1 ]; then cat; else sed 's/\x1b\[[0-9]*m//g'; fi

build: ## build bin/tapestry, bin/tapestry-cni, the CNI plugin, bin/tapestry-l2 and bin/tapestry-bgp, the announcers, and bin/tapestry-lab, to try and measure them
	$(GO) build -ldflags "$(LDFLAGS)" -o $(BIN)/ ./cmd/tapestry ./cmd/tapestry-cni ./cmd/tapestry-l2 ./cmd/tapestry-bgp ./cmd/tapestry-lab

# Every file of a release is of this time.
SOURCE_DATE_EPOCH ?= $(if $(wildcard .git),$(shell git log -1 --format=%ct 2>/dev/null))
RELEASE = SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) $(GO) run ./deploy/release -go $(GO) $(if $(VERSION),-version $(VERSION))

image: ## pack bin/tapestry-image.tar, the image for amd64 and arm64, without Docker; for 'ctr images import' and 'docker load'
	$(RELEASE) -out $(BIN) image

release: ## make dist/: programs, image, chart and manifests, bill of materials, checksums; two runs give the same
	$(RELEASE) -out dist all

manifests: ## render deploy/chart into the plain manifests, deploy/tapestry.yaml and deploy/uninstall.yaml
	@mkdir -p $(BIN)
	$(GO) -C deploy/render run . -f ../plain.yaml >$(BIN)/tapestry.yaml
	$(GO) -C deploy/render run . --set uninstall=true >$(BIN)/uninstall.yaml
	mv $(BIN)/tapestry.yaml $(BIN)/uninstall.yaml deploy/

demo: build ## bring up a two-node cluster on this machine, show every feature, take it down
	$(BIN)/tapestry-lab demo

# RUNS and BUILDS of demo-soak; DEMOFLAGS are options of the demo, as --no-bench.
RUNS      ?= 50
BUILDS    ?= 0
export DEMOFLAGS

demo-soak: build ## play the demo RUNS (50) times, beside BUILDS (0) endless Go builds, and count the runs in which a step fails
	GO=$(GO) test/steps/soak $(BIN) $(RUNS) $(BUILDS)

picture: build ## draw docs/demo.svg, the README's picture, of a demo that runs now
	$(BIN)/tapestry-lab demo --svg docs/demo.svg

test: lint unit e2e-lab ## run everything that needs no root: lint, unit tests, end-to-end tests on real namespaces

unit: ## run the packages' own tests, with the race detector where there is a C compiler
	$(GOTEST) $(TESTFLAGS) $$($(GO) list ./... | grep -v '/test/e2e')
	$(GO) -C deploy/render vet ./...
	@# What it reads is outside of its module, and so no reason for go to run it again.
	$(GO) -C deploy/render test -count=1 $(TESTFLAGS) ./...

e2e-lab: build ## run the end-to-end tests of the lab: real nodes, every step of the demo, faults, bad input, a soak (TAPESTRY_SOAK=100s), restarts (TAPESTRY_RESTARTS=10x1000)
	$(GO) test -count=1 -timeout 25m -v $(TESTFLAGS) ./test/e2e/...

lint: ## gofmt, vet, staticcheck
	@files=$$($(GOFMT) -l .); test -z "$$files" || { echo "not gofmt-clean, run 'make fmt':"; echo "$$files"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(LINT) ./...

fmt: ## format the code
	$(GOFMT) -w .

fuzz: ## run every fuzz test for FUZZTIME (10s)
	@set -e; for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
	    echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$pkg; \
	  done; done

# ATTACKFLAGS are options of attacks, as only=many-ports,idle.
ATTACKFLAGS ?=

attacks: build ## attack a lab's agents, as a tenant and from outside, and print what others saw and what it cost (10 minutes)
	TAPESTRY_EXECUTABLE=$(abspath $(BIN))/tapestry $(GO) run ./test/attacks $(ATTACKFLAGS)

# RESTARTS is how often the agent restarts, and how many connections there are of each kind.
# RECORD is a document that gets the record, such as docs/restarts.md.
RESTARTS ?= 10x1000
RECORD ?=

restarts: ## restart an agent under connections of every kind, and print what was cut, wrong and refused, and how long they stalled
	TAPESTRY_RESTARTS=$(RESTARTS) TAPESTRY_RESTARTS_RECORD=$(abspath $(RECORD)) $(GO) test -count 1 -timeout 15m -run '^TestRestart$$' -v ./test/e2e

bench: build ## measure against the kernel, raw wireguard-go and other programs, in one run (about 12 minutes)
	$(BIN)/tapestry-lab bench $(BENCHFLAGS)

bench-quick: build ## a first look: pods on one node and on two, against the kernel and raw wireguard-go (about a minute)
	$(BIN)/tapestry-lab bench pod cross-node --time 100ms $(BENCHFLAGS)

# The packages of the packet path, and which of their benchmarks are about it.
MICRO      = ./netstack ./netstack/packet ./netstack/flow ./services ./services/dns ./overlay ./overlay/underlay ./ingress/match
MICROBENCH = ^Benchmark(ParseFrame|Rewrite|Checksum|Hash|Segmenter|Coalescer|Traffic|Hit|HitAlone|HitParallel|HitChurn|Miss|InsertDelete|Pick|PickMiss|Admit|HotPath|FromLink|SendRead|Write|Send|Receive|Reply|Match)$$

bench-micro: ## run the Go micro-benchmarks of the packet path, allocations reported
	$(GO) test -run '^$$' -bench '$(MICROBENCH)' -benchmem $(TESTFLAGS) $(MICRO)

peers: ## build bin/peers: Caddy and CoreDNS, which bench compares with
	@mkdir -p $(BIN)/peers
	$(GO) -C bench/peers vet ./...
	$(GO) -C bench/peers build -ldflags '-s -w' -o $(abspath $(BIN))/peers/ ./caddy ./coredns

# A real Kubernetes on this machine, in a module of its own: test/kubernetes/README.md. KLABFLAGS are options of klab up, as
# --userns node-2: that node is inside a user namespace then. CONFORMANCEFLAGS are those of klab conformance, as --focus EXPRESSION.
export KLABFLAGS CONFORMANCEFLAGS

kubernetes-binaries: ## build bin/kubernetes: control plane, kubelet, kubectl, the official tests (cold 10 minutes, warm 10 seconds)
	GO=$(GO) test/kubernetes/build $(BIN)/kubernetes

api-test: ## have kube/cluster talk to a real control plane, which is built for it (no root; cold 4 minutes)
	GO=$(GO) test/kubernetes/build $(BIN)/kubernetes controlplane
	TAPESTRY_CONTROL_PLANE=$(abspath $(BIN))/kubernetes/controlplane $(GOTEST) -count=1 -v $(TESTFLAGS) ./test/apiserver

hubble: ## hold our Hubble API against Hubble's own messages, client and command (no root; cold 5 minutes)
	$(GO) -C test/hubble vet ./...
	$(GO) -C test/hubble test -count=1 $(TESTFLAGS) ./...

e2e: build image kubernetes-binaries ## on a real Kubernetes with two nodes, as root: our scenarios, then the official network tests (8 minutes)
	GO=$(GO) test/kubernetes/run $(BIN)/kubernetes $(BIN)/e2e

e2e-full: build image kubernetes-binaries peers ## that at full size: 100 pods ten times, 5,000 Services, official tests three times and all others, policies, a rootless node, kube-proxy (150 minutes)
	GO=$(GO) test/kubernetes/build $(BIN)/kubernetes bridge host-local loopback portmap kube-proxy
	GO=$(GO) test/kubernetes/run $(BIN)/kubernetes $(BIN)/e2e-full full

ci: ## what CI runs: make test as an ordinary user, make e2e-lab and make e2e as root (needs root, installs packages)
	.ci/run

clean: ## remove what make built
	rm -rf $(BIN) dist
