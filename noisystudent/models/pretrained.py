"""Where timm's published weights can be had: the local cache, or a server that answers within seconds."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any

import timm
from huggingface_hub import constants, try_to_load_from_cache

PROBE_SECONDS = 5.0


class Unavailable(Exception):
    """The published weights of a model cannot be had; the message says why."""


def pretrained_source(name: str) -> dict[str, Any]:
    """Arguments of `timm.create_model` that load the published weights of `name`.

    Weights in the local cache are named by their file, so that no server is asked. Else the server must
    answer within PROBE_SECONDS, because the hub's client would retry for most of a minute.

    Raises:
        Unavailable: there are none, or their server does not answer.
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
    _probe(constants.ENDPOINT if cfg.hf_hub_id else cfg.url)
    return arguments


def _probe(url: str) -> None:
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:  # an answer, if not a welcome
        error.close()
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise Unavailable(f"{url} does not answer ({reason})") from error
