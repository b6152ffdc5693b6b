"""The registry of output formats: each file of `writers.formats` defines one as ``FORMAT``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipepar.data.writers import formats
from pipepar.discovery import load, names_in, summaries_of
from pipepar.errors import InputError

if TYPE_CHECKING:
    # Imports torch, which --help must not wait for.
    from pipepar.data.writers.output_format import OutputFormat


def output_formats() -> list[OutputFormat]:
    """Return all formats: formats that support answers last, shorter suffixes first."""
    found: list[OutputFormat] = [load(formats, name, "FORMAT") for name in names_in(formats)]
    return sorted(found, key=lambda each: (each.holds_answers, len(each.suffix), each.suffix))


def output_summaries() -> list[str]:
    """Return a summary line of each format, without importing their modules."""
    return list(summaries_of(formats).values())


def answer_suffixes() -> list[str]:
    """Return the suffixes of the formats that support answers."""
    return [each.suffix for each in output_formats() if each.holds_answers]


def holds_answers(path: Path) -> bool:
    """Return whether the output's suffix is of a format that supports answers."""
    return path.suffix.lower() in answer_suffixes()


def find_output_format(path: Path) -> OutputFormat:
    """Return the format of an output by its suffix.

    Args:
        path: the output; it need not exist.

    Raises:
        InputError: no format has its suffix.
    """
    known = output_formats()
    for each in known:
        if each.suffix == path.suffix.lower():
            return each
    raise InputError(
        f"output {path} has the suffix {path.suffix!r}; expected one of "
        f"{', '.join(each.suffix for each in known)}. Choose one of them."
    )
