"""A micro-batch as a tuple of entries, the values that a channel sends, and back.

    error  step fields  samples  column names  columns...  values...

Each of the first four is None if the micro-batch has no such field. None is part of the spec, so it
is sent only if the spec changes. The index and the number of the program are in the header.
"""

from __future__ import annotations

import json
from typing import Final

import torch

from pipepar.errors import WireError
from pipepar.microbatch import ONLY_STEP, Fault, MicroBatch, Step, Value

_FIELDS: Final = 4  # entries before the columns


def entries_of(microbatch: MicroBatch) -> tuple[Value, ...]:
    """Return the entries of a micro-batch."""
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
    """Return the micro-batch with these entries; the inverse of `entries_of`.

    Args:
        index: its position in the stream.
        program: the number of its program.
        entries: the entries as received.

    Raises:
        WireError: the entries have a wrong number, type, dtype or shape.
    """
    if len(entries) < _FIELDS:
        raise WireError(
            f"a micro-batch of {len(entries)} entries arrived, expected {_FIELDS} or more"
        )
    error, fields, samples, names, *values = entries
    if error is fields is samples is names is None and not program:  # the usual case, made fast
        return MicroBatch(index, tuple(values))
    columns, step = _columns(_names(names), values), ONLY_STEP
    if program or fields is not None:
        step = Step(program, _numbers(fields, "step fields"))
    return MicroBatch(
        index,
        tuple(values[len(columns) :]),
        _numbers(samples, "samples"),
        columns,
        _fault(error),
        step,
    )


def _columns(names: list[str], values: list[Value]) -> dict[str, torch.Tensor]:
    if len(values) < len(names):
        raise WireError(f"{len(names)} columns are announced, found {len(values)} entries for them")
    pairs = zip(names, values, strict=False)
    return {name: _tensor(value, f"column {name!r}") for name, value in pairs}


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
        raise WireError(f"a micro-batch has the field {text!r}, expected JSON: {error}") from error


def _numbers(value: Value, name: str) -> torch.Tensor | None:
    if value is None:
        return None
    tensor = _tensor(value, name)
    if tensor.dtype != torch.int64 or tensor.dim() != 1:
        raise WireError(
            f"{name} of a micro-batch are {tensor.dtype} {list(tensor.shape)}, expected int64 of "
            "one dimension"
        )
    return tensor


def _tensor(value: Value, name: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        kind = type(value).__name__
        raise WireError(f"found type {kind} as {name} of a micro-batch, expected a tensor")
    return value
