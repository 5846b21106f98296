#!/usr/bin/env bash
# The whole-network zoos of digits and their generators on one GPU, side by side: one training does not fill it, and is
# bound by the processor core that feeds it.
#
#     bash benchmarks/gpu.sh [folder]
set -euo pipefail
folder=${1:-runs/gpu}
python - <<'PYTHON'
import sys

import torch

if not torch.cuda.is_available():
    sys.exit("No GPU was found; run benchmarks/whole_networks.py, which needs none.")
print(torch.cuda.get_device_name())
PYTHON
mkdir -p "$folder"
export OMP_NUM_THREADS=1
for seed in 0 1 2; do  # the first seed collects the zoos
    for case in mlp_16 mlp_16_16 convnet; do
        python benchmarks/whole_networks.py --cases "$case" --seeds "$seed" --output_dir "$folder" \
            >"$folder/$case-$seed.log" 2>&1 &
    done
    if [ "$seed" = 0 ]; then wait; fi
done
wait
python benchmarks/whole_networks.py --cases mlp_16 --seeds 0 --output_dir "$folder"
