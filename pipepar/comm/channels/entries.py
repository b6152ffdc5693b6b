"""A micro-batch as the values that a channel moves, and back.

    error  step fields  samples  names of columns  columns...  values...

The first four are None where there is nothing to say, which costs nothing once the spec is known to
both sides. The number of the program travels in the header.
"""

from __future__ import annotations

import json
from typing import Final

import torch

from pipepar.errors import WireError
from pipepar.microbatch import ONLY_STEP, Fault, MicroBatch, Step, Value

_BESIDE: Final = 4


def entries_of(microbatch: MicroBatch) -> tuple[Value, ...]:
    """Everything that travels of a micro-batch but its index and its program."""
    error, columns = microbatch.error, microbatch.columns
    return (
        None if error is None else json.dumps([error.stage, error.error]),
        microbatch.step.fields,
        microbatch.samples,
        json.dumps(list(columns)) if columns else None,
        *columns.values(),
        *microbatch.values,
    )


def microbatch_of(index: int, program: int, entries: tuple[Value, ...]) -> MicroBatch:
    """The micro-batch that `entries_of` made these entries of.

    Args:
        index: its position in the stream.
        program: the number of its program.
        entries: as they arrived.

    Raises:
        WireError: they are not those of a micro-batch.
    """
    if len(entries) < _BESIDE:
        raise WireError(
            f"a micro-batch of {len(entries)} entries arrived, expected {_BESIDE} or more"
        )
    error, fields, samples, names, *values = entries
    if error is fields is samples is names is None and not program:
        return MicroBatch(index, tuple(values))
    columns = _columns(_names(names), values)
    return MicroBatch(
        index,
        tuple(values[len(columns) :]),
        _numbers(samples, "samples"),
        columns,
        _fault(error),
        Step(program, _numbers(fields, "step")) if program or fields is not None else ONLY_STEP,
    )


def _columns(names: list[str], values: list[Value]) -> dict[str, torch.Tensor]:
    if len(values) < len(names):
        raise WireError(f"{len(names)} columns are announced, found {len(values)} entries for them")
    return {name: _tensor(value, name) for name, value in zip(names, values, strict=False)}


def _names(text: Value) -> list[str]:
    if text is None:
        return []
    names = _parsed(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise WireError(f"the names of columns are {text!r}, expected a list of strings")
    return names


def _fault(text: Value) -> Fault | None:
    if text is None:
        return None
    match _parsed(text):
        case [int() | str() as stage, str() as error]:
            return Fault(stage, error)
    raise WireError(f"the error of a micro-batch is {text!r}, expected a stage and a message")


def _parsed(text: Value) -> object:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError) as error:
        raise WireError(f"found {text!r} beside the values, expected JSON: {error}") from error


def _numbers(value: Value, name: str) -> torch.Tensor | None:
    if value is None:
        return None
    tensor = _tensor(value, name)
    if tensor.dtype != torch.int64 or tensor.dim() != 1:
        raise WireError(
            f"{name} of a micro-batch are {tensor.dtype} {list(tensor.shape)}, expected int64 [b]"
        )
    return tensor


def _tensor(value: Value, name: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise WireError(f"{name} of a micro-batch is a {type(value).__name__}, expected a tensor")
    return value
