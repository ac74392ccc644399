#!/usr/bin/env bash
# Renews the hash-pinned lock files: service.txt is what the image installs, dev.txt adds what builds and tests it, both from
# pyproject.toml; reference.txt is what the engine is compared with.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {
    pip-compile --quiet --generate-hashes --strip-extras \
        --no-emit-index-url --no-emit-find-links --no-emit-trusted-host "$@"
}
compile --allow-unsafe --extra service -o requirements/service.txt pyproject.toml
compile --allow-unsafe --all-extras -c requirements/service.txt -o requirements/dev.txt pyproject.toml
compile --unsafe-package torch -o requirements/reference.txt requirements/reference.in
