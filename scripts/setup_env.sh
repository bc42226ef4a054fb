#!/usr/bin/env bash
# Makes the virtual environment and installs a requirements file into it, unless that is done already.
#
#   bash scripts/setup_env.sh [requirements.txt]
#
# VENV    folder of the environment (.venv); an existing one is used
# PYTHON  interpreter to make it with (the first of python3, python3.12, python3.11, python3.10 that is 3.10 to 3.12)
set -euo pipefail
cd "$(dirname "$0")/.."
requirements=${1:-requirements.txt}
venv=${VENV:-.venv}

fail() {
    echo "setup_env.sh: $*" >&2
    exit 2
}

suits() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

if [ -e "$venv" ] && ! suits "$venv/bin/python"; then
    fail "$venv has no Python 3.10, 3.11 or 3.12 that runs. Remove it (rm -r $venv), or choose another folder: VENV=FOLDER."
fi

if ! [ -e "$venv" ]; then
    chosen=
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.10}; do
        if suits "$candidate"; then
            chosen=$candidate
            break
        fi
    done
    [ -n "$chosen" ] || fail "needs Python 3.10, 3.11 or 3.12, and found: $(${PYTHON:-python3} --version 2>&1 || true)." \
        "Install one of these, or name it: PYTHON=/path/to/python3.11 bash $0"
    echo "Making $venv with $("$chosen" --version)"
    if ! "$chosen" -m venv "$venv"; then
        rm -rf "$venv"
        fail "$chosen cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv"
    fi
fi

# The versions are those of constraints.txt, with which the tests passed. A stamp with their hash records what is installed.
wanted=$(cat requirements*.txt constraints.txt "$requirements" | sha256sum | cut -d ' ' -f 1)
stamp=$venv/.installed-$(basename "$requirements")
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    echo "Installing $requirements into $venv (the first time some gigabytes; later starts skip this)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements" -c constraints.txt ||
        fail "$requirements could not be installed; see the message of pip above. Run this again to resume."
    echo "$wanted" >"$stamp"
fi
