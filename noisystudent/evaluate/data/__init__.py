"""Published tables that stand beside the code, as text: class lists, AlexNet's errors, other models' results.

imagenet_wnids.txt     WordNet ids of ImageNet's 1000 classes in the order of a model's logits
imagenet_a_wnids.txt   the 200 of ImageNet-A, as eval.py of hendrycks/natural-adv-examples has them
imagenet_r_wnids.txt   the 200 of ImageNet-R, as eval.py of hendrycks/imagenet-r has them
alexnet.json           what mCE and mFR divide by; it names its sources
anchors.json           published results; each table names its source
"""

from __future__ import annotations

from importlib import resources


def read_text(name: str) -> str:
    """The table `name`, a file of this folder."""
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")
