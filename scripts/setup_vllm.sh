#!/usr/bin/env bash
# Adds vLLM to the environment that scripts/setup.sh makes, and tells it of our platform plugin.
#
# Takes no package from the environment and changes no version in it. Does nothing where all is
# installed. VENV, PYTHON and TORCH_INDEX as in setup.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}

say() { printf '[setup] %s\n' "$*"; }
die() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }

pip_install() {
    "$venv/bin/python" -m pip install --disable-pip-version-check -qq "$@" ||
        die "pip could not install $* (see above); run the same command again to retry"
}

scripts/setup.sh "$@"
"$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "vLLM needs Python 3.11 to 3.13, $venv has another: make one with PYTHON=python3.12 VENV=.venv-vllm"
if command -v flock >/dev/null; then
    exec 9> "$venv.lock"
    flock 9
fi
version=$(sed -n 's/^vllm==//p' requirements-vllm.txt)
wanted=$(cat requirements-vllm.txt pyproject.toml | cksum)
[ "$(cat "$venv/installed-vllm" 2>/dev/null)" != "$wanted $PWD" ] || exit 0

started=$SECONDS
say "adding vLLM $version to $venv"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$venv/bin/python" -m pip freeze --exclude-editable --exclude vllm > "$scratch/present.txt"
grep -v '^vllm==' requirements-vllm.txt > "$scratch/needed.txt"
pip_install --constraint "$scratch/present.txt" --requirement "$scratch/needed.txt"
if [ "$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("vllm"))' 2>/dev/null)" != "$version" ]; then
    # without the override its version would be "$version+empty", which pip does not take for it
    VLLM_TARGET_DEVICE=empty VLLM_VERSION_OVERRIDE=$version \
        pip_install --no-deps --no-build-isolation --no-binary vllm "vllm==$version"
fi
pip_install --no-deps --no-build-isolation --editable .
echo "$wanted $PWD" > "$venv/installed-vllm"
say "vLLM ready after $((SECONDS - started)) s"
