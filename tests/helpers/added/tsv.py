"""Numbers of one tensor (.tsv): a sample per line, tabs between the values of its row."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from pipepar.data.writers.line_writer import LineWriter
from pipepar.data.writers.output_format import OutputFormat
from pipepar.errors import InputError


class TsvWriter(LineWriter):
    """Writes the values of a row with tabs between them; an empty line for a failed sample."""

    def _row_lines(self, positions: list[int], rows: Mapping[str, torch.Tensor]) -> Iterator[bytes]:
        (tensor,) = rows.values()
        for row in tensor.tolist():
            yield "\t".join(map(repr, row)).encode() + b"\n"

    def _answer_line(self, position: int, answer: Any) -> bytes:
        if answer is not None:
            raise InputError(f"output {self.path} holds numbers; found a {type(answer).__name__}.")
        return b"\n"


def _check(tensors: Mapping[str, torch.Tensor]) -> None:
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    if [len(shape) for shape in shapes] != [2]:
        raise InputError(f"a .tsv file holds one tensor [B, values], found {shapes}")


FORMAT = OutputFormat(suffix=".tsv", writer=TsvWriter, check=_check)
