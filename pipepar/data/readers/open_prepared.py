"""Readers that hand the samples of an input to one function, or take them as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipepar.data.readers.prepared import Prepare, Prepared
from pipepar.data.readers.reader import Reader
from pipepar.data.readers.registry import find_input_format
from pipepar.data.readers.text_samples import TextRules


def open_prepared(path: Path, prepare: Prepare, name: str, lenient: bool = False) -> Reader:
    """Open an input of any format, whose samples a function makes the model's arguments of.

    Args:
        path: the input.
        prepare: given a micro-batch's samples (a list of texts, a list of RGB pictures, a tensor
            [B, ...] of a positional array, or tensors by name), returns the arguments.
        name: of that function, as the user knows it.
        lenient: whether a text that cannot be read is the fault of its micro-batch; if not, the
            input is refused.

    Returns:
        A reader whose feeds have the samples in the input's order.

    Raises:
        InputError: the input is missing or damaged, or no format has its suffix.
    """
    samples = find_input_format(path).open(path, TextRules(lenient=lenient))
    return Prepared(samples, prepare, name)


def open_arrays(path: Path) -> Reader:
    """Open a file of arrays that are the model's arguments as they are.

    Args:
        path: a file of a format that holds arrays.

    Returns:
        A reader whose feeds have the rows in the file's order and the file's dtypes.

    Raises:
        InputError: the file is missing, damaged, of another format, or holds what is no array of
            rows: a 0-d array, Python objects, a dtype that torch lacks, unequal numbers of rows.
    """
    samples = find_input_format(path, lambda each: each.kind == "arrays").open(path, TextRules())
    return Prepared(samples, _as_they_are, f"reading {path}")


def _as_they_are(rows: Any) -> Any:
    return rows
