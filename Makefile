# Every target sets up what it needs; `make help` is the default.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

TARGET ?= local
BENCH ?= --short
BIN := .venv/bin
export ANSIBLE_CONFIG := $(CURDIR)/ansible/ansible.cfg
molecule molecule-slow: export CONTAINERS_CONF := $(CURDIR)/build/containers.conf
export ANSIBLE_HOME := $(CURDIR)/build/ansible
export PATH := $(CURDIR)/$(BIN):/usr/sbin:/sbin:$(PATH)

.PHONY: help setup fmt lint test unit reference bench bench-service mutate molecule molecule-slow ami image-test audit check lock docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install host packages that are missing and make .venv (idempotent; 3-5 min the first time)
	@tools/setup.sh

fmt: setup ## Format Python and Packer files
	ruff check --fix-only --quiet .
	ruff format .
	packer fmt packer

lint: setup ## All linters: ruff, mypy, yamllint, ansible-lint, shellcheck, packer, import-linter
	pytest tests/repo

unit: setup ## Fast tests only (about a minute)
	pytest -n 2 --dist loadfile -m "not slow and not reference" tests

test: setup ## All tests that need no boot: linters, unit, API, equality, build isolation, molecule (about 15 min)
	tools/reference.sh
	pytest -n 2 --dist loadfile -m "not slow and not full" tests
	pytest -m "slow and not full" tests
	$(MAKE) molecule

reference: setup ## Equality with tortoise-tts 3.0.0 at the published model's size (10 min, 8 GiB of memory)
	tools/reference.sh
	pytest -v -m reference tests/reference

bench: setup ## Time the engine against tortoise-tts 3.0.0 (5 min; BENCH=--full for all of it); writes docs/benchmarks.md
	tools/reference.sh
	python -m tests.bench $(BENCH)

bench-service: setup ## Time the API against bare Flask and bare gRPC (1 min); writes docs/benchmarks-service.md
	python -m tests.bench.service

mutate: setup ## Take out each defence and see its tests fail (10-25 min; MUTATE="ID ..." for some); docs/attacks.md
	python -m tools.mutate $(MUTATE)

molecule: setup ## Converge, re-converge and verify every role in a systemd container
	testudo image container
	molecule destroy -s default # what an interrupted run left would be taken for new
	molecule test --all --exclude gpu_debian

molecule-slow: setup ## Install Debian's NVIDIA driver and build it for the image's kernel, in a container (10 min, 400 MB)
	testudo image container
	molecule destroy -s default
	molecule test -s gpu_debian

ami: setup ## Build the hardened image, boot it, speak through TLS (TARGET=local or aws)
	testudo image build --target $(TARGET)

image-test: setup ## Boot the built image again and run tests/image against it
	testudo image verify

audit: setup ## Boot the built image and audit it: lynis, OpenSCAP (CIS, ANSSI), our tests; writes build/audit/audit.html
	testudo image audit

check: ## What CI runs: test, then ami
	$(MAKE) test
	$(MAKE) ami

lock: setup ## Renew requirements/*.txt from pyproject.toml
	tools/lock.sh

docs: setup ## Renew the tables in README files and docs that are made from data
	python -m tools.docs

clean: ## Remove everything that was built (keeps .venv)
	@[ ! -x $(BIN)/testudo ] || $(BIN)/testudo image clean
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
