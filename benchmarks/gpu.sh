#!/usr/bin/env bash
# Whole networks with wider denoisers and longer training than two processor cores allow, in ten minutes on one GPU:
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
python benchmarks/whole_networks.py --cases mlp_16 mlp_16_16 --seeds 0 --width 256 --max_train_steps 15000 \
    --output_dir "$folder"
