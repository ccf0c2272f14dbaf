"""Published tables as text files: class lists, AlexNet's errors and other models' results.

imagenet_wnids.txt     WordNet ids of ImageNet's 1000 classes in the order of a model's logits
imagenet_a_wnids.txt   the 200 classes of ImageNet-A, from eval.py of hendrycks/natural-adv-examples
imagenet_r_wnids.txt   the 200 classes of ImageNet-R, from eval.py of hendrycks/imagenet-r
alexnet.json           AlexNet's results, by which mCE and mFR divide; it names its sources
anchors.json           published results; each table names its source
"""

from __future__ import annotations

from importlib import resources


def read_text(name: str) -> str:
    """Text of the file `name` in this folder."""
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")
