"""Conversion of a model's output to rows of the output file: tensors by name, or JSON values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch.utils import _pytree as pytree

from pipepar.errors import InputError

Columns: TypeAlias = Mapping[str, torch.Tensor]
"""Additional data of the reader about a micro-batch's samples; see `Feed.columns`."""

Rows: TypeAlias = Mapping[str, torch.Tensor] | list[Any]
"""Rows for a writer: tensors [B, ...] by name, or a list with one JSON value per sample."""

Answer: TypeAlias = Callable[[Any, Columns], Rows]
"""Takes the model's output for a micro-batch and its columns, and returns its rows."""


def as_tensors(output: Any, columns: Columns) -> Rows:
    """Return the tensors of a model's output by name; an `Answer`.

    Args:
        output: the model's output.
        columns: ignored.
    """
    return tensors_by_name(output)


def tensors_by_name(output: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a model's output by name.

    Args:
        output: the model's output: a tensor, or tensors in nested containers.

    Returns:
        The tensors by their paths, such as "scores.0"; "output" for an output that is one tensor.
        Values that are not tensors, and objects that torch's pytree does not treat as containers,
        are omitted, so the dict may be empty.
    """
    named = {}
    for path, leaf in pytree.tree_flatten_with_path(output)[0]:
        if isinstance(leaf, torch.Tensor):
            named[".".join(map(_step_name, path)) or "output"] = leaf
    return named


def _step_name(step: Any) -> str:
    """Return one step of a path as a string: a key, a field name or an index."""
    found = (getattr(step, kind) for kind in ("key", "name", "idx") if hasattr(step, kind))
    return str(next(found, step))


def logits_of(output: Any) -> torch.Tensor:
    """Return the logits in a model's output.

    Args:
        output: the model's output: with one tensor of any name, or with one at the path "logits".

    Returns:
        The tensor, unchanged.

    Raises:
        InputError: the output has no tensor, or several and none at this path.
    """
    named = tensors_by_name(output)
    if len(named) == 1:
        return next(iter(named.values()))
    if "logits" not in named:
        raise InputError(
            f"the model returns {len(named)} tensors ({', '.join(named)}), expected one, or one "
            "called logits; return the scores alone, or {'logits': scores}"
        )
    return named["logits"]


def full_precision(logits: torch.Tensor) -> torch.Tensor:
    """Return logits on the CPU, in float32 or the logits' own dtype if that is more precise.

    Args:
        logits: of any floating dtype, on any device.
    """
    return logits.detach().to("cpu", torch.promote_types(logits.dtype, torch.float32))


def answered_by(function: Callable[[Any], Any], name: str) -> Answer:
    """Return an `Answer` that calls a function of the user with the output, without the columns.

    Args:
        function: takes the model's output and returns a tensor, a dict of tensors, or a list with
            one JSON value per sample.
        name: the function's name in messages.

    Returns:
        An answer that raises InputError if the function returns another type, or a dict with a
        value that is not a tensor. It does not check sizes or catch the function's exceptions.
    """

    def answer(output: Any, columns: Columns) -> Rows:
        made = function(output)
        if isinstance(made, torch.Tensor):
            return {"output": made}
        if isinstance(made, list):
            return made
        if not isinstance(made, Mapping):
            raise InputError(
                f"{name} returned a {type(made).__name__}; expected a tensor, a dict of tensors, "
                "or a list with one JSON value per sample. Return one of them."
            )
        for key, value in made.items():
            if not isinstance(value, torch.Tensor):
                raise InputError(
                    f"{name} returned a {type(value).__name__} as {key!r}; expected a tensor. "
                    "Convert it with torch.as_tensor, or return a list with one value per sample."
                )
        return made

    return answer
