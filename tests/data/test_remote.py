"""A remote shard has the items and bytes of the same file on disk, whatever faults come on the way."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import huggingface_hub
import numpy as np
import obstore
import pytest
import torch
from fsspec import AbstractFileSystem
from image_files import make
from torch import Tensor
from web_server import FAULTS, WebServer, faults, forget, serving

from noisystudent.console import Progress, stop_on_signal
from noisystudent.data.loader import requested_batches
from noisystudent.data.sources import Source, open_source, prefetch, remote, stores
from noisystudent.data.sources.stores import NAMING, open_store
from noisystudent.data.sources.threads import in_threads
from noisystudent.errors import InputError, RunError, Stopped


def listed(source: Source) -> list[object]:
    """Items with their bytes, and the notes."""
    read = [(*item, source.read(item.shard, item.offset, item.size, item.id)) for item in source.items()]
    return [*read, *(note.partition(": ")[2] for note in source.notes(streamed=True))]


@pytest.mark.parametrize("names", ["a.tar", "*.tar", "{a,b}.tar", "[ab].parquet", "b.parquet"])
def test_an_object_store_gives_what_the_folder_gives(shards: Path, bucket: str, names: str) -> None:
    here = open_source([str(shards / names)], labeled=True)
    there = open_source([f"{bucket}/{names}"], labeled=True)
    assert len(there) == len(here)
    assert listed(there) == listed(here)
    assert listed(pickle.loads(pickle.dumps(there))) == listed(here)
    assert there.fingerprint() == open_source([f"{bucket}/{names}"], labeled=True).fingerprint()


@pytest.mark.parametrize("kind", FAULTS)
def test_no_fault_changes_the_list_of_a_bucket(
    bucket: str, s3: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = open_source([f"{bucket}/*.tar"], labeled=True)
    monkeypatch.setattr(stores, "_SILENT_SECONDS", 0.3)
    forget()
    with serving({}, upstream=s3.removeprefix("http://")) as web:
        monkeypatch.setenv("AWS_ENDPOINT_URL", web.url)
        coming = [kind, kind]
        web.fault = lambda: coming.pop() if coming else None
        assert open_source([f"{bucket}/*.tar"], labeled=True).fingerprint() == there.fingerprint()
    assert web.faults == [kind, kind]


def test_a_remote_folder_is_its_shards_and_a_list_is_its_lines(shards: Path, bucket: str) -> None:
    names = shards / "shards.txt"
    text = f"# two places\n{bucket}/a.tar\n\n{shards}/b.tar\n"
    names.write_text(text)
    here = listed(open_source([str(shards / "*.tar")], labeled=True))
    with pytest.raises(InputError, match=r"holds a\.tar and a\.parquet"):
        open_source([bucket], labeled=True)
    store = open_store("s3://bucket", NAMING)._store  # type: ignore[attr-defined]
    obstore.delete(store, ["d/a.parquet", "d/b.parquet"])
    assert listed(open_source([bucket], labeled=True)) == here
    assert listed(open_source([f"@{names}"], labeled=True)) == here
    names.write_bytes(text.replace("\n", "\r\n").replace("# two places\r\n", "").encode("utf-8-sig"))
    assert listed(open_source([f"@{names}"], labeled=True)) == here


def test_a_list_whose_own_name_is_a_pattern_keeps_its_lines(shards: Path, bucket: str) -> None:
    names = shards / "shards[1].txt"
    names.write_text(f"{bucket}/a.tar\n")
    here = listed(open_source([shards / "a.tar"], labeled=False))
    assert listed(open_source([f"@{names}"], labeled=False)) == here


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_neighbours_come_in_one_request_and_a_second_process_makes_none(
    web: WebServer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = open_source([f"{web.url}/d/{{a,b}}.{kind}"], labeled=True)
    first = listed(there)
    assert web.gets <= 4, "each shard is smaller than a block"
    forget()
    web.requests.clear()
    assert listed(open_source([f"{web.url}/d/{{a,b}}.{kind}"], labeled=True)) == first
    assert [method for method, *_ in web.requests] == ["HEAD", "HEAD"]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_images_are_fetched_ahead_all_at_once(
    web: WebServer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK", 4096)
    there = open_source([f"{web.url}/d/{{a,b}}.{kind}"], labeled=True, cache_gb=0)
    places = [(item.shard, item.offset, item.size, item.id) for item in there.items()]
    forget()
    web.requests.clear()
    prefetch(there, places)
    fetched = web.gets
    assert 0 < fetched < len(places) / 2
    for place in places:
        there.read(*place)
    assert web.gets == fetched


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_no_fault_changes_an_image(
    shards: Path, web: WebServer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "_SILENT_SECONDS", 0.3)
    monkeypatch.setattr(remote, "BLOCK", 128)
    monkeypatch.setattr(remote, "_REQUEST", 1)  # many requests, so that every fault comes
    web.fault = faults(0.2)
    there = open_source([f"{web.url}/d/{{a,b}}.{kind}"], labeled=True, cache_gb=0)
    assert listed(there) == listed(open_source([str(shards / f"*.{kind}")], labeled=True))
    assert set(web.faults) == set(FAULTS) and web.gets > 100


@pytest.mark.parametrize(("etags", "quote"), [(True, '"'), (True, ""), (False, "")])
def test_a_shard_that_is_replaced_is_one_line(web: WebServer, etags: bool, quote: str) -> None:
    web.etags, web.quote = etags, quote
    there = open_source([f"{web.url}/d/a.tar"], labeled=True, cache_gb=0)
    places = [(item.shard, item.offset, item.size, item.id) for item in there.items()]
    forget()
    web.files["/d/a.tar"] = b"x" * len(web.files["/d/a.tar"])
    web.modified = "Fri, 02 Jan 2026 00:00:00 GMT"
    with pytest.raises(RunError, match=rf"^{web.url}/d/a\.tar was replaced while it was in use; run again"):
        there.read(*places[0])


def test_a_server_whose_answers_show_no_change_is_refused(web: WebServer) -> None:
    web.etags, web.modified = False, ""
    with pytest.raises(InputError, match=rf"^{web.url}/d/a\.tar: the server sends neither ETag nor Last-M"):
        open_source([f"{web.url}/d/a.tar"], labeled=True)


def test_what_is_escaped_in_a_url_is_no_pattern(web: WebServer) -> None:
    web.files["/d/a[1]?.tar"] = web.files["/d/a.tar"]
    there = open_source([f"{web.url}/d/a%5B1%5D%3F.tar"], labeled=True)
    assert listed(there) == listed(open_source([f"{web.url}/d/a.tar"], labeled=True))


def test_a_bucket_says_that_a_shard_is_replaced(bucket: str) -> None:
    there = open_source([f"{bucket}/a.tar"], labeled=True, cache_gb=0)
    (item, *_) = there.items()
    forget()
    obstore.put(open_store("s3://bucket", NAMING)._store, "d/a.tar", b"other")  # type: ignore[attr-defined]
    with pytest.raises(RunError, match=r"^s3://bucket/d/a\.tar was replaced"):
        there.read(item.shard, item.offset, item.size, item.id)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_worker_opens_the_store_itself(shards: Path, web: WebServer, kind: str, tmp_path: Path) -> None:
    def batch(root: str, workers: int) -> Tensor:
        spec = (f"{root}/{{a,b}}.{kind}",)
        data = make(tmp_path / f"{workers}", labeled=spec, plane="streamed", cache_gb=0)
        rows = np.random.default_rng(0).permutation(len(data.labeled))
        (pixels,) = requested_batches(
            data.labeled, iter([rows]), resolution=8, device=torch.device("cpu"), workers=workers
        )
        return pixels

    assert torch.equal(batch(f"{web.url}/d", workers=1), batch(str(shards), workers=0))
    assert web.gets > 2, "this process and the worker have both read"


def test_a_killed_listing_goes_on(web: WebServer, tmp_path: Path) -> None:
    web.files |= {f"/many/{number}.tar": web.files["/d/a.tar"] for number in range(40)}
    many = f"{web.url}/many/{{0..39}}.tar"
    web.fault = lambda: time.sleep(0.02)
    script = (
        "from noisystudent.data.sources import open_source;"
        f"list(open_source([{many!r}], labeled=True, cache_gb=0).items())"
    )
    listings = tmp_path / "cache" / "listings"
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        while not listings.exists() or len(list(listings.glob("*.arrow"))) < 5:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    done = len(list(listings.glob("*.arrow")))
    web.requests.clear()
    assert len(list(open_source([many], labeled=True, cache_gb=0).items())) == 40 * 12
    assert len({path for method, path, *_ in web.requests if method == "GET"}) == 40 - done < 40


def test_a_listing_that_is_damaged_is_made_again(web: WebServer, tmp_path: Path) -> None:
    first = listed(open_source([f"{web.url}/d/a.tar"], labeled=True))
    (kept,) = (tmp_path / "cache" / "listings").iterdir()
    kept.write_bytes(kept.read_bytes()[:50])
    assert listed(open_source([f"{web.url}/d/a.tar"], labeled=True)) == first


class Lossy:
    """A file system of fsspec that fails in every way: errors of its client, and bytes that are cut."""

    def __init__(self, files: AbstractFileSystem) -> None:
        self._files, self._calls = files, 0

    def __getattr__(self, name: str) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            self._calls += 1
            if self._calls % 3 == 0:
                raise ConnectionError("reset")
            result = getattr(self._files, name)(*arguments, **options)
            return result[:-1] if self._calls % 3 == 1 and isinstance(result, bytes) else result

        return call


def test_a_file_system_that_loses_requests_gives_all_images(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    for path in shards.glob("*.tar"):
        memory.pipe_file(f"/datasets/x/{path.name}", path.read_bytes())
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", lambda: Lossy(memory))
    monkeypatch.setattr("time.sleep", lambda _: None)
    there = open_source(["hf:///datasets/x/*.tar"], labeled=True)
    assert listed(there) == listed(open_source([str(shards / "*.tar")], labeled=True))
    with pytest.raises(
        InputError, match=r"^hf:///datasets/z\.tar: no such object, bucket or repository \(404\)$"
    ):
        open_source(["hf:///datasets/z.tar"], labeled=True)


def test_results_of_threads_come_in_order_and_a_signal_ends_the_wait() -> None:
    calls: list[int] = []

    def call(number: int) -> int:
        calls.append(number)
        time.sleep(0.01 * (number % 3))
        return -number

    assert list(in_threads(call, range(50))) == [-number for number in range(50)]
    results = in_threads(call, range(1000))
    assert next(results) == 0
    results.close()
    time.sleep(0.1)
    before = len(calls)
    time.sleep(0.1)
    assert len(calls) == before < 1050, "no further call is made"
    hanging, progress = threading.Event(), Progress()
    threading.Timer(0.2, lambda: setattr(progress.stop, "signal", "SIGTERM")).start()
    with pytest.raises(Stopped, match="SIGTERM"), stop_on_signal(progress):
        list(in_threads(hanging.wait, [60.0]))
    hanging.set()
