#!/usr/bin/env bash
# From nothing to a page of synthetic chest CT: phantom cohort, the cohort's own CLIP, training, testing.
#
#   bash scripts/demo.sh            ten to thirty minutes on two CPU cores after the installation; a GPU is used if there is one
#   SMOKE=1 bash scripts/demo.sh    the same steps on tiny volumes in a minute; the pictures mean nothing
#
# Finished parts are used again, and an interrupted demo resumes. All files lie in demo/ (or demo/smoke/); remove that
# folder to start again. VENV and PYTHON: see setup_env.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup_env.sh requirements.txt
python=${VENV:-.venv}/bin/python

demo=demo
cohort=() clip=() train=()
if [ "${SMOKE:-0}" != 0 ]; then
    demo=demo/smoke
    cohort=(--size 32,32,24 --cases 16)
    clip=(--clip_steps 20 --clip_size 16,16,16)
    train=(--patch_size 16,16,8 --max_steps 20 --batch_size 2 --ngf 8 --ndf 8 --val_cases 1 --val_freq 10)
else
    cohort=(--cases 96)
    train=(--max_steps 600) # half of what the preset takes: enough to see the effects
fi
run=$demo/checkpoints/phantoms
results=$demo/results/phantoms/test_latest
common=(--name phantoms --checkpoints_dir "$demo/checkpoints")

echo "1/4 Phantom cohort"
"$python" scripts/make_phantoms.py "$demo/cohort" "${cohort[@]}"

echo "2/4 The cohort's own CLIP"
"$python" scripts/pretrain_clip.py --dataroot "$demo/cohort" --template aiib23 --out "$demo/clip" "${clip[@]}"

echo "3/4 Training"
if [ -e "$run/latest/state.json" ] || [ -e "$run/.latest.previous/state.json" ]; then
    how=(--continue_train)
elif [ -e "$run" ]; then
    how=(--overwrite) # stopped before its first checkpoint
else
    how=()
fi
if [ "${how[*]:-}" = --continue_train ]; then
    "$python" train.py "${common[@]}" --continue_train
else
    "$python" train.py "${common[@]}" "${how[@]}" --dataroot "$demo/cohort" --template aiib23 --text_encoder "$demo/clip" \
        --preset cpu --val_effect "SMOKING HISTORY=Never smoker,Current smoker" --save_latest_freq 100 "${train[@]}"
fi

echo "4/4 Testing"
if [ "$results/index.html" -nt "$run/latest/state.json" ]; then
    echo "$results is there already."
else
    again=()
    [ ! -e "$results" ] || again=(--overwrite)
    "$python" test.py "${common[@]}" --dataroot "$demo/cohort" --results_dir "$demo/results" "${again[@]}" \
        --vary "SMOKING HISTORY=Never smoker,Ex smoker,Current smoker" --vary "DIAGNOSIS=HP,CTD-ILD,IPF"
fi

echo
echo "Synthetic volumes, and effects of smoking and diagnosis: $PWD/$results/index.html"
echo "Progress of the training:                                $PWD/$run/web/index.html"
