"""Checks that an output can be written, and opens its writer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pipepar.data.writers.registry import find_output_format
from pipepar.data.writers.row_writer import RowWriter
from pipepar.data.writers.unfinished import Resumable
from pipepar.errors import InputError
from pipepar.files import require_writable

__all__ = ["RowWriter", "check_output_path", "open_output", "target_of"]

# Bytes that the longest name of a hidden file adds to the name of the output.
_LONGEST_ADDITION: Final = len(".") + len(".errors.jsonl") + len(".partial")


def target_of(path: Path) -> Path:
    """Return the final target if the output is a symbolic link, else the path unchanged."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def check_output_path(path: Path) -> None:
    """Refuse an output file that cannot be written.

    An existing file is accepted: it is replaced when the new one is complete.

    Args:
        path: the output file; its suffix determines the format.

    Raises:
        InputError: the suffix is unknown, the folder is missing or not writable, the path is a
            directory, or the names of the hidden files next to it would be too long.
    """
    find_output_format(path)
    target = target_of(path)
    require_writable("output", target)
    longest_name = os.pathconf(target.parent, "PC_NAME_MAX")
    size, most = len(os.fsencode(target.name)), longest_name - _LONGEST_ADDITION
    if size > most:
        raise InputError(
            f"output {target}: its name has {size} bytes; expected at most {most}, since the "
            f"hidden files next to it have up to {_LONGEST_ADDITION} more. Choose a shorter name."
        )


def open_output(path: Path, count: int, resumable: Resumable | None = None) -> RowWriter:
    """Return the writer of an output file, a context manager.

    Rows are written to the hidden file ``.NAME.partial`` in the same folder. An existing output is
    replaced only when the context is left without an exception and all samples are written. If the
    path is a symbolic link, its target is replaced. The partial file of a killed run is continued
    if `resumable` has it as unfinished output, else overwritten.

    Array formats write each row to its final offset, and rename the partial file. Line formats
    append lines, whose rows may differ in shape, and write a sorted copy, ``.NAME.sorted``, which
    they rename. Without samples the file is valid and has no rows.

    Args:
        path: the output file; its suffix determines the format.
        count: number of samples, each of which must be written exactly once.
        resumable: the partial file, the job and its unfinished output; None to write no journal.

    Returns:
        A writer; it writes nothing before its context is entered.

    Raises:
        InputError: as for ``check_output_path``.
    """
    check_output_path(path)
    target = resumable.partial.path if resumable else target_of(path)
    return find_output_format(path).writer(target, count, resumable)
