"""Initial weights of a configuration, and a machine without a network."""

from __future__ import annotations

import socket
import subprocess
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noisystudent.config import ModelConfig
from noisystudent.models import Classifier, download


def config(name: str, source: object, **fields: Any) -> ModelConfig:
    return ModelConfig(name=name, pretrained=source if isinstance(source, bool) else str(source), **fields)


def state(model: Classifier | nn.Module) -> dict[str, Tensor]:
    return dict((model.net if isinstance(model, Classifier) else model).state_dict())


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def refuse_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a socket nor the process that downloads: others, such as git, are not of the network."""
    start = subprocess.Popen

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network is touched")

    def popen(command: Any, *others: Any, **options: Any) -> Any:
        if str(download.__file__) in command:
            refuse()
        return start(command, *others, **options)

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(subprocess, "Popen", popen)
