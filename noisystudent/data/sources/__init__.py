"""Sources of images: folders, tar shards, Parquet files and arrays become images with stable ids."""

from __future__ import annotations

import functools
import glob
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from noisystudent.config import DataConfig
from noisystudent.data.sources.arrays import ArraySource, NpzSource, require_labels
from noisystudent.data.sources.base import IMAGE_SUFFIXES, Item, Place, Source, digest, prefetch
from noisystudent.data.sources.cache import Cache, cache_folder
from noisystudent.data.sources.files import ImageFiles, is_image_file
from noisystudent.data.sources.folder import FolderSource
from noisystudent.data.sources.given import given_labels
from noisystudent.data.sources.joined import Joined, prefixes
from noisystudent.data.sources.names import SUFFIXES, expand, one_suffix
from noisystudent.data.sources.parquet import ParquetSource
from noisystudent.data.sources.remote import RemoteShard
from noisystudent.data.sources.shard import LocalShard, Shard, file_name
from noisystudent.data.sources.stores import is_url
from noisystudent.data.sources.tar import TarSource
from noisystudent.errors import InputError
from noisystudent.run.fingerprint import ListingFingerprint

__all__ = [
    "IMAGE_SUFFIXES",
    "ArraySource",
    "Item",
    "Place",
    "Source",
    "Sources",
    "listing_fingerprint",
    "open_source",
    "open_sources",
    "prefetch",
    "with_given_labels",
]


_Find = Callable[[str | Path], list[Path | RemoteShard]]  # `expand`


@dataclass(frozen=True)
class Sources:
    """Sources of the image sets of a run.

    Attributes:
        labeled: labelled images to train on.
        unlabeled: the pool. None: no pool.
        val: labelled images for all choices of the run. None: they are split off `labeled`.
        test: labelled images that are evaluated at the end. None: no test set.
    """

    labeled: Source
    unlabeled: Source | None = None
    val: Source | None = None
    test: Source | None = None

    def named(self) -> Iterator[tuple[str, Source]]:
        """Pairs (set name, source) of the given sets, in the order labeled, val, test, pool."""
        sets = (("labeled", self.labeled), ("val", self.val), ("test", self.test), ("pool", self.unlabeled))
        return ((name, source) for name, source in sets if source is not None)


def open_source(
    specs: Sequence[str | Path | ArraySource], labeled: bool, cache_gb: float | None = None
) -> Source:
    """Open files, folders or arrays as one source. With several specs, ids begin with the spec's name.

    Args:
        specs: folders, `.tar`, `.parquet` or `.npz` files, URLs of tar or Parquet shards, patterns, braces
            and lists of them (see `names.expand`), folders of shards, or arrays. If labels are not needed,
            image files and patterns of them are also possible.
        labeled: True if every image must have a label.
        cache_gb: `data.cache_gb`. None: its default.

    Raises:
        InputError: a spec does not exist, has no images, or has images without the labels that are needed.
    """
    if not specs:
        raise InputError(
            "no images given; give a folder <class>/<image>, tar shards, Parquet files or an .npz"
        )
    size = DataConfig().cache_gb if cache_gb is None else cache_gb
    # A pattern is looked up once, which takes a while for many shards.
    find: _Find = functools.cache(functools.partial(expand, cache=Cache(cache_folder(), int(size * 1e9))))
    if not labeled:
        specs = [path for spec in specs for path in _image_files(spec, find)]
    # Single image files have no folder that could be their label, so a labelled set cannot have them.
    files = [spec for spec in specs if isinstance(spec, str | Path) and is_image_file(spec)]
    if files and not labeled:
        if len(files) < len(specs):
            raise InputError(
                f"{files[0]} is an image file, but others are not; give image files in a separate call"
            )
        return ImageFiles(files)
    parts = [_open_one(spec, labeled, find) for spec in specs]
    return parts[0] if len(parts) == 1 else Joined(parts, prefixes(specs))


def _image_files(spec: str | Path | ArraySource, find: _Find) -> list[str | Path | ArraySource]:
    """The image files that a pattern matches, or the spec itself if it is no pattern of image files."""
    if isinstance(spec, ArraySource) or is_url(spec) or not glob.has_magic(str(spec)):
        return [spec]
    matches = find(spec)
    paths = [one for one in matches if isinstance(one, Path) and is_image_file(one)]
    return list(paths) if len(paths) == len(matches) else [spec]


def open_sources(config: DataConfig) -> Sources:
    """Open all sets of a configuration.

    Raises:
        InputError: as in `open_source`; the message begins with the field of the configuration.
    """

    def opened(field: str, labeled: bool) -> Source | None:
        specs = getattr(config, field)
        try:
            return open_source(specs, labeled, config.cache_gb) if specs else None
        except InputError as error:
            raise InputError(f"data.{field}: {error}") from error

    source = opened("labeled", True)
    if source is None:
        raise InputError("data.labeled is empty; give --labeled a folder <class>/<image>")
    given = Sources(source, opened("unlabeled", False), opened("val", True), opened("test", True))
    return with_given_labels(given, config)


def with_given_labels(sources: Sources, config: DataConfig) -> Sources:
    """The same sources with the labels of `data.given_labels`; the files of the images do not change.

    Raises:
        InputError: a file cannot be read, or a row names no image, a class that is new, or another label than
            an earlier row of the image.
    """
    if not config.given_labels:
        return sources
    specs = {"labeled": config.labeled, "val": config.val, "test": config.test, "pool": config.unlabeled}
    changed = given_labels(dict(sources.named()), specs, config.given_labels)
    return Sources(changed["labeled"], changed.get("pool"), changed.get("val"), changed.get("test"))


def listing_fingerprint(sources: Sources) -> ListingFingerprint:
    """Hashes that change if a file of a set is added, removed, renamed or rewritten. Decodes nothing."""
    labeled = ((name, source.fingerprint()) for name, source in sources.named() if name != "pool")
    pool = (source.fingerprint() for name, source in sources.named() if name == "pool")
    return ListingFingerprint(digest(labeled), digest(pool))


def _open_one(spec: str | Path | ArraySource, labeled: bool, find: _Find) -> Source:
    if isinstance(spec, ArraySource):
        return _arrays(spec, labeled)
    matches = find(spec)
    if isinstance(matches[0], Path) and matches[0].is_dir():
        if len(matches) > 1:
            raise InputError(f"{spec}: matches {len(matches)} folders; give each folder separately")
        return _open_folder(matches[0], labeled)
    files: list[Shard] = [LocalShard(one) if isinstance(one, Path) else one for one in matches]
    suffixes = {file_name(file).suffix.lower() for file in files}
    # Files of one pattern must be of one kind: they are the shards of one source.
    opener = _OPENERS.get(suffixes.pop()) if len(suffixes) == 1 else None
    if opener is None or not all(one.is_file() for one in matches if isinstance(one, Path)):
        raise InputError(
            f"{spec}: cannot be read; give a folder of images, or plain .tar, .parquet or .npz files"
        )
    return opener(files, labeled)


def _open_folder(path: Path, labeled: bool) -> Source:
    """Open a folder: as shards if it directly contains tar or Parquet files, otherwise as image files.

    Raises:
        InputError: the folder holds two of these, so one would be left out unseen.
    """
    # an .npz is opened by its own name or a pattern only
    shards = sorted(file for suffix in SUFFIXES for file in path.glob(f"*{suffix}") if file.is_file())
    if not shards:
        return FolderSource(path, labeled)
    suffix = one_suffix(str(path), [file.name for file in shards])
    if _has_images(path, labeled):
        images = "class folders" if labeled else "image files"
        raise InputError(
            f"{path}: holds {images} and {shards[0].name}; give '{path}/*{suffix}' for the shards alone, or"
            f" move them elsewhere for the {images} alone"
        )
    return _OPENERS[suffix](list(map(LocalShard, shards)), labeled)


def _has_images(path: Path, labeled: bool) -> bool:
    """Return True if `path` holds image files; with `labeled`, in class folders."""
    try:
        FolderSource(path, labeled)
    except InputError:
        return False
    return True


def _arrays(source: ArraySource | NpzSource, labeled: bool) -> ArraySource | NpzSource:
    if labeled:
        require_labels(source)
    return source


def _npz(files: list[Shard], labeled: bool) -> Source:
    paths = [Path(file.name) for file in files]  # on disk: no shard of a store is an .npz file
    if len(paths) == 1:
        return _arrays(NpzSource(paths[0]), labeled)
    return Joined([_arrays(NpzSource(path), labeled) for path in paths], prefixes(paths))


_OPENERS: dict[str, Callable[[list[Shard], bool], Source]] = {
    ".tar": TarSource,
    ".parquet": ParquetSource,
    ".npz": _npz,
}
