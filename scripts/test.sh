#!/usr/bin/env bash
# Runs formatter, linter, type checker and all tests, in the environment that setup_env.sh makes (VENV, PYTHON: see there).
#
#   bash scripts/test.sh                  everything, as CI does; two tests at a time
#   bash scripts/test.sh -m 'not slow'    without the tests that start, kill and resume processes
#   bash scripts/test.sh -k cohort        further words go to pytest
#
# JOBS    tests that run at once (2)
set -uo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup_env.sh requirements-dev.txt || exit
python=${VENV:-.venv}/bin/python
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # of each test process

failed=()
"$python" -m ruff format --check . || failed+=("ruff format")
"$python" -m ruff check . || failed+=("ruff check")
"$python" -m mypy . || failed+=(mypy)
"$python" -m pytest -n "${JOBS:-2}" --dist loadfile --no-loadscope-reorder "$@" || failed+=(pytest)

if [ ${#failed[@]} -gt 0 ]; then
    echo "Failed: ${failed[*]}" >&2
    exit 1
fi
