"""Outputs: the formats that pipepar writes, and how to open one."""

from __future__ import annotations

from pathlib import Path

from pipepar.data.lines import JsonWriter
from pipepar.data.placed import NpyWriter, SafetensorsWriter
from pipepar.data.writer import Writer
from pipepar.errors import InputError
from pipepar.files import require_writable

__all__ = ["OUTPUT_SUFFIXES", "Writer", "check_output", "open_output"]

OUTPUT_SUFFIXES = (".npy", ".safetensors", ".jsonl")


def check_output(path: Path) -> None:
    """Refuse an output file that could not be written, before any work is done. Local.

    An existing file is no obstacle: it is replaced once the new one is complete.

    Args:
        path: the output file; its suffix names the format.

    Raises:
        InputError: the suffix is unknown, the folder is missing or not writable, or the path is
            a directory.
    """
    if path.suffix.lower() not in OUTPUT_SUFFIXES:
        raise InputError(
            f"output {path} has the suffix {path.suffix!r}; expected one of "
            f"{', '.join(OUTPUT_SUFFIXES)}. Choose one of them."
        )
    require_writable("output", path)


def open_output(path: Path, count: int) -> Writer:
    """Make the writer of an output file, to be used as a context manager. Local.

    The file appears under its name complete, when the context is left without an exception; until
    then, and after an exception, what had the name before is untouched. A hidden ``.NAME.partial``
    grows beside it; one that a killed run left behind is overwritten, or gone on with where the
    writer keeps a journal (`Writer.journalled`).

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

    Returns:
        A writer; nothing is on disk before its context is entered.

    Raises:
        InputError: as for ``check_output``.
    """
    check_output(path)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return NpyWriter(path, count)
    return SafetensorsWriter(path, count) if suffix == ".safetensors" else JsonWriter(path, count)
