"""Published numbers are those of the paper, and stand only beside the same protocol."""

from __future__ import annotations

import pytest
import timm

from noisystudent.robustness import anchors


def value(test: str, protocol: str, measure: str, model: str) -> float:
    (found,) = (one.value for one in anchors.find(test, protocol, measure) if one.model == model)
    return 100 * found


@pytest.mark.parametrize(
    ("test", "protocol", "measure", "before", "after"),
    [
        ("a", "center-crop", "top1", 61.0, 83.7),
        ("c", "released-299", "mce", 42.5, 28.3),
        ("c", "released-224", "mce", 45.7, 30.0),
        ("p", "released-299", "mfr", 23.7, 12.2),
        ("p", "released-224", "mfr", 27.8, 14.2),
        ("pgd", "eps-16-steps-10", "top1", 1.1, 4.4),
        ("fgsm", "eps-2", "top1", 68.3, 80.0),
    ],
)
def test_the_papers_headlines(test: str, protocol: str, measure: str, before: float, after: float) -> None:
    assert value(test, protocol, measure, "NoisyStudent EfficientNet-L2") == pytest.approx(after)
    printed = [100 * one.value for one in anchors.find(test, protocol, measure)]
    assert any(one == pytest.approx(before) for one in printed)


def test_timms_rows() -> None:
    row = {"clean": 88.360, "a": 84.680, "r": 74.590, "real": 90.569, "v2": 80.130, "sketch": 47.401}
    for test, expected in row.items():
        found = value(test, "center-crop", "top1", "tf_efficientnet_l2.ns_jft_in1k")
        assert found == pytest.approx(expected)
    assert value("a", "center-crop", "top1", "tf_efficientnet_b0.ns_jft_in1k") == pytest.approx(11.093)


def test_timms_names_and_resolutions_are_timms() -> None:
    ours = {one.model: one.resolution for one in anchors.anchors() if "_in1k" in one.model}
    assert len(ours) == 19  # B0 to B7 with and without the pool, L2 twice, ResNet-50
    for name, resolution in ours.items():
        config = timm.get_pretrained_cfg(name)
        assert config is not None and (config.test_input_size or config.input_size)[-1] == resolution


def test_another_protocol_has_no_anchors() -> None:
    assert anchors.find("c", "regenerated-224") == ()
    assert anchors.find("c", "released-224", "top5") == ()
    assert len(anchors.find("c", "released-224")) > len(anchors.find("c", "released-224", "mce"))


def test_every_number_is_a_share_and_named_once_a_source() -> None:
    everything = anchors.anchors()
    assert all(0 < one.value < 1 and one.source for one in everything)
    keys = [(one.test, one.protocol, one.measure, one.model, one.source) for one in everything]
    assert len(set(keys)) == len(keys)
    tests = {"clean", "c", "p", "a", "r", "v2", "sketch", "real", "fgsm", "pgd"}
    assert {one.test for one in everything} == tests
