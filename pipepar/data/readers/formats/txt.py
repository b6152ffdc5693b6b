"""Text (.txt): a sample per line, empty lines included."""

from collections.abc import Iterator
from pathlib import Path

from pipepar.data.readers.input_format import TextFormat
from pipepar.data.readers.text_lines import read_lines, read_valid_lines


def _labels(path: Path) -> Iterator[tuple[str, object]]:
    for where, line in read_valid_lines(path):
        yield where, line.strip()


FORMAT = TextFormat(suffixes=(".txt",), texts=read_lines, labels=_labels)
