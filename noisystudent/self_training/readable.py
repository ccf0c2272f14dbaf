"""Labelled images that one scan of a run could read and another could not."""

from __future__ import annotations

import hashlib
from pathlib import Path

from noisystudent.config import Config
from noisystudent.console import Progress
from noisystudent.data.prepare import Dataset
from noisystudent.run.aside import put_aside
from noisystudent.run.files import read_json, write_json
from noisystudent.run.fingerprint import fingerprint
from noisystudent.run.graph import Graph
from noisystudent.run.rundir import RunDir


def put_others_aside(config: Config, graph: Graph, run: RunDir, dataset: Dataset, progress: Progress) -> None:
    """Move what was made from other labelled images to `superseded/damaged/`, to be made again.

    Fingerprints are those of listings. If a disk or a store fails for a moment, a scan lacks images that the
    next one has, and val, if it is split off, is another one: a kept teacher would be judged on images that
    it was trained on.

    Raises:
        RunError: a file cannot be moved, or the disk is full.
    """
    now = {"listing": fingerprint(graph.labeled, config.seed), "readable": _digest(dataset)}
    before = read_json(run.images) if run.images.is_file() else {}
    if before == now:
        return
    if before.get("listing") == now["listing"]:
        progress.say("an earlier scan could read other labelled images; all that is of them is made again")
        for stage in reversed(graph.stages()[1:]):  # all but the scan
            for piece in filter(Path.exists, stage.pieces):
                put_aside(piece)
    write_json(run.images, now)  # last: after a kill before it, the next call moves the rest


def _digest(dataset: Dataset) -> str:
    state = hashlib.sha256()
    for images in (dataset.labeled, dataset.val, dataset.test):
        hashes = b"" if images is None else images.content_hash.tobytes()
        state.update(len(hashes).to_bytes(8) + hashes)
    return state.hexdigest()
