#!/usr/bin/env bash
# Renews the hash-pinned lock files from pyproject.toml: service.txt is what the image installs, dev.txt adds what builds and tests it.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {
    pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe \
        --no-emit-index-url --no-emit-find-links --no-emit-trusted-host "$@" pyproject.toml
}
compile --extra service -o requirements/service.txt
compile --all-extras -c requirements/service.txt -o requirements/dev.txt
