#!/usr/bin/env bash
# Speed and memory on one GPU in about eight minutes: a step, a training, a volume.
#
#   bash benchmarks/gpu.sh OUT
#
# OUT gets step.json, the logs of both trainings, and seconds.txt with wall time and peak GPU memory of each part. SMOKE=1 takes
# tiny sizes, to try the script without a GPU. VENV: see scripts/setup_env.sh.
set -euo pipefail
out=$(mkdir -p "${1:?Give a folder for the figures: bash benchmarks/gpu.sh OUT}" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${VENV:-.venv}/bin/python
[ -x "$python" ] || python=python3

if [ "${SMOKE:-0}" != 0 ]; then
    step=(--ngf 8 --n_downsample_global 2 --n_blocks_global 1 --patch_size 16,16,16 --steps 1)
    size=32,32,24 steps=3 presets=(cpu)
    small=(--patch_size 16,16,16 --batch_size 2)
else
    step=(--steps 20)
    size=192,192,128 steps=60 presets=(24gb 80gb)
    small=()
fi

# Run a command, and note its wall time and the peak of the GPU's memory, polled twice a second.
timed() {
    local name=$1 start peak=0 poll=0
    shift
    start=$SECONDS
    if command -v nvidia-smi >/dev/null; then
        (while sleep 0.5; do nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | head -1; done) \
            >"$out/memory_$name.txt" 2>/dev/null &
        poll=$!
    fi
    "$@" 2>&1 | tee "$out/$name.log"
    if [ "$poll" != 0 ]; then
        kill "$poll" 2>/dev/null || true
        peak=$(sort -n "$out/memory_$name.txt" | tail -1)
    fi
    echo "$name $((SECONDS - start)) s, ${peak:-0} MiB of GPU memory" | tee -a "$out/seconds.txt"
}

: >"$out/seconds.txt"
timed step "$python" benchmarks/step.py "${step[@]}" --out "$out/step.json"
timed cohort "$python" scripts/make_phantoms.py "$out/cohort" --cases 12 --size "$size" --test_cases 1 --val_cases 1
for preset in "${presets[@]}"; do
    common=(--name "$preset" --checkpoints_dir "$out/runs" --dataroot "$out/cohort")
    timed "train_$preset" "$python" train.py "${common[@]}" --preset "$preset" "${small[@]}" --template aiib23 \
        --text_encoder table --max_steps "$steps" --val_cases 0 --log_freq 1 --num_workers 4 --overwrite
    timed "generate_$preset" "$python" test.py "${common[@]}" --results_dir "$out/results" --no-page --overwrite \
        --vary "SMOKING HISTORY=Never smoker,Current smoker"
done
cat "$out/seconds.txt"
