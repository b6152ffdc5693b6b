"""Pictures in: a folder's files, decoded when their turn comes."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageOps

from pipepar.data.packed_strings import pack_strings
from pipepar.data.readers.prepared import Batch, Prepare, Prepared
from pipepar.data.readers.reader import PICTURE_SUFFIXES, Reader
from pipepar.data.sample_set import SampleSet
from pipepar.errors import InputError


def open_pictures(folder: Path, prepare: Prepare, what: str) -> Reader:
    """Open a folder of pictures, a sample each, in the order of their names. Local.

    Folders inside it count too. Hidden files and files of other suffixes are left out. A picture
    is decoded when its micro-batch is read, turned upright as its EXIF data say; of an animation
    the first picture counts.

    Args:
        folder: where the pictures are.
        prepare: given a list of RGB pictures, returns the model's arguments for them.
        what: that function, as a message shall call it.

    Returns:
        A reader whose feeds' extras hold "file", the pictures' paths within the folder as packed
        strings; the fault of a feed is a file that is no picture.

    Raises:
        InputError: there is no picture in the folder.
    """
    return Prepared(_Pictures(folder), prepare, what)


def fingerprint_of_pictures(folder: Path) -> str:
    """What tells a folder of pictures from others. *Local.*

    Args:
        folder: where the pictures are.

    Returns:
        SHA-256 of their names, sizes and times of change.
    """
    digest = hashlib.sha256()
    for name in sorted(_files(folder)):
        if Path(name).suffix.lower() in PICTURE_SUFFIXES:
            found = (folder / name).stat()
            digest.update(f"{name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


class _Pictures:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        files = sorted(_files(folder))
        self._names = [name for name in files if Path(name).suffix.lower() in PICTURE_SUFFIXES]
        if not self._names:
            raise _no_picture(folder, files)

    def __len__(self) -> int:
        return len(self._names)

    def batches(self, size: int, done: SampleSet) -> Iterator[Batch]:
        for start in range(0, len(self._names), size):
            names = self._names[start : start + size]
            if not done.covers(start, start + len(names)):
                yield self._read(start, names)

    def example(self) -> Batch:
        return self._read(0, self._names[:2])

    def _read(self, start: int, names: list[str]) -> Batch:
        extras = {"file": pack_strings(names)}
        try:
            pictures = [_decode(self._folder / name) for name in names]
        except InputError as error:
            return Batch(start, len(names), [], extras, error)
        return Batch(start, len(names), pictures, extras)


def _files(folder: Path) -> Iterator[str]:
    """Yield the paths of all files that are not hidden, relative to the folder, with slashes."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        # A link may lead back up, to a folder that has been visited.
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(parent).relative_to(folder)
        yield from ((inside / name).as_posix() for name in files if not name.startswith("."))


def _no_picture(folder: Path, files: list[str]) -> InputError:
    kinds = Counter(Path(name).suffix or "(none)" for name in files).most_common(5)
    found = ", ".join(f"{count} {suffix}" for suffix, count in kinds)
    return InputError(
        f"{folder} is a folder without a picture (found {found or 'no file'}); expected files that "
        f"end in {', '.join(PICTURE_SUFFIXES)}. Name a folder of pictures, or one file of text or "
        "arrays."
    )


def _decode(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except Exception as error:  # each of Pillow's decoders fails in a way of its own
        raise InputError(
            f"{path} cannot be read as a picture: {error}. Expected a complete file; copy it "
            "again, or move it out of the folder."
        ) from error
