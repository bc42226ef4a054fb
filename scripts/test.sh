#!/usr/bin/env bash
# Runs the linters and the whole test suite, in the environment that it sets up (VENV and PYTHON: see setup_env.sh).
# Further words go to pytest: bash scripts/test.sh -k cohort
set -uo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup_env.sh requirements-dev.txt || exit
python=${VENV:-.venv}/bin/python

failed=()
"$python" -m ruff format --check . || failed+=("ruff format")
"$python" -m ruff check . || failed+=(ruff)
"$python" -m mypy . || failed+=(mypy)
"$python" -m pytest "$@" || failed+=(pytest)

if [ ${#failed[@]} -gt 0 ]; then
    echo "Failed: ${failed[*]}" >&2
    exit 1
fi
