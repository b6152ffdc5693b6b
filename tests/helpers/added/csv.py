"""Text (.csv): a sample per row, the field in its column 'text'."""

import csv
from collections.abc import Iterator
from pathlib import Path

from pipepar.data.readers.input_format import TextFormat
from pipepar.data.readers.text_samples import Text
from pipepar.errors import InputError


def _texts(path: Path) -> Iterator[tuple[str, Text]]:
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=1):
            where = f"{path}, row {number}"
            text = row.get("text")
            lacking = f"{where}: no field 'text'; expected one in each row. Repair the row."
            yield where, InputError(lacking) if text is None else text


FORMAT = TextFormat(suffixes=(".csv",), texts=_texts)
