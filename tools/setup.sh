#!/usr/bin/env bash
# Makes a bare Debian 12 machine ready: host packages, the virtual environment in .venv, nothing else. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'setup: %s\n' "$*" >&2; exit 2; }

install_host_packages() {
    local wanted missing=()
    wanted=$(sed 's/#.*//' requirements/debian.txt | xargs)
    for package in $wanted; do
        [[ $(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null) == ii* ]] || missing+=("$package")
    done
    [[ ${#missing[@]} -eq 0 ]] && return
    [[ $(id -u) -eq 0 ]] || die "missing Debian packages: ${missing[*]}. Run 'make setup' once as root, or apt-get install them."
    say "Installing ${#missing[@]} Debian packages: ${missing[*]} (1-2 min)"
    apt-get update -qq
    if ! apt-cache show packer >/dev/null 2>&1; then
        # Debian 13 dropped packer: take bookworm's, and pin everything else of that suite out.
        local mirror
        # shellcheck disable=SC2016  # $(SITE) is apt's own placeholder
        mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | head -n 1)
        printf 'Types: deb\nURIs: %s\nSuites: bookworm\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' \
            "$mirror" > /etc/apt/sources.list.d/testudo-packer.sources
        printf 'Package: *\nPin: release n=bookworm\nPin-Priority: -1\n\nPackage: packer\nPin: release n=bookworm\nPin-Priority: 500\n' \
            > /etc/apt/preferences.d/testudo-packer
        apt-get update -qq
    fi
    # A build host must not start the daemons that come along (nginx would open port 80).
    local policy=/usr/sbin/policy-rc.d made_policy=
    if [[ ! -e $policy ]]; then
        made_policy=1
        printf '#!/bin/sh\nexit 101\n' > "$policy"
        chmod 0755 "$policy"
    fi
    local status=0
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2 || status=$?
    [[ -z $made_policy ]] || rm -f "$policy"
    [[ $status -eq 0 ]] || die "apt-get install failed; the lines above say why. Mend it and run 'make setup' again."
}

make_environment() {
    command -v python3.11 >/dev/null || die "python3.11 is needed; Debian 12 has it as package python3"
    local stamp=.venv/.requirements wanted
    wanted=$(cat requirements/dev.txt pyproject.toml | sha256sum)
    if [[ -f $stamp && $(<"$stamp") == "$wanted" && -x .venv/bin/testudo ]]; then return; fi
    say "Making .venv from requirements/dev.txt (1-3 min)"
    if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
        python3.11 -m venv --clear .venv
    fi
    .venv/bin/python -m pip install --quiet --require-hashes -r requirements/dev.txt ||
        die "pip could not install the locked requirements. A hash mismatch for torch means that your index serves the CUDA build: \
set PIP_EXTRA_INDEX_URL to an index with CPU builds of torch (docs/image.md, 'Build of torch')."
    .venv/bin/python -m pip install -qq --no-deps --no-build-isolation -e .
    printf '%s' "$wanted" > "$stamp"
}

install_host_packages
make_environment
