"""A remote shard has the items and bytes of the file it is; faults change nothing but the number of requests."""

from __future__ import annotations

import glob
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import huggingface_hub
import pytest
from fsspec import AbstractFileSystem
from hypothesis import assume, given
from hypothesis import strategies as st
from image_files import labeled_folder, table
from moto.server import ThreadedMotoServer
from shard_files import contents, parquet, tarred
from web_server import WebServer, faults, serving

from noisystudent.config import DataConfig
from noisystudent.console import Progress
from noisystudent.data.listing import list_sets
from noisystudent.data.prepare import open_dataset, prepare
from noisystudent.data.sources import Source, open_source, open_sources, prefetch, remote, stores
from noisystudent.data.sources.cache import BLOCK, BlockFile, key_of
from noisystudent.data.sources.names import _braced, _pattern
from noisystudent.data.sources.stores import open_store
from noisystudent.errors import InputError, RunError
from noisystudent.run.rundir import DataDir


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty cache, nothing in memory, and stores that are opened with the limits of the test."""
    monkeypatch.setenv("NOISYSTUDENT_CACHE", str(tmp_path / "cache"))
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    forget(monkeypatch)
    yield
    open_store.cache_clear()


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process would not have."""
    monkeypatch.setattr(remote, "_memory", remote._Memory())
    open_store.cache_clear()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two tar files and two Parquet files of 12 images each."""
    for number, name in enumerate(("a", "b")):
        folder = labeled_folder(tmp_path / name, seed=number)
        (folder / "c0" / "notes.docx").write_bytes(b"x")
        tarred(folder, tmp_path / f"{name}.tar")
        images = [data for _, data in contents(open_source([folder], labeled=True))]
        parquet(tmp_path / f"{name}.parquet", images, [n % 3 for n in range(12)], True, ["x", "y", "z"])
    return tmp_path


@pytest.fixture
def web(shards: Path) -> Iterator[WebServer]:
    files = {f"/d/{path.name}": path.read_bytes() for path in shards.iterdir() if path.is_file()}
    with serving(files) as server:
        yield server


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3: str, shards: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket with the shards in it, in the environment as obstore reads it."""
    environment = {"AWS_ENDPOINT_URL": s3, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for path in ("", *(f"d/{path.name}" for path in shards.iterdir() if path.is_file())):
        data = (shards / path[2:]).read_bytes() if path else None
        urllib.request.urlopen(urllib.request.Request(f"{s3}/bucket/{path}", data, method="PUT"))
    return "s3://bucket/d"


def listed(source: Source) -> list[tuple[object, ...]]:
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


def test_a_remote_folder_is_its_shards_and_a_list_is_its_lines(shards: Path, bucket: str) -> None:
    names = shards / "shards.txt"
    names.write_text(f"# two places\n{bucket}/a.tar\n\n{shards}/b.tar\n")
    here = listed(open_source([str(shards / "*.tar")], labeled=True))
    assert listed(open_source([bucket], labeled=True)) == here
    assert listed(open_source([f"@{names}"], labeled=True)) == here


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_neighbours_come_in_one_request_and_a_second_process_makes_none(
    web: WebServer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = open_source([f"{web.url}/d/{{a,b}}.{kind}"], labeled=True)
    first = listed(there)
    assert web.gets <= 4, "each shard is smaller than a block"
    forget(monkeypatch)
    web.requests.clear()
    assert listed(open_source([f"{web.url}/d/{{a,b}}.{kind}"], labeled=True)) == first
    assert [method for method, *_ in web.requests] == ["HEAD", "HEAD"]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_images_are_fetched_ahead_all_at_once(
    web: WebServer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK", 512)
    there = open_source([f"{web.url}/d/{{a,b}}.{kind}"], labeled=True, cache_gb=0)
    places = [(item.shard, item.offset, item.size, item.id) for item in there.items()]
    forget(monkeypatch)
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
    monkeypatch.setattr(remote, "_REQUEST", 2)  # many requests, so that every fault comes
    web.fault = faults(0.1)
    there = open_source([f"{web.url}/d/{{a,b}}.{kind}"], labeled=True, cache_gb=0)
    assert listed(there) == listed(open_source([str(shards / f"*.{kind}")], labeled=True))
    assert web.gets > 100


@pytest.mark.parametrize("etags", [True, False])
def test_a_shard_that_is_replaced_is_one_line(shards: Path, web: WebServer, etags: bool) -> None:
    web.etags = etags
    there = open_source([f"{web.url}/d/a.tar"], labeled=True, cache_gb=0)
    places = [(item.shard, item.offset, item.size, item.id) for item in there.items()]
    remote._memory = remote._Memory()
    web.files["/d/a.tar"] = b"x" * len(web.files["/d/a.tar"])
    web.modified = "Fri, 02 Jan 2026 00:00:00 GMT"
    with pytest.raises(RunError, match=rf"^{web.url}/d/a\.tar was replaced while it was in use; run again"):
        there.read(*places[0])


def test_a_bucket_says_that_a_shard_is_replaced(bucket: str, s3: str) -> None:
    there = open_source([f"{bucket}/a.tar"], labeled=True, cache_gb=0)
    (item, *_) = there.items()
    remote._memory = remote._Memory()
    urllib.request.urlopen(urllib.request.Request(f"{s3}/bucket/d/a.tar", b"other", method="PUT"))
    with pytest.raises(RunError, match=r"^s3://bucket/d/a\.tar was replaced"):
        there.read(item.shard, item.offset, item.size, item.id)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("listed_before", [True, False])
def test_a_shard_that_is_lost_is_in_the_ledger(
    web: WebServer, kind: str, listed_before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = f"{web.url}/d/{{a,b}}.{kind}"
    config = DataConfig(
        labeled=(f"{web.url}/d/a.tar",),
        unlabeled=(pool,),
        cache_gb=0,
        workers=0,
        resolution=8,
        max_bad_fraction=0.5,
    )
    sources, out = open_sources(config), DataDir(tmp_path / "out")
    listings = list_sets(sources, tmp_path / "listings", config, Progress()) if listed_before else None
    del web.files[f"/d/b.{kind}"]
    forget(monkeypatch)
    prepare(config, sources, out, 0, Progress(), listings=listings)
    rows = table(out.ledger)
    assert len(rows) == (12 if listed_before else 1)
    assert {(row["set"], row["reason"]) for row in rows} == {
        ("pool", "cannot be read: no such object or bucket (404)")
    }
    assert len(open_dataset(out, config, sources).labeled) > 0


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


WRONG = {
    "no object": ("s3://bucket/d/z.tar", r"no such object or bucket \(404\)"),
    "no bucket": ("s3://nothing/z.tar", r"no such object or bucket \(404\)"),
    "no bucket to list": ("s3://nothing/*.tar", "NoSuchBucket"),
    "no match": ("s3://bucket/e/*.tar", "no such shards; give "),
    "no shards": ("s3://bucket/e", "no such shards; give "),
    "no host": ("s3://", "names no bucket"),
    "scheme": ("s4://bucket/a.tar", r"s4:// is not known; did you mean 's3'\?"),
    "pattern on the web": ("https://127.0.0.1:9/*.tar", "a web server lists no files"),
    "nobody answers": ("http://127.0.0.1:9/a.tar", "HTTP error"),
    "no such host": ("https://no.such.host.invalid/a.tar", "HTTP error"),
    "account": ("az://bucket/a.tar", "there are no credentials; set AZURE_STORAGE_ACCOUNT_NAME"),
    "braces": ("s3://bucket/{0..99999999}.tar", "more than 1,000,000 names"),
    "list": ("@none.txt", "the list cannot be read"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_name_is_one_line_soon(kind: str, bucket: str) -> None:
    name, reason = WRONG[kind]
    start = time.monotonic()
    with pytest.raises(InputError, match=rf"^{re.escape(name)}: .*{reason}") as caught:
        open_source([name], labeled=False)
    assert "\n" not in str(caught.value) and time.monotonic() - start < 20


def test_no_credentials_are_one_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"{s3}/none")
    with pytest.raises(
        InputError, match=r"^s3://bucket/a\.tar: there are no credentials; set AWS_ACCESS_KEY"
    ):
        open_source(["s3://bucket/a.tar"], labeled=False)


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
    monkeypatch.setattr(stores.time, "sleep", lambda _: None)
    there = open_source(["hf:///datasets/x/*.tar"], labeled=True)
    assert listed(there) == listed(open_source([str(shards / "*.tar")], labeled=True))
    with pytest.raises(InputError, match=r"^hf:///datasets/z\.tar: no such file or repository \(404\)$"):
        open_source(["hf:///datasets/z.tar"], labeled=True)


@given(
    names=st.lists(st.text("ab1/", min_size=1, max_size=6), min_size=1, max_size=8),
    pattern=st.lists(st.sampled_from(["a", "1", "*", "?", "[ab]", "/", "**/"]), min_size=1, max_size=6),
)
def test_a_pattern_matches_what_it_matches_on_disk(names: list[str], pattern: list[str]) -> None:
    """As `glob` does, but a store has no folders that could match."""
    wild = re.sub(r"/+", "/", "".join(pattern)).strip("/")
    assume(wild and not re.search(r"[^/]\*\*|\*\*$|\*\*[^/]", wild))
    with tempfile.TemporaryDirectory() as folder:
        for name in (f"{re.sub('/+', '/', name).strip('/')}.tar" for name in names):
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        paths = [str(path.relative_to(folder)) for path in Path(folder).rglob("*.tar")]
        on_disk = glob.glob(f"{wild}.tar", root_dir=folder, recursive=True)
    expression = _pattern(f"{wild}.tar")
    assert sorted(filter(expression.fullmatch, paths)) == sorted(set(on_disk) & set(paths))


def test_braces_are_expanded_as_a_shell_does() -> None:
    cases = {
        "x-{00..02}.tar": ["x-00.tar", "x-01.tar", "x-02.tar"],
        "{8..10}": ["8", "9", "10"],
        "{2..0}": ["2", "1", "0"],
        "{a,b}{0..1}": ["a0", "a1", "b0", "b1"],
        "plain": ["plain"],
        "{a}": ["{a}"],
    }
    assert {name: list(_braced(name)) for name in cases} == cases


@given(
    puts=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 2**10)), max_size=60),
    size=st.integers(8 * (BLOCK + 32), 30 * (BLOCK + 32)),
)
def test_the_cache_stays_within_its_bound_and_gives_what_was_put_last(
    puts: list[tuple[int, int]], size: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = [BlockFile(Path(folder, "blocks"), size) for _ in range(2)]  # two processes
        last: dict[bytes, bytes] = {}
        for turn, (number, length) in enumerate(puts):
            key, data = key_of(number), bytes([turn]) * length
            files[turn % 2].put(key, data)
            last[key] = data
            assert files[(turn + 1) % 2].get(key) == data
        assert all(files[0].get(key) in (None, data) for key, data in last.items())
        if len(last) <= 8:
            assert all(files[0].get(key) == data for key, data in last.items())
        assert sum(path.stat().st_size for path in Path(folder).iterdir()) <= size


def test_a_torn_block_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "blocks"
    blocks = BlockFile(path, 2**21)
    blocks.put(b"k" * 16, b"x" * 100)
    data = bytearray(path.read_bytes())
    data[data.index(b"x" * 100) + 50] = 0
    path.write_bytes(data)
    assert blocks.get(b"k" * 16) is None
