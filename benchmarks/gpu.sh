#!/usr/bin/env bash
# Speed and memory on one GPU in about eight minutes.
#
#   bash benchmarks/gpu.sh OUT [--reference DGM-VLC] [--minutes 8]
#
# OUT/figures.json is written after every part; see benchmarks/gpu.py. --tiny tries it without a GPU. VENV: see scripts/setup_env.sh.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${VENV:-$root/.venv}/bin/python
[ -x "$python" ] || python=python3
exec "$python" "$root/benchmarks/gpu.py" "$@"
