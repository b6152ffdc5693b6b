"""Outputs: the formats that pipepar writes, and how to open one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pipepar.data.writers.array_writer import NpyWriter, SafetensorsWriter
from pipepar.data.writers.jsonl_writer import JsonlWriter
from pipepar.data.writers.row_writer import Writer
from pipepar.data.writers.unfinished import Resumable
from pipepar.errors import InputError
from pipepar.files import require_writable

__all__ = ["OUTPUT_SUFFIXES", "Writer", "check_output", "open_output", "target_of"]

OUTPUT_SUFFIXES = (".npy", ".safetensors", ".jsonl")


# Of what is added to an output's name for the files beside it.
_LONGEST: Final = len(".") + len(".errors.jsonl") + len(".partial")


def target_of(path: Path) -> Path:
    """The file that an output's name stands for: where it is a link, what the link points at."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def check_output(path: Path) -> None:
    """Refuse an output file that could not be written, before any work is done. Local.

    An existing file is no obstacle: it is replaced once the new one is complete.

    Args:
        path: the output file; its suffix names the format.

    Raises:
        InputError: the suffix is unknown, the folder is missing or not writable, the path is a
            directory, or its name is too long for the files beside it.
    """
    if path.suffix.lower() not in OUTPUT_SUFFIXES:
        raise InputError(
            f"output {path} has the suffix {path.suffix!r}; expected one of "
            f"{', '.join(OUTPUT_SUFFIXES)}. Choose one of them."
        )
    target = target_of(path)
    require_writable("output", target)
    size, most = len(os.fsencode(target.name)), os.pathconf(target.parent, "PC_NAME_MAX") - _LONGEST
    if size > most:
        raise InputError(
            f"output {target}: its name has {size} bytes; expected at most {most}, as files beside "
            f"it have up to {_LONGEST} more. Choose a shorter name."
        )


def open_output(path: Path, count: int, resumable: Resumable | None = None) -> Writer:
    """Make the writer of an output file, to be used as a context manager. Local.

    The file appears under its name complete, when the context is left without an exception; until
    then, and after an exception, what had the name before is untouched. Where the path is a link,
    that is what it points at. A hidden ``.NAME.partial`` grows beside it; one that a killed run
    left behind is overwritten, or gone on with.

    ``.npy`` holds the one output of the model, ``.safetensors`` any number of them by name. In
    both, rows go straight to their place in the file, so that memory stays bounded. ``.jsonl``
    holds one line a sample, in the input's order: an object whose rows may differ in shape, or
    whatever JSON value the sample was answered with. Its floats are exact, and what is not finite
    is written ``NaN``, ``Infinity`` and ``-Infinity``, which Python's json reads but strict JSON
    lacks. Without samples the file is valid and empty; a ``.npy`` file then has the shape (0,) and
    dtype float32, as no row has told better.

    Args:
        path: the output file, ``.npy``, ``.safetensors`` or ``.jsonl``.
        count: number of samples, each of which must be written exactly once.
        resumable: what it takes to be resumed; without, no journal is kept.

    Returns:
        A writer; it writes nothing before its context is entered.

    Raises:
        InputError: as for ``check_output``.
    """
    check_output(path)
    suffix = path.suffix.lower()
    target = resumable.partial.path if resumable else target_of(path)
    if suffix == ".npy":
        return NpyWriter(target, count, resumable)
    if suffix == ".safetensors":
        return SafetensorsWriter(target, count, resumable)
    return JsonlWriter(target, count, resumable)
