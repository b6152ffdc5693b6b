"""A folder of pictures: the files that are read, their order, and how they are decoded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipepar.data.packed_strings import pack_strings, unpack_strings
from pipepar.data.readers.open_prepared import open_prepared
from pipepar.data.readers.reader import Feed
from pipepar.data.readers.registry import find_input_format
from pipepar.errors import InputError


def brightness(pictures: list[Image.Image]) -> torch.Tensor:
    assert all(picture.mode == "RGB" for picture in pictures)
    return torch.tensor([[float(np.asarray(picture).mean())] for picture in pictures])


def grey(path: Path, value: int, mode: str = "RGB", **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 3), value).convert(mode).save(path, **options)


def files(feed: Feed) -> list[str]:
    return unpack_strings(feed.columns["file"])


def test_all_pictures_and_no_other_files_in_order_of_names(tmp_path: Path) -> None:
    names = ["b.png", "a/z.JPG", "a/b/c.gif", "B.bmp", "x.tiff", "y.webp", "10.jpeg", "9.ppm"]
    for value, name in enumerate(names):
        grey(tmp_path / name, 20 * value)
    grey(tmp_path / ".hidden.png", 255)
    grey(tmp_path / ".thumbnails/t.png", 255)
    (tmp_path / "notes.txt").write_text("no picture")
    reader = open_prepared(tmp_path, brightness, "brightness")
    feeds = list(reader.feeds(3))
    assert len(reader) == 8
    assert [name for feed in feeds for name in files(feed)] == sorted(names)
    assert torch.cat([feed.samples for feed in feeds]).tolist() == list(range(8))
    assert [len(feed.samples) for feed in feeds] == [3, 3, 2]
    values = torch.cat([feed.args[0] for feed in feeds]).flatten()
    assert torch.allclose(
        values, torch.tensor([20.0 * names.index(n) for n in sorted(names)]), atol=3
    )
    assert files(reader.example()) == sorted(names)[:2]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    if mode == "I;16":
        Image.fromarray(np.full((3, 4), 255, np.uint16)).save(tmp_path / "x.png")
    else:
        grey(tmp_path / f"x.{suffix}", 255, mode)
    (feed,) = open_prepared(tmp_path, brightness, "brightness").feeds(2)
    assert feed.args[0].tolist() == [[255.0]]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.new("RGB", (4, 2)).save(tmp_path / "x.jpg", exif=exif)
    sizes: list[tuple[int, int]] = []

    def note(pictures: list[Image.Image]) -> torch.Tensor:
        sizes.extend(picture.size for picture in pictures)
        return torch.zeros(len(pictures))

    list(open_prepared(tmp_path, note, "note").feeds(1))
    assert sizes == [(2, 4)]


def test_pictures_are_decoded_with_their_micro_batch(tmp_path: Path) -> None:
    for at in range(4):
        grey(tmp_path / f"{at}.png", at)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:40])
    (tmp_path / "3.png").write_text("no picture")
    feeds = open_prepared(tmp_path, brightness, "brightness").feeds(1)
    assert [files(next(feeds)), files(next(feeds))] == [["0.png"], ["1.png"]]
    for at in (2, 3):
        assert f"{at}.png cannot be read as a picture" in str(next(feeds).fault)


def test_links_to_folders_are_followed_and_cycles_end(tmp_path: Path) -> None:
    grey(tmp_path / "elsewhere/x.png", 1)
    (tmp_path / "in").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "in/linked")
    os.symlink(tmp_path / "in", tmp_path / "elsewhere/back")
    reader = open_prepared(tmp_path / "in", brightness, "brightness")
    assert files(reader.example()) == ["linked/x.png"]


@pytest.mark.parametrize(
    ("names", "found"),
    [([], "found no file"), (["a.txt", "b.txt", "c"], r"found 2 \.txt, 1 \(none")],
)
def test_a_folder_without_pictures_is_refused(tmp_path: Path, names: list[str], found: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=found):
        open_prepared(tmp_path, brightness, "brightness")


@pytest.mark.parametrize("name", ["x.png", "x.JPEG"])
def test_a_single_picture_is_refused(tmp_path: Path, name: str) -> None:
    grey(tmp_path / name, 1)
    with pytest.raises(InputError, match=f"is one picture.*folder that contains it, {tmp_path}"):
        find_input_format(tmp_path / name)
    with pytest.raises(InputError, match="does not exist"):
        find_input_format(tmp_path / "missing.png")


@pytest.mark.parametrize("strings", [[], [""], ["ä\n\"'", "日本", "x\udcff"]])
def test_packed_strings_are_unpacked_unchanged(strings: list[str]) -> None:
    packed = pack_strings(strings)
    assert packed.dtype == torch.uint8
    assert unpack_strings(packed) == strings
