"""Published sets are read as they are laid out, written ones are read back, and gaps are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from corruption_reference import noise
from PIL import Image
from torch import Tensor

from noisystudent.errors import InputError, RunError
from noisystudent.evaluation.copies import write_arrays, write_folder
from noisystudent.robustness import released
from noisystudent.robustness.corruptions import corrupt

CLASSES = ("n01", "n02", "n03")


def decode(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def cells(images: Tensor, name: str) -> list[Tensor]:
    rows = np.arange(len(images))
    return [corrupt(images, name, severity, seed=0, rows=rows) for severity in range(1, 6)]


def test_arrays_come_back_cell_by_cell(tmp_path: Path) -> None:
    images, labels = noise(7, 32), np.array([3, 1, 4, 1, 5, 9, 2])
    made = cells(images, "contrast")
    batches = [part for cell in made for part in cell.split(3)]
    write_arrays(tmp_path, "contrast", batches, labels)
    assert np.load(tmp_path / "contrast.npy").shape == (35, 32, 32, 3)
    for severity in range(1, 6):
        found = list(released.read_arrays(tmp_path, "contrast", severity, batch_size=4))
        assert [len(pixels) for pixels, _ in found] == [4, 3]
        assert torch.equal(torch.cat([pixels for pixels, _ in found]), made[severity - 1])
        assert np.concatenate([known for _, known in found]).tolist() == labels.tolist()


@pytest.mark.parametrize("count", [4, 6])
def test_arrays_are_written_whole_or_not_at_all(tmp_path: Path, count: int) -> None:
    images = noise(count, 32)
    with pytest.raises(InputError, match=f"{5 * count} images for 5 labels"):
        write_arrays(tmp_path, "fog", cells(images, "fog"), np.arange(5))
    assert list(tmp_path.iterdir()) == []


def test_folders_come_back_as_jpeg(tmp_path: Path) -> None:
    images, files = noise(4, 32), ["n02/a.png", "n01/b.png", "n02/c.png", "n01/a.jpg"]
    made = corrupt(images, "contrast", 2, seed=0, rows=np.arange(4))
    saved = corrupt(images, "contrast", 2, seed=0, rows=np.arange(4), jpeg=True)
    write_folder(tmp_path, "contrast", 2, made.split(3), files)
    found = list(released.read_folder(tmp_path, "contrast", 2, classes=CLASSES, decode=decode, batch_size=3))
    assert torch.equal(torch.cat([pixels for pixels, _ in found]), saved[[3, 1, 0, 2]])
    assert np.concatenate([labels for _, labels in found]).tolist() == [0, 0, 1, 1]


def test_a_family_folder_above_is_accepted(tmp_path: Path) -> None:
    write_folder(tmp_path / "noise", "shot_noise", 1, [noise(1, 32)], ["n01/a.png"])
    found = released.read_folder(tmp_path, "shot_noise", 1, classes=CLASSES, decode=decode, batch_size=3)
    assert [labels.tolist() for _, labels in found] == [[0]]


def test_sequences_from_arrays_videos_and_frames(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 4, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "snow.npy", frames)
    found = torch.cat(list(released.read_sequence_arrays(tmp_path, "snow", batch_size=2)))
    assert np.array_equal(found.permute(0, 1, 3, 4, 2).numpy(), frames)
    for number in range(12):  # 10 comes after 9, not after 1
        folder = tmp_path / "tilt" / "n02" / "dog"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / f"img{number}.png")
    read = released.read_sequence_folder(
        tmp_path,
        "tilt",
        classes=CLASSES,
        decode=lambda path: released.read_frames(path, decode),
        batch_size=2,
    )
    ((pixels, labels),) = read
    assert pixels.shape == (1, 12, 3, 32, 32) and labels.tolist() == [1]
    assert pixels[0, :, 0, 0, 0].tolist() == list(range(12))


def test_videos_are_decoded_in_order(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    path = tmp_path / "dog.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 1, (64, 64))
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write a video to be read")
    for level in (0, 80, 160, 240):
        writer.write(np.full((64, 64, 3), (0, 0, level), dtype=np.uint8))  # OpenCV's red is its last channel
    writer.release()
    found = released.read_video(path)
    assert found.shape == (4, 3, 64, 64)
    assert found[:, 0].float().mean((1, 2)).tolist() == pytest.approx([0, 80, 160, 240], abs=8)  # lossy
    assert float(found[:, 1:].float().mean()) < 8


def test_what_is_missing_is_named_at_the_call(tmp_path: Path) -> None:
    images = noise(1, 32)
    options = {"classes": CLASSES, "decode": decode, "batch_size": 2}
    with pytest.raises(InputError, match=r"fog\.npy"):
        released.read_arrays(tmp_path, "fog", 1, batch_size=2)
    np.save(tmp_path / "fog.npy", np.zeros((10, 32, 32, 3), dtype=np.uint8))
    with pytest.raises(InputError, match=r"labels\.npy"):
        released.read_arrays(tmp_path, "fog", 1, batch_size=2)
    np.save(tmp_path / "labels.npy", np.zeros(9, dtype=np.int64))
    with pytest.raises(InputError, match="it must hold 10 integers, one for each image of fog"):
        released.read_arrays(tmp_path, "fog", 1, batch_size=2)
    with pytest.raises(InputError, match="severity of fog is 0"):
        released.read_arrays(tmp_path, "fog", 0, batch_size=2)
    np.save(tmp_path / "snow.npy", np.zeros((12, 32, 32, 3), dtype=np.uint8))
    with pytest.raises(InputError, match="5 N, S, S, 3"):
        released.read_arrays(tmp_path, "snow", 1, batch_size=2)
    with pytest.raises(InputError, match="N, T, S, S, 3"):
        released.read_sequence_arrays(tmp_path, "snow", batch_size=2)
    with pytest.raises(InputError, match="no folder fog/3"):
        released.read_folder(tmp_path, "fog", 3, **options)  # type: ignore[arg-type]
    write_folder(tmp_path, "fog", 3, [images], ["cat/a.png"])
    with pytest.raises(InputError, match="class cat"):
        released.read_folder(tmp_path, "fog", 3, **options)  # type: ignore[arg-type]
    (tmp_path / "rain" / "1" / "n01").mkdir(parents=True)
    with pytest.raises(InputError, match="no images"):
        released.read_folder(tmp_path, "rain", 1, **options)  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no frames"):
        released.read_frames(tmp_path / "empty", decode)
    (tmp_path / "cut.mp4").write_bytes(b"not a video")
    with pytest.raises(RunError, match="video"):
        released.read_video(tmp_path / "cut.mp4")


@pytest.mark.parametrize("file", ["../a.png", "/n01/a.png", "a.png", "n01/x/../../a.png"])
def test_a_name_cannot_lead_elsewhere(tmp_path: Path, file: str) -> None:
    with pytest.raises(InputError, match="<class>/<image>"):
        write_folder(tmp_path, "fog", 1, [noise(1, 32)], [file])


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "fog.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"fog\.npy"):
        released.read_arrays(tmp_path, "fog", 1, batch_size=2)


def test_two_images_never_become_one_file(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="two images have the same name; names must differ before the suffix"
    ):
        write_folder(tmp_path, "fog", 1, [noise(2, 32)], ["a/1.png", "a/1.jpg"])
    assert not list(tmp_path.iterdir())


def test_what_a_file_manager_left_is_no_image(tmp_path: Path) -> None:
    write_folder(tmp_path, "fog", 1, [noise(1, 32)], ["n01/a.png"])
    (tmp_path / "fog" / "1" / "n01" / ".DS_Store").write_bytes(b"")
    found = released.read_folder(tmp_path, "fog", 1, classes=CLASSES, decode=decode, batch_size=3)
    assert [labels.tolist() for _, labels in found] == [[0]]
