#!/usr/bin/env bash
# Makes the virtual environment and fetches the default model; does nothing where both are there.
#
#   scripts/setup.sh [--dev] [--model]     --dev: also what lint and tests need
#   PYTHON=python3.10  interpreter to use            VENV=.venv  where the environment lies
#   TORCH_INDEX=URL    package index for torch alone, e.g. one with CPU builds
#
# An environment is used only while it is whole: a set-up that was cut short leaves the file
# `unfinished` in it, and the next one starts over from pip's cache.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}

say() { printf '[setup] %s\n' "$*"; }
die() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }

dev="" model=""
for word in "$@"; do
    case $word in
        --dev) dev=yes ;;
        --model) model=yes ;;
        *) die "unknown argument $word: use --dev and --model" ;;
    esac
done

# Prints "3.12" for an interpreter that runs, is 3.10 to 3.13 and can make environments.
version_of() {
    "$1" -c 'import sys, venv, ensurepip
if not (3, 10) <= sys.version_info[:2] <= (3, 13): sys.exit(1)
print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

find_python() {
    local minor candidate
    [ -z "${PYTHON:-}" ] || { echo "$PYTHON"; return; }
    # 3.12 and 3.10 first: TT-NN has wheels for these two
    for minor in 12 10 11 13; do
        for candidate in "python3.$minor" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$minor".*/bin/python; do
            [ "$(version_of "$candidate")" = "3.$minor" ] && echo "$candidate" && return
        done
    done
    version_of python3 >/dev/null && echo python3 && return
    die "no Python 3.10 to 3.13 with venv found: install python3.12 and python3.12-venv, or give PYTHON=/path/to/python"
}

# Moves before it deletes, so that a kill in between leaves no half environment under this name.
remove_environment() {
    local old="$venv.old.$$"
    mv "$venv" "$old" && rm -rf "$old"
}

check_environment() {
    rm -rf "$venv".old.*
    [ -e "$venv" ] || return 0
    if [ -e "$venv/unfinished" ]; then
        say "the last set-up was cut short: starting over"
        remove_environment
    elif [ ! -e "$venv/pyvenv.cfg" ]; then
        rmdir "$venv" 2>/dev/null ||
            die "$venv is not a virtual environment: move it away, or choose another with VENV="
    elif ! version_of "$venv/bin/python" >/dev/null; then
        say "the Python of $venv no longer runs: starting over"
        remove_environment
    elif [ -n "${PYTHON:-}" ] && [ "$(version_of "$venv/bin/python")" != "$(version_of "$PYTHON")" ]; then
        say "$venv has another Python than PYTHON=$PYTHON: starting over"
        remove_environment
    fi
}

pip_install() {
    local output=-qq  # errors only, save where somebody watches
    [ -t 1 ] && output=--progress-bar=on
    "$venv/bin/python" -m pip install --disable-pip-version-check "$output" "$@" ||
        die "pip could not install the packages (see above); run the same command again to retry"
}

install() {
    local started=$SECONDS python
    if [ ! -e "$venv/pyvenv.cfg" ]; then
        python=$(find_python)
        mkdir -p "$venv" && touch "$venv/unfinished"
        say "making $venv with $("$python" --version) ($python)"
        "$python" -m venv "$venv" || die "python -m venv failed (see above)"
    fi
    touch "$venv/unfinished"
    if [ -n "${TORCH_INDEX:-}" ] && ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
        say "installing torch from $TORCH_INDEX"
        pip_install --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements.txt)"
    fi
    say "installing $* (the first time takes minutes and several GB, mostly torch)"
    pip_install "${@/#/--requirement=}"
    checksum requirements.txt > "$venv/installed"
    [ -z "$dev" ] || checksum "$@" > "$venv/installed-dev"
    rm "$venv/unfinished"
    say "packages ready after $((SECONDS - started)) s, $(du -sh "$venv" | cut -f1) in $venv"
}

checksum() { cat "$@" | cksum; }

if [ -n "${PYTHON:-}" ] && ! version_of "$PYTHON" >/dev/null; then
    die "PYTHON=$PYTHON does not run, or is not Python 3.10 to 3.13 with venv"
fi
if command -v flock >/dev/null; then
    exec 9> "$venv.lock"
    flock --nonblock 9 || { say "waiting for another set-up to end"; flock 9; }
fi
check_environment
files=(requirements.txt)
[ -z "$dev" ] || files+=(requirements-dev.txt)
installed=$(cat "$venv/installed${dev:+-dev}" 2>/dev/null || true)
[ "$installed" = "$(checksum "${files[@]}")" ] || install "${files[@]}"
if [ -n "$model" ] && [ ! -s "$(cat "$venv/default-model" 2>/dev/null)" ]; then
    "$venv/bin/python" -c 'from backends.command import run
from models.checkpoints.default_model import default_model_path
run(lambda: print(default_model_path()), "setup")' > "$venv/default-model" ||
        die "the default model could not be fetched (see above)"
fi
