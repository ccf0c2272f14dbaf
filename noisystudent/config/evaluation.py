"""Configuration of the evaluation of the models and of the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from noisystudent.config.fields import MOST_IMAGES, check_ranges, number
from noisystudent.errors import require


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Evaluation of the models and the verdict."""

    batch_size: int = number(512, least=1, most=MOST_IMAGES, neutral=True)
    """Batch size used when a model is evaluated, or a smaller one for large images. A GPU doubles it for a
    large set if that is faster, unless train.execution is eager. It can change the last digits of a
    probability."""
    ece_bins: int = number(15, least=1, most=10_000)
    """Number of bins of the expected calibration error."""
    resamples: int = number(10_000, least=1, most=1_000_000)
    """Number of bootstrap resamples for the intervals of the verdict."""
    level: float = number(0.95, above=0, below=1)
    """Confidence level of every interval."""
    tests: tuple[Literal["c", "p", "fgsm", "pgd", "calibration"], ...] = ()
    """Robustness tests of every model. c: corruptions, p: perturbations, fgsm and pgd: attacks, calibration:
    whether the confidence on clean images is right."""
    severities: tuple[int, ...] = number((1, 2, 3, 4, 5), least=1, most=5)
    """Severities of the corruptions, 1 (weak) to 5 (strong)."""
    sample: int | None = number(None, least=1)
    """Number of images for the robustness tests, a stratified sample. None: all images."""
    frost: str | None = None
    """Folder of the photographs for the corruption frost. None: those of the package
    imagecorruptions-imaug. Without that package, only the 14 other corruptions are measured."""

    def __post_init__(self) -> None:
        check_ranges(self, "evaluate.")
        ascending = list(self.severities) == sorted(set(self.severities))
        require(
            bool(self.severities) and ascending,
            f"evaluate.severities is {list(self.severities)}; give some of 1, 2, 3, 4, 5, in this order",
        )
