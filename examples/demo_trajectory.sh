#!/usr/bin/env bash
# The setting of the p-diff paper on scikit-learn's digits: the last two norms of a network, along one training.
#   bash examples/demo_trajectory.sh [folder]
set -euo pipefail
out=${1:-runs/demo-trajectory}
source "$(dirname "$0")/steps.sh"

echo "1/4  Train a small ResNet on 700 digits, then record 300 checkpoints of its last two norms"
$launch training/collect_trajectory.py \
    --dataset_name digits \
    --image_size 16 \
    --model_type resnet \
    --model_config '{"embedding_size": 32, "hidden_sizes": [32, 64], "depths": [1, 1], "layer_type": "basic"}' \
    --subset last_norms \
    --learning_rate 0.1 \
    --augmentation_shift 2 \
    --augmentation_noise 1.4 \
    --output_dir "$out/checkpoints"

fit_and_audit
