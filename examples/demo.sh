#!/usr/bin/env bash
# Whole networks from noise: independent trainings of a small MLP on scikit-learn's digits, and a generator of them.
#   bash examples/demo.sh [folder]
set -euo pipefail
out=${1:-runs/demo}
source "$(dirname "$0")/steps.sh"

echo "1/4  Train 1,200 networks on 700 digits, each from its own random initialization; 200 of them are held out"
$launch training/collect_runs.py \
    --dataset_name digits \
    --image_size 8 \
    --model_type pdiff_mlp \
    --model_config '{"hidden_sizes": [16]}' \
    --subset full \
    --num_runs 1000 \
    --num_validation_runs 100 \
    --num_test_runs 100 \
    --target_train_steps 500 \
    --target_learning_rate 0.01 \
    --adam_weight_decay 1 \
    --canonicalize \
    --output_dir "$out/checkpoints"

fit_and_audit --max_train_steps 2000
