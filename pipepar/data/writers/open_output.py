"""Opens outputs, after checking that they can be written."""

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

# Of what is added to an output's name for the files beside it.
_LONGEST: Final = len(".") + len(".errors.jsonl") + len(".partial")


def target_of(path: Path) -> Path:
    """The file that an output's name stands for: where it is a link, what the link points at."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def check_output_path(path: Path) -> None:
    """Refuse an output file that could not be written, before any work is done.

    An existing file is no obstacle: it is replaced once the new one is complete.

    Args:
        path: the output file; its suffix names the format.

    Raises:
        InputError: the suffix is unknown, the folder is missing or not writable, the path is a
            directory, or its name is too long for the files beside it.
    """
    find_output_format(path)
    target = target_of(path)
    require_writable("output", target)
    size, most = len(os.fsencode(target.name)), os.pathconf(target.parent, "PC_NAME_MAX") - _LONGEST
    if size > most:
        raise InputError(
            f"output {target}: its name has {size} bytes; expected at most {most}, as files beside "
            f"it have up to {_LONGEST} more. Choose a shorter name."
        )


def open_output(path: Path, count: int, resumable: Resumable | None = None) -> RowWriter:
    """Make the writer of an output file, to be used as a context manager.

    The file appears under its name complete, when the context is left without an exception; until
    then, and after an exception, what had the name before is untouched. Where the path is a link,
    that is what it points at. A hidden ``.NAME.partial`` grows beside it; one that a killed run
    left behind is overwritten, or gone on with.

    In the formats of arrays, rows go straight to their place in the file, so that memory stays
    bounded; in those of lines, rows may differ in shape, and the lines are copied in the input's
    order at the end. Without samples the file is valid and empty.

    Args:
        path: the output file; its suffix names the format.
        count: number of samples, each of which must be written exactly once.
        resumable: what it takes to be resumed; without, no journal is kept.

    Returns:
        A writer; it writes nothing before its context is entered.

    Raises:
        InputError: as for ``check_output_path``.
    """
    check_output_path(path)
    target = resumable.partial.path if resumable else target_of(path)
    return find_output_format(path).writer(target, count, resumable)
