"""The source of timm's published weights: the local cache, or a server if it responds within seconds."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any

import timm
from huggingface_hub import constants, try_to_load_from_cache

PROBE_SECONDS = 5.0
"""Longest time in seconds that a server may take to respond."""


class Unavailable(Exception):
    """The published weights of a model are not available; the message gives the reason."""


def pretrained_source(name: str) -> dict[str, Any]:
    """Return the arguments of `timm.create_model` that load the published weights of `name`.

    Weights in the local cache are given as a file, so no server is contacted. Otherwise the server must
    respond within PROBE_SECONDS, because the client of the Hugging Face hub retries for most of a minute.

    Raises:
        Unavailable: no weights were published, or the server does not respond.
    """
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        raise Unavailable("none were published")
    arguments: dict[str, Any] = {"pretrained": True}
    if cfg.hf_hub_id and not cfg.custom_load:
        files = [cfg.hf_hub_filename] if cfg.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        for file in files:
            cached = try_to_load_from_cache(cfg.hf_hub_id, file)
            if isinstance(cached, str):
                return arguments | {"pretrained_cfg_overlay": {"file": cached}}
    _probe(constants.ENDPOINT if cfg.hf_hub_id else cfg.url)  # without a hub id timm downloads from cfg.url
    return arguments


def _probe(url: str) -> None:
    """Raise `Unavailable` if the server of `url` does not respond."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:  # any HTTP status shows that the server responds
        error.close()
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise Unavailable(f"{url} does not respond ({reason})") from error
