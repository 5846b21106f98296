#!/usr/bin/env bash
# Networks for tasks that nobody trained: is the digit in this subset? For some subsets networks are trained, for others
# they are drawn.
#   bash examples/demo_conditional.sh [folder]
set -euo pipefail
out=${1:-runs/demo-conditional}
source "$(dirname "$0")/steps.sh"

echo "1/4  Train 12 networks for each of 136 subsets of the ten digits, on 700 images; 40 of the subsets are held out"
$launch training/collect_runs.py \
    --dataset_name digits \
    --image_size 8 \
    --model_type pdiff_mlp \
    --model_config '{"hidden_sizes": [16]}' \
    --subset full \
    --tasks subsets \
    --num_tasks 96 \
    --num_validation_tasks 16 \
    --num_test_tasks 24 \
    --runs_per_task 12 \
    --target_train_steps 500 \
    --target_learning_rate 0.01 \
    --adam_weight_decay 1 \
    --canonicalize \
    --output_dir "$out/checkpoints"

figure=conditions.png condition="2 3 5 7" # networks that tell prime numbers from the other digits
# In a third of the recipe's steps the full weight on functions would push networks off the zoo.
fit_and_audit --max_train_steps 2200 --function_weight 0.5 --ema_decay 0.998
