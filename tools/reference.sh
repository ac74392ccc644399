#!/usr/bin/env bash
# Makes .reference: tortoise-tts 3.0.0 and what it runs on, the other side of tests/reference and tests/bench.
# Kept apart from .venv, as it wants transformers of 2023. Idempotent; a second call only compares a stamp.
set -euo pipefail
cd "$(dirname "$0")/.."

environment=.reference
packages=lib/python3.11/site-packages
stamp=$environment/.requirements
wanted=$(cat requirements/reference.txt tools/reference.sh | sha256sum)
[[ ! -f $stamp || $(<"$stamp") != "$wanted" || ! -e $environment/$packages/torch/__init__.py ]] || exit 0

compgen -G ".venv/$packages/torch-*.dist-info" >/dev/null || {
    printf 'reference: .venv has no torch: run "make setup" first\n' >&2
    exit 1
}
printf 'Making %s from requirements/reference.txt (1-2 min)\n' "$environment" >&2
python3.11 -m venv --clear "$environment"
# The same torch on both sides: what differs is then the code that is compared.
for part in torch torchgen functorch; do
    [[ ! -e .venv/$packages/$part ]] || ln -s "../../../../.venv/$packages/$part" "$environment/$packages/$part"
done
for part in .venv/"$packages"/torch-*.dist-info; do
    ln -s "../../../../$part" "$environment/$packages/"
done
install() {
    "$environment/bin/python" -m pip install -qq --no-deps --no-build-isolation --require-hashes -r "$1" || {
        printf 'reference: pip could not install %s: the lines above say why\n' "$1" >&2
        exit 1
    }
}
# Two packages come as source. What builds them is locked as well, so it goes first.
awk '/^[^ #]/ { wanted = /^setuptools==/ } wanted' requirements/reference.txt > "$environment/build.txt"
install "$environment/build.txt"
install requirements/reference.txt
# Recordings of people, which nothing here needs, and the compiled half of torchaudio, which wants CUDA:
# without its folder, torchaudio takes itself for pure Python, and that half has all that upstream calls.
rm -rf "$environment/$packages"/{tortoise/voices,torchaudio/lib}
printf '%s' "$wanted" > "$stamp"
