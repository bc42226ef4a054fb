#!/usr/bin/env bash
# Trains on several machines of a SLURM cluster; the flags are those of train.py. Submit it from the project's root:
#
#   sbatch --nodes 2 --gpus-per-node 4 scripts/train_slurm.sh --dataroot /data/cohort --name run1 --batch_size 16
#
# --batch_size is that of all GPUs together. A dry run on the first machine comes first. Two minutes before the end
# of the time, training saves and stops; submit the same line with --continue_train to resume.
# VENV: folder of the environment (.venv); without one, python and torchrun of the PATH are used.
#SBATCH --job-name=mask2ct
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --output=mask2ct-%j.log
set -euo pipefail
if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "train_slurm.sh: this is not a SLURM job. Submit it: sbatch --nodes 2 --gpus-per-node 4 $0 --dataroot ... --name ..." >&2
    exit 2
fi
cd "${SLURM_SUBMIT_DIR:-.}"
if ! [ -e train.py ]; then
    echo "train_slurm.sh: $PWD holds no train.py. Submit the job from the project's root." >&2
    exit 2
fi
bin=${VENV:-.venv}/bin/
[ -x "${bin}python" ] || bin=
nodes=${SLURM_JOB_NUM_NODES:-1}
gpus=${SLURM_GPUS_ON_NODE:-1}
head=$(scontrol show hostnames "${SLURM_JOB_NODELIST}" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000)) # jobs on one machine do not meet

PLANNED_WORLD_SIZE=$((nodes * gpus)) srun --nodes=1 --ntasks=1 "${bin}python" train.py "$@" --dry_run
exec srun --nodes="$nodes" --ntasks="$nodes" "${bin}torchrun" --nnodes "$nodes" --nproc_per_node "$gpus" \
    --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$head:$port" train.py "$@"
