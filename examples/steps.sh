# What both demos share: `$out` is the folder of their results; they run as if from the root of the repository.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
launch="accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"
export HF_HUB_OFFLINE=1 # nothing is downloaded
started=$SECONDS
rm -rf "$out"/{checkpoints,autoencoder,pipeline}-state # of a demo that was interrupted

# Fits a generator to "$out/checkpoints" and audits it; the arguments are flags of the denoiser's training.
fit_and_audit() {
    echo "2/4  Fit the parameter autoencoder"
    $launch training/train_autoencoder.py \
        --checkpoints "$out/checkpoints" \
        --output_dir "$out/autoencoder"

    echo "3/4  Train the denoiser on the latents"
    $launch training/train_denoiser.py \
        --checkpoints "$out/checkpoints" \
        --autoencoder "$out/autoencoder" \
        --output_dir "$out/pipeline" "$@"

    echo "4/4  Draw 200 networks and evaluate them beside the baselines"
    $launch training/evaluate_pipeline.py \
        --pipeline "$out/pipeline" \
        --checkpoints "$out/checkpoints" \
        --num_models 200 \
        --num_baseline_models 50 \
        --output_dir "$out/report"

    echo "Done in $((SECONDS - started)) s. The figure to look at first: $out/report/${figure:-accuracy_novelty.png}"
    echo "Next: pdiff-hf sample $out/pipeline --num_models 10${condition:+ --condition $condition} --output_dir drawn"
    echo "  or: PDiffPipeline.from_pretrained(\"$out/pipeline\")(num_models=10${condition:+, condition=[\"${condition// /\", \"}\"]}) in Python"
    echo "Your own networks: docs/whole_networks.md and README.md"
}
