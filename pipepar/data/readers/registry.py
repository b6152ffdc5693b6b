"""The registry of input formats: each file of `readers.formats` defines one as ``FORMAT``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipepar.data.readers import formats
from pipepar.discovery import load, names_in, summaries_of
from pipepar.errors import InputError

if TYPE_CHECKING:
    # Not imported at run time: it imports torch, which would slow down --help.
    from pipepar.data.readers.input_format import InputFormat, Kind


def input_formats() -> list[InputFormat]:
    """Return all formats, sorted by the kind of their samples, then by suffix, shortest first."""
    found: list[InputFormat] = [load(formats, name, "FORMAT") for name in names_in(formats)]
    return sorted(found, key=lambda each: (each.kind, len(each.suffixes[0]), each.suffixes))


def input_summaries() -> list[str]:
    """Return a summary line of each format, without importing the modules of the formats."""
    return list(summaries_of(formats).values())


def find_input_format(
    path: Path, accepts: Callable[[InputFormat], bool] = lambda each: True
) -> InputFormat:
    """Return the format of an input, after checking that it exists, and that a file is readable.

    Args:
        path: the input: a folder, or a file whose suffix determines its format.
        accepts: whether the caller accepts a format; the default accepts all.

    Raises:
        InputError: the input is missing; no accepted format is that of a folder, or has the suffix
            of the file; it is one picture instead of a folder; or the file is unreadable.
    """
    accepted = [each for each in input_formats() if accepts(each)]
    if path.is_dir():
        return _folder_format(path, accepted)
    if not path.exists():
        raise InputError(
            f"{path} does not exist, seen from {Path.cwd()}; expected an input file. Check the "
            "path, and that its file system is mounted on this host."
        )
    found = next((each for each in accepted if path.suffix.lower() in each.suffixes), None)
    if found is None:
        raise InputError(
            f"{path} has the suffix {path.suffix!r}; expected one of {_suffix_list(accepted)}. "
            "Convert the file, or rename it if its suffix is wrong."
        )
    if found.is_folder:
        raise InputError(
            f"{path} is one {found.kind.removesuffix('s')}; expected a folder of {found.kind}, one "
            f"per sample. Name the folder that contains it, {path.parent}."
        )
    if not os.access(path, os.R_OK):
        raise InputError(
            f"{path}: this user has no permission to read it; expected a readable file. "
            "Change its permissions (chmod +r)."
        )
    return found


def kind_by_name(path: Path) -> Kind | None:
    """Return the kind of the samples in a file, by its suffix; the file is not accessed.

    Args:
        path: the input.

    Returns:
        None if no file format has the suffix; also for a picture, whose format is a folder.
    """
    files = (each for each in input_formats() if not each.is_folder)
    return next((each.kind for each in files if path.suffix.lower() in each.suffixes), None)


def suffixes_of(kind: Kind) -> str:
    """Return the suffixes of the file formats with samples of a kind, for messages."""
    return _suffix_list([each for each in input_formats() if each.kind == kind])


def _suffix_list(found: list[InputFormat]) -> str:
    """Return the suffixes of the formats of files, without those of folders."""
    return ", ".join(suffix for each in found if not each.is_folder for suffix in each.suffixes)


def _folder_format(path: Path, accepted: list[InputFormat]) -> InputFormat:
    """Return the first accepted format whose inputs are folders.

    Raises:
        InputError: there is none.
    """
    found = next((each for each in accepted if each.is_folder), None)
    if found is None:
        raise InputError(f"{path} is a directory; expected one file. Name a file inside it.")
    return found
