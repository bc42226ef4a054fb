#!/usr/bin/env bash
# Score any generator that writes NIfTI on the standard set.
#
#   benchmarks/standard/run.sh "RUN_COMMAND" OUT [--groups sparse] [--chests FOLDER] [--name NAME]
#
# RUN_COMMAND is called as `RUN_COMMAND train TRAIN WORK` and `RUN_COMMAND generate TEST WORK VOLUMES`; see
# docs/howto/standard_benchmark.md. VENV: see scripts/setup_env.sh.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${VENV:-$root/.venv}/bin/python
[ -x "$python" ] || python=python3
exec "$python" "$root/benchmarks/standard/run.py" "$@"
