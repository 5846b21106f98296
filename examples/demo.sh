#!/usr/bin/env bash
# From nothing to networks drawn from noise, on scikit-learn's digits: the four scripts as one would type them.
#   bash examples/demo.sh [folder]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/demo}
launch="accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"
export HF_HUB_OFFLINE=1 # nothing is downloaded
started=$SECONDS
rm -rf "$out"/{checkpoints,autoencoder,pipeline}-state # of a demo that was interrupted

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

echo "2/4  Fit the parameter autoencoder"
$launch training/train_autoencoder.py \
    --recipe fast \
    --checkpoints "$out/checkpoints" \
    --output_dir "$out/autoencoder"

echo "3/4  Train the denoiser on the latents"
$launch training/train_denoiser.py \
    --recipe fast \
    --checkpoints "$out/checkpoints" \
    --autoencoder "$out/autoencoder" \
    --output_dir "$out/pipeline"

echo "4/4  Draw 200 networks and evaluate them beside the baselines"
$launch training/evaluate_pipeline.py \
    --pipeline "$out/pipeline" \
    --checkpoints "$out/checkpoints" \
    --num_models 200 \
    --num_baseline_models 50 \
    --output_dir "$out/report"
echo "Done in $((SECONDS - started)) s. Load it: PDiffPipeline.from_pretrained(\"$out/pipeline\")(num_models=10)"
