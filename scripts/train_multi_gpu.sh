#!/usr/bin/env bash
# Trains on several GPUs of this machine; the flags are those of train.py.
#
#   bash scripts/train_multi_gpu.sh 4 --dataroot /data/cohort --name run1 --preset 80gb --batch_size 8
#
# --batch_size is that of all GPUs together. A dry run comes first, so that an error is reported once, not by every process.
# VENV: folder of the environment (.venv); without one, python and torchrun of the PATH are used.
set -euo pipefail
cd "$(dirname "$0")/.."
count=${1:-}
if ! [[ $count =~ ^[1-9][0-9]*$ ]]; then
    echo "train_multi_gpu.sh: the first word is '$count'; it must be the number of GPUs: bash $0 N --dataroot ... --name ..." >&2
    exit 2
fi
shift
present=$( (nvidia-smi -L 2>/dev/null || true) | grep -c '^GPU' || true)
if [ "$present" -gt 0 ] && [ "$count" -gt "$present" ]; then
    echo "train_multi_gpu.sh: $count GPUs are asked for, and this machine has $present. Give $present or less." >&2
    exit 2
fi
bin=${VENV:-.venv}/bin/
[ -x "${bin}python" ] || bin=

PLANNED_WORLD_SIZE=$count "${bin}python" train.py "$@" --dry_run
exec "${bin}torchrun" --standalone --nproc_per_node "$count" train.py "$@"
