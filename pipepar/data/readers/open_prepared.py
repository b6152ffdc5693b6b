"""Opens readers that prepare samples with a function, or pass arrays to the model unchanged."""

from __future__ import annotations

from pathlib import Path

from pipepar.data.readers.prepared import Prepare, PreparedReader
from pipepar.data.readers.reader import Reader
from pipepar.data.readers.registry import find_input_format
from pipepar.data.readers.text_samples import TextRules


def open_prepared(path: Path, prepare: Prepare, name: str, lenient: bool = False) -> Reader:
    """Open an input of any format whose samples a function converts to the model's arguments.

    Args:
        path: the input.
        prepare: takes a micro-batch's samples (a list of texts, a list of RGB pictures, a tensor
            [B, ...] of a positional array, or tensors by name) and returns the arguments.
        name: the name of that function in messages.
        lenient: whether a text that cannot be read becomes the fault of its micro-batch; otherwise
            the input is refused here. A picture that cannot be read is always such a fault.

    Returns:
        A reader whose feeds have the samples in the input's order.

    Raises:
        InputError: the input is missing, no format has its suffix, a file of arrays is damaged, or
            a text cannot be read and `lenient` is False.
        OSError: the input cannot be read.
    """
    samples = find_input_format(path).open(path, TextRules(lenient=lenient))
    return PreparedReader(samples, prepare, name)


def open_arrays(path: Path) -> Reader:
    """Open a file of arrays that are passed to the model unchanged.

    Args:
        path: a file of a format that holds arrays.

    Returns:
        A reader whose feeds have the rows in the file's order and the file's dtypes.

    Raises:
        InputError: the file is missing, damaged or of another format, or contains no array, a 0-d
            array, Python objects, a dtype that torch lacks, or unequal numbers of rows.
        OSError: the file cannot be read.
    """
    samples = find_input_format(path, lambda each: each.kind == "arrays").open(path, TextRules())
    return PreparedReader(samples, lambda rows: rows, f"reading {path}")
