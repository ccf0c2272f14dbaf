"""Features of a frozen backbone for the clean view of every image, its mirror image, and views with noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import cycle, tee
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.augment import ops, plan
from noisystudent.augment.policies import Policy, build_policy
from noisystudent.config import AugmentConfig
from noisystudent.console import Progress
from noisystudent.data.duplicates import Contents
from noisystudent.data.imageset import ImageSet
from noisystudent.embeddings.embed import embed_images, is_of_other_images, part_rows
from noisystudent.embeddings.parts import Features, Layout, layout_in, read_index
from noisystudent.errors import InputError
from noisystudent.inference.images import Images, open_images, scanned, stored_side
from noisystudent.inference.known import KnownFeatures
from noisystudent.inference.predictor import Predictor
from noisystudent.models.classifier import Classifier
from noisystudent.models.weights import weights_digest
from noisystudent.run.checksums import checksum
from noisystudent.run.files import write_table
from noisystudent.run.fingerprint import fingerprint
from noisystudent.run.lock import lock
from noisystudent.run.rundir import PartsDir

_IDS = 65_536  # ids that are in memory at once
_OF_TRAINING = ("mix", "labeled", "pool")  # fields of AugmentConfig that no view depends on
_OF_VIEWS = ("flip", "views")  # those that say which views are stored


@dataclass(frozen=True, slots=True)
class Views:
    """Views of an image whose features are stored.

    Attributes:
        flip: True: the mirrored view comes after the clean one.
        drawn: number of views with input noise, which come last.
        policy: distribution of this noise.
        seed: seed of the noise.
    """

    flip: bool
    drawn: int
    policy: Policy
    seed: int

    @staticmethod
    def of(config: AugmentConfig, resolution: int, seed: int) -> Views:
        """Return the views that a configuration asks for."""
        return Views(config.flip, config.views, build_policy(config, resolution), seed)

    def __len__(self) -> int:
        return 1 + self.flip + self.drawn

    def about(self) -> dict[str, Any]:
        """Return what the pixels of the views depend on, as JSON can store it."""
        noise = {"noise": fingerprint(asdict(self.policy), self.seed)} if self.drawn else {}
        return {"flip": self.flip, "drawn": self.drawn, **noise}


def embed_set(
    backbone: Predictor,
    images: ImageSet,
    views: Views,
    layout: Layout,
    out: Path,
    *,
    known: KnownFeatures | None = None,
    task: str,
    progress: Progress,
) -> Features:
    """Store the features of all images of a set; see `embed_images`.

    Args:
        backbone: predictor whose model is a `Classifier`; its classifier is not used.
        images: the whole set.
        views: views of each image.
        layout: that of `layout_of_set`.
        out: folder of the parts.
        known: features of other runs, which are copied. None: all are computed.
        task, progress: name of this work and its display.

    Raises:
        RunError: a feature is not finite, an image is missing, or the disk is full.
        Stopped: a signal was received. Another call resumes.
    """
    images = images.at(layout.about["resolution"])
    copies = Contents(images.index, np.ones(len(images), np.bool_)).copies()

    def features(requests: Iterator[NDArray[np.int64]]) -> Iterator[Tensor]:
        if known is None:
            return _features(backbone, images, views, requests)
        return _copied_or_computed(backbone, images, views, known, requests)

    return embed_images(
        features,
        images.ids,
        images.content_hash,
        copies,
        layout=layout,
        batch_size=backbone.size,
        out=out,
        task=task,
        progress=progress,
    )


def embed(
    predictor: Predictor,
    images: Images,
    out: Path,
    *,
    augment: AugmentConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Features, list[tuple[str, str]]]:
    """Store the features of images in `out`, and their names in `images.parquet` there.

    A stopped call continues after the last complete part when it is called again.

    Args:
        predictor: a trained model; its classifier is not used.
        images: the images, in any of the forms of `Images`.
        out: folder to write to; new, empty, or with features of the same model, views and images. More images
            may follow them.
        augment: `flip` and `views` say which views are stored. None: the clean and the mirrored one.
        seed: seed of the views with noise.
        progress: shows the progress; None: nothing is shown.

    Returns:
        The features, and (name, reason) of every image that could not be read.

    Raises:
        InputError: `out` holds features of another model, other views or other images or is in use, or the
            model has no features, or `augment` has an option that no stored view depends on.
    """
    if augment is not None:
        _refuse_options_without_effect(augment)
    progress, source = progress or Progress(), open_images(images, labeled=False)
    side, folder = predictor.side or predictor.resolution, PartsDir(out)
    views = Views.of(augment or AugmentConfig(), side, seed)
    with lock(out, "embedding"):
        layout = layout_of(predictor, views)
        _check_owner(folder, layout)
        with scanned(source, None, progress, stored=stored_side(predictor)) as (readable, bad):
            if is_of_other_images(folder, readable.content_hash):
                raise InputError(f"--out {out} holds the features of other images; choose another folder")
            layout = layout_of_set(layout, readable)
            features = embed_set(predictor, readable, views, layout, out, task="embedding", progress=progress)
            write_table(folder.images, _names(readable))
    return features, bad


def _refuse_options_without_effect(augment: AugmentConfig) -> None:
    for option in (field.name for field in fields(AugmentConfig) if field.name not in _OF_VIEWS):
        value = getattr(augment, option)
        if value == getattr(AugmentConfig(), option) or (augment.views and option not in _OF_TRAINING):
            continue
        why = "it applies only to the training of a head" if option in _OF_TRAINING else "augment.views is 0"
        raise InputError(f"augment.{option} is {value}, but {why}, so no view depends on it; remove it")


def layout_of(backbone: Predictor, views: Views) -> Layout:
    """Return what the parts of any images have in common; their number is left 0.

    The number of features is found with one black image.

    Raises:
        InputError: the model has no pooled features.
    """
    model, side = _classifier(backbone), backbone.side or backbone.resolution
    probe = embedded_batch(
        backbone, torch.zeros((1, 3, side, side), dtype=torch.uint8, device=backbone.device)
    )
    if probe.ndim != 2:
        raise InputError(f"{model.name} has features {tuple(probe.shape)}, not one vector for each image")
    # Those that timm publishes under a name change with its version.
    weights = weights_digest(model) if backbone.path is None else checksum(backbone.path)
    about = {"model": model.name, "weights": weights, "resolution": side, "dtype": str(backbone.dtype)}
    width = probe.shape[1]
    return Layout(0, len(views), width, part_rows(len(views), width), about | views.about())


def layout_of_set(layout: Layout, images: ImageSet) -> Layout:
    """Return the layout of a set, from that of any images with the same backbone and views."""
    about = layout.about | images.about(layout.about["resolution"])
    return replace(layout, rows=len(images), about=about)


def _classifier(backbone: Predictor) -> Classifier:
    if isinstance(backbone.model, Classifier):
        return backbone.model
    raise InputError(f"{backbone.path} has no features; give a run, a model folder or a .safetensors file")


@torch.inference_mode()
def embedded_batch(backbone: Predictor, images: Tensor) -> Tensor:
    """Return the features (B, F) of images (B, 3, S, S) uint8."""
    images, enabled = images.to(backbone.device), backbone.dtype != torch.float32
    with torch.autocast(backbone.device.type, backbone.dtype, enabled=enabled):
        return _classifier(backbone).features(images)


def _features(
    backbone: Predictor, images: ImageSet, views: Views, requests: Iterator[NDArray[np.int64]]
) -> Iterator[Tensor]:
    """Yield the features (V, b, F) of the rows of each request."""
    cropped = views.drawn > 0 and views.policy.crop == "inception"
    requests, drawn_for = tee(requests)
    # An Inception crop is cut from the original image, so every such view is decoded anew.
    decodings = range(1 + views.drawn if cropped else 1)
    numbers = cycle(decodings)

    def boxes(rows: NDArray[np.int64]) -> NDArray[np.float32] | None:
        number = next(numbers)  # called once for each decoding, in order
        if number == 0:
            return None
        stream, sizes = _stream(images, number), images.view_sizes(rows)
        return plan.crop_boxes_of_rows(views.policy, views.seed, stream, rows, sizes)

    decoded = backbone.requested_views(
        images, (rows for rows in requests for _ in decodings), boxes if cropped else None
    )
    for rows in drawn_for:
        clean = next(decoded)
        pixels = [clean, clean.flip(3)] if views.flip else [clean]
        for number in range(1, views.drawn + 1):
            noise = plan.draw_rows(
                views.policy, views.seed, _stream(images, number), rows, resolution=clean.shape[-1]
            )
            pixels.append(ops.apply(next(decoded) if cropped else clean, noise))
        yield torch.stack([embedded_batch(backbone, view) for view in pixels])


def _copied_or_computed(
    backbone: Predictor,
    images: ImageSet,
    views: Views,
    known: KnownFeatures,
    requests: Iterator[NDArray[np.int64]],
) -> Iterator[Tensor]:
    """Yield the features (V, b, F) of the rows of each request; known ones are not computed."""
    hashes = partial(images.index.take, "content_hash")
    # Decoding is ahead, by any number of known images, so values are read when they are wanted.
    ahead, drawn = tee((rows, known.has(hashes(rows))) for rows in requests)
    computed = _features(backbone, images, views, (rows[~old] for rows, old in ahead if not old.all()))
    for rows, old in drawn:
        values = known(hashes(rows))
        if not old.all():
            new = next(computed)
            values = values.to(new.device, new.dtype)
            values[:, torch.from_numpy(~old)] = new
        yield values


def _stream(images: ImageSet, number: int) -> str:
    """Random stream of a view with noise."""
    return f"embeddings/{images.name}/{number}"


def _check_owner(folder: PartsDir, layout: Layout) -> None:
    """Raise unless the folder is free, or has features of the same model and views."""
    index = read_index(folder)
    if index is None and folder.parts():
        raise InputError(
            f"--out {folder.path} holds features, but no readable parts.json; choose a new folder"
        )
    if index is not None and layout_in(index).about != layout.about:
        raise InputError(
            f"--out {folder.path} holds features of another model or of other views; choose another folder"
        )


def _names(images: ImageSet) -> pa.Table:
    """Row, id and content hash of each image."""
    cuts = [np.arange(start, min(start + _IDS, len(images))) for start in range(0, len(images), _IDS)]
    hashes = images.content_hash
    return pa.table(
        {
            "row": pa.array(np.arange(len(images))),
            "id": pa.chunked_array([pa.array(images.ids(rows), pa.string()) for rows in cuts], pa.string()),
            "content_hash": pa.array([row.tobytes() for row in hashes], pa.binary(16)),
        }
    )
