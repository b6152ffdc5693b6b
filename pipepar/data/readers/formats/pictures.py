"""A folder of pictures (.png, .jpg, ...): each is a sample, in the order of their paths."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps

from pipepar.data.packed_strings import pack_strings
from pipepar.data.readers.input_format import PictureFolder
from pipepar.data.readers.prepared import Batch
from pipepar.data.sample_set import SampleSet
from pipepar.errors import InputError

_SUFFIXES: Final = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class _Pictures:
    """The picture files of a folder and its subfolders, in the order of their relative paths.

    Hidden files and folders, and files with other suffixes, are left out. A batch contains a list
    of PIL images in RGB. A picture is decoded when its micro-batch is read, and rotated according
    to its EXIF data; of an animation, the first frame is read. If a picture cannot be decoded, its
    batch contains no pictures, and its `fault` is the error. The column "file" contains the paths
    relative to the folder, as packed strings.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        files = sorted(_files(folder))
        self._names = [name for name in files if Path(name).suffix.lower() in _SUFFIXES]
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
        columns = {"file": pack_strings(names)}
        try:
            pictures = [_decode(self._folder / name) for name in names]
        except InputError as error:
            return Batch(start, len(names), [], columns, error)
        return Batch(start, len(names), pictures, columns)


def _files(folder: Path) -> Iterator[str]:
    """Yield the paths of all files that are not hidden, relative to the folder, with slashes.

    Hidden folders are skipped. A folder that several links point to is read once.
    """
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        # A link may point to a folder that was read before, such as a parent.
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
        f"{folder} is a folder without pictures (found {found or 'no file'}); expected files with "
        f"the suffixes {', '.join(_SUFFIXES)}. Give a folder of pictures, or one file of text or "
        "arrays."
    )


def _decode(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except Exception as error:  # each decoder of Pillow raises other exceptions
        raise InputError(
            f"{path} cannot be read as a picture: {error}. Expected a complete file; copy it "
            "again, or move it out of the folder."
        ) from error


def _digest(folder: Path) -> str:
    """Return a SHA-256 digest of the pictures' names, sizes and modification times."""
    digest = hashlib.sha256()
    for name in sorted(_files(folder)):
        if Path(name).suffix.lower() in _SUFFIXES:
            found = (folder / name).stat()
            digest.update(f"{name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


FORMAT = PictureFolder(suffixes=_SUFFIXES, pictures=_Pictures, digest=_digest)
