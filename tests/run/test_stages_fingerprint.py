"""Fingerprints: equal values have equal digests, different values have different ones."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisystudent.config import AugmentConfig, TrainConfig
from noisystudent.run.fingerprint import fingerprint

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12
)


@given(st.dictionaries(st.text(), trees))
def test_fingerprint_ignores_the_order_of_keys(tree: dict[str, object]) -> None:
    assert fingerprint(tree) == fingerprint(dict(reversed(tree.items())))


@given(trees)
def test_fingerprint_survives_a_round_trip_through_json(tree: object) -> None:
    assert fingerprint(tree) == fingerprint(json.loads(json.dumps(tree)))


@given(scalars, scalars)
def test_different_values_have_different_fingerprints(one: object, other: object) -> None:
    same = one == other and isinstance(one, bool) == isinstance(other, bool)
    assert (fingerprint(one) == fingerprint(other)) == same


def test_fingerprint_is_sha256_of_canonical_json_and_depends_on_every_field() -> None:
    assert fingerprint("a", {"c": None, "b": 1.0}) == hashlib.sha256(b'["a",{"b":1,"c":null}]').hexdigest()
    config = TrainConfig(epochs=10)
    assert (
        fingerprint(config)
        == fingerprint(dataclasses.asdict(config))
        == fingerprint(TrainConfig(epochs=10.0))
    )
    assert fingerprint(config) != fingerprint(dataclasses.replace(config, lr=0.2))
    assert fingerprint(AugmentConfig(), 3) == fingerprint(AugmentConfig(), np.int64(3))
    assert fingerprint((1, 2)) == fingerprint([1, 2]) != fingerprint(1, 2)
    assert fingerprint(Path("a/b")) == fingerprint("a/b")


@pytest.mark.parametrize("value", [{1: 2}, {1, 2}, b"bytes", object(), np.zeros(2)])
def test_fingerprint_refuses_values_without_a_canonical_form(value: object) -> None:
    with pytest.raises(TypeError, match=r"fingerprinted"):
        fingerprint(value)


def test_fingerprint_refuses_numbers_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="JSON"):
        fingerprint(float("nan"))
