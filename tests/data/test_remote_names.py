"""A name stands for the shards that it stands for on disk or in a shell; a wrong one is one line soon."""

from __future__ import annotations

import glob
import re
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from noisystudent.data.sources import open_source
from noisystudent.data.sources.names import _braced, _pattern
from noisystudent.errors import InputError

WRONG = {
    "no object": ("s3://bucket/d/z.tar", r"no such object, bucket or repository \(404\)"),
    "no bucket": ("s3://nothing/z.tar", r"no such object, bucket or repository \(404\)"),
    "no bucket to list": ("s3://nothing/*.tar", r"no such object, bucket or repository \(404\)"),
    "no match": ("s3://bucket/e/*.tar", "no such shards; give "),
    "no shards": ("s3://bucket/e", "no such shards; give "),
    "empty folder": ("s3://bucket/d//a.tar", "empty path segment"),
    "way up": ("s3://bucket/d/../a.tar", r"illegal character sequence \"\.\.\""),
    "way up of a pattern": ("s3://bucket/d/../*.tar", r"illegal character sequence \"\.\.\""),
    "no host": ("s3://", "names no bucket"),
    "scheme": ("s4://bucket/a.tar", r"s4:// is not known; did you mean 's3'\?"),
    "pattern on the web": ("https://127.0.0.1:9/*.tar", "a web server lists no files"),
    "nobody answers": ("http://127.0.0.1:9/a.tar", "HTTP error"),
    "no such host": ("https://no.such.host.invalid/a.tar", "HTTP error"),
    "account": ("az://bucket/a.tar", "there are no credentials; set AZURE_STORAGE_ACCOUNT_NAME"),
    "braces": ("s3://bucket/{0..99999999}.tar", "more than 1,000,000 names"),
    "brackets": ("s3://bucket/[z-a].tar", "bad character range"),
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


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/a.tar", "s3://bucket/*.tar", "hf://datasets/a/b/c.parquet"]
)
def test_nothing_is_read_from_a_store_offline(url: str, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"://.*: --offline or HF_HUB_OFFLINE=1 forbids the download"):
        open_source([url], labeled=False)


@given(
    names=st.lists(st.text("ab1/", min_size=1, max_size=6), min_size=1, max_size=8),
    pattern=st.lists(
        st.sampled_from(["a", "1", "*", "?", "[ab]", "[!a]", "/", "**/"]), min_size=1, max_size=6
    ),
)
def test_a_pattern_matches_what_it_matches_on_disk(names: list[str], pattern: list[str]) -> None:
    """As `glob` does, but a store has no folders that could match."""
    wild = re.sub(r"/+", "/", "".join(pattern)).strip("/")
    assume(wild and not re.search(r"[^/]\*\*|\*\*$|\*\*[^/]", wild))
    with tempfile.TemporaryDirectory() as folder:
        for name in (f"{re.sub('/+', '/', name).strip('/')}n.tar" for name in names):
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
