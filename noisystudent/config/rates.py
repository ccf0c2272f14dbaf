"""Learning rates for trainings whose recipe gives none, by initial weights and family of the network."""

from __future__ import annotations

from collections.abc import Mapping

SCRATCH, BATCH_NORM, OTHER_NORM, LORA = "scratch", "batch norm", "other norm", "LoRA"

# For 256 labelled images per step, as `train.lr`. They are starting points and were not tuned here. Sources:
# scratch: He et al. 2016 (sgd), Xie et al. 2020 (rmsprop_tf), Liu et al. 2021 and 2022 (adamw: 1e-3 for 1,024
#   images, 4e-3 for 4,096).
# batch norm, such as ResNet and EfficientNet: Kornblith et al. 2019 (sgd).
# other norm, such as ViT, Swin and ConvNeXt, which need smaller steps: Steiner et al. 2022 (sgd: 1e-3 to 3e-2
#   for 512 images), Liu et al. 2022 (adamw: 5e-5 for 512 images).
# LoRA, whose factors start at 0: Hu et al. 2022 (adamw: 2e-4 to 5e-4 for 8 to 128 examples).
# No source gives the rest: rmsprop_tf has about a tenth of the rate of sgd, and adamw is for batches of 32 to
# 128 images, which get an eighth to a half of it. Papers with small batches do not lower it as much.
LEARNING_RATES: Mapping[str, Mapping[str, float]] = {
    SCRATCH: {"sgd": 0.1, "rmsprop_tf": 0.016, "adamw": 2.5e-4},
    BATCH_NORM: {"sgd": 0.01, "rmsprop_tf": 1.6e-3, "adamw": 1e-3},
    OTHER_NORM: {"sgd": 3e-3, "rmsprop_tf": 5e-4, "adamw": 1e-4},
    LORA: {"sgd": 0.1, "rmsprop_tf": 1e-3, "adamw": 1e-3},
}
"""Initial weights or family -> optimiser -> learning rate."""
