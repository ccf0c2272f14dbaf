"""The features of all images of a run as a stage: one pass over the images for each frozen backbone."""

from __future__ import annotations

from functools import partial

import torch

from noisystudent.config import LearnerConfig
from noisystudent.config.run import input_side
from noisystudent.distributed import group
from noisystudent.inference.embed import Views, embed_set, layout_of, layout_of_set
from noisystudent.inference.known import KnownFeatures, known_features
from noisystudent.inference.predictor import Predictor
from noisystudent.run.backbones import embedded
from noisystudent.run.fingerprint import fingerprint
from noisystudent.run.rundir import EmbeddingsDir
from noisystudent.run.stages import Stage, run_stage
from noisystudent.runtime import release_memory, resolve_dtype
from noisystudent.self_training.context import Context
from noisystudent.self_training.heads import frozen_backbone


def embed_images(context: Context) -> None:
    """Compute the features of every frozen backbone of the run for all sets, unless this was done.

    Those of a linear probe alone are not computed for the pool.

    Raises:
        InputError: the published weights are not available, or the network has no pooled features.
        RunError: a feature is not finite in float16, an image is missing, or the disk is full.
        Stopped: a signal was received. Another call resumes.
    """
    for key, (learner, pool) in embedded(context.config).items():
        embed_by(context, context.graph.embeddings[key], learner, pool=pool)


def embed_by(context: Context, stage: Stage, learner: LearnerConfig, *, pool: bool) -> None:
    """Run the stage of the backbone of `learner`, with or without the pool; see `embed_images`."""
    folder, dataset, side = EmbeddingsDir(stage.path), context.dataset, input_side(context.config, learner)
    views = Views.of(learner.augment, side, context.config.seed)

    def work() -> None:
        model = group().first(
            partial(
                frozen_backbone,
                learner.model,
                folder,
                dataset.classes,
                side,
                seed=context.config.seed,
                progress=context.progress,
            )
        )
        memory = torch.channels_last if learner.train.channels_last else torch.contiguous_format
        context.progress.say(
            f"{stage.name}: {learner.model.name}, {len(views)} views of each image, {side} pixels"
        )
        backbone = Predictor(
            models=(model.to(context.device).to(memory_format=memory).eval(),),
            classes=dataset.classes,
            device=context.device,
            dtype=resolve_dtype(learner.train.precision, context.device),
            workers=context.config.data.workers,
            path=folder.backbone,
        )
        of_any = layout_of(backbone, views)
        runs = (*context.others, context.run.path)  # its own before other labels were given
        by_pixels: dict[str, KnownFeatures | None] = {}
        sets = [dataset.labeled, dataset.val, dataset.test, dataset.pool if pool else None]
        for images in (images for images in sets if images is not None):
            layout = layout_of_set(of_any, images)
            pixels = fingerprint(layout.about)
            # A view with noise depends on the row of an image, so features with such views are computed.
            if not views.drawn and pixels not in by_pixels:
                by_pixels[pixels] = known_features(runs, layout)
            known = by_pixels.get(pixels)
            out, task = folder.features(images.name).path, f"{stage.name} of {images.name}"
            embed_set(backbone, images, views, layout, out, known=known, task=task, progress=context.progress)

    run_stage(stage, work, context.progress, shared=True)
    release_memory()
