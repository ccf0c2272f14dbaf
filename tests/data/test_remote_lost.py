"""A remote shard that is lost: its images are in the ledger, and they stop the run by default."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_files import labeled_folder, random_images, table, write_folder
from shard_files import tarred
from web_server import WebServer, forget

from noisystudent.config import DataConfig
from noisystudent.console import Progress
from noisystudent.data.listing import list_sets
from noisystudent.data.prepare import open_dataset, prepare
from noisystudent.data.sources import open_sources
from noisystudent.errors import InputError
from noisystudent.run.rundir import DataDir


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("listed_before", [True, False])
def test_a_shard_that_is_lost_is_in_the_ledger(
    web: WebServer, kind: str, listed_before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = f"{web.url}/d/{{a,b}}.{kind}"
    config = DataConfig(
        labeled=(str(labeled_folder(tmp_path / "labeled", seed=9)),),
        unlabeled=(pool,),
        cache_gb=0,
        workers=0,
        resolution=8,
        max_bad_fraction=0.5,
    )
    sources, out = open_sources(config), DataDir(tmp_path / "out")
    listings = list_sets(sources, tmp_path / "listings", config, Progress()) if listed_before else None
    del web.files[f"/d/b.{kind}"]
    forget()
    prepare(config, sources, out, 0, Progress(), listings=listings)
    rows = table(out.ledger)
    assert len(rows) == (12 if listed_before else 1)
    assert {(row["set"], row["reason"]) for row in rows} == {
        ("pool", "cannot be read: no such object, bucket or repository (404)")
    }
    assert len(open_dataset(out, config, sources).pool) == 12


def test_a_small_shard_that_is_lost_after_its_listing_stops_the_run(web: WebServer, tmp_path: Path) -> None:
    """Its images would be left out of every later call too, and it may only be out of reach for an hour."""
    pool = write_folder(tmp_path / "pool", random_images(121, seed=5), lambda number: f"{number:03d}.png")
    files = sorted(pool.iterdir())
    web.files |= {
        f"/small/{name}.tar": tarred(pool, tmp_path / f"{name}.tar", files=part).read_bytes()
        for name, part in (("a", files[1:]), ("b", files[:1]))
    }
    labeled, small = (str(labeled_folder(tmp_path / "labeled")),), (f"{web.url}/small/{{a,b}}.tar",)
    config = DataConfig(labeled=labeled, unlabeled=small, cache_gb=0, workers=0, resolution=8)
    sources, out = open_sources(config), DataDir(tmp_path / "out")
    listings = list_sets(sources, tmp_path / "listings", config, Progress())
    del web.files["/small/b.tar"]
    forget()
    with pytest.raises(
        InputError, match=r"^pool: shards have lost images, or .*; the first is .*000\.png \(.*404"
    ):
        prepare(config, sources, out, 0, Progress(), listings=listings)
