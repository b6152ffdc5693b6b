"""What a model returned becomes rows of the output: tensors by name, or one answer a sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch.utils import _pytree as pytree

from pipepar.errors import InputError

Columns: TypeAlias = Mapping[str, torch.Tensor]
"""What the reader sent along, see `Feed.columns`."""

Rows: TypeAlias = Mapping[str, torch.Tensor] | list[Any]
"""For a writer: tensors [B, ...] by name, or a list of one JSON value a sample."""

Answer: TypeAlias = Callable[[Any, Columns], Rows]
"""Given the model's own output for a micro-batch and the columns, returns the rows."""


def as_tensors(output: Any, columns: Columns) -> Rows:
    """Take the tensors of a model's output as they are.

    Args:
        output: what the model returned.
        columns: not looked at.
    """
    return tensors_by_name(output)


def tensors_by_name(output: Any) -> dict[str, torch.Tensor]:
    """Find the tensors of a model's output by name; a single tensor is called "output".

    Args:
        output: what the model returned, nested in any way.
    """
    named = {}
    for path, leaf in pytree.tree_flatten_with_path(output)[0]:
        if isinstance(leaf, torch.Tensor):
            named[".".join(map(_word, path)) or "output"] = leaf
    return named


def _word(key: Any) -> str:
    """A dict's key, a field's name or a position, which torch keeps in as many attributes."""
    found = (getattr(key, kind) for kind in ("key", "name", "idx") if hasattr(key, kind))
    return str(next(found, key))


def logits_of(output: Any) -> torch.Tensor:
    """Find the scores in a model's output.

    Args:
        output: what the model returned: one tensor, or several of which one is called logits.

    Returns:
        The tensor, as it is.

    Raises:
        InputError: there are several tensors, and none has that name.
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
    """Bring scores to the host, in float32 or better, to compute with.

    Args:
        logits: of any floating dtype, on any device.
    """
    return logits.detach().to("cpu", torch.promote_types(logits.dtype, torch.float32))


def answered_by(function: Callable[[Any], Any], name: str) -> Answer:
    """Let a function of the user's make the rows.

    Args:
        function: given the model's own output, returns a tensor, a dict of tensors, or a list of
            one JSON value a sample.
        name: of that function, as the user knows it.

    Returns:
        An answer; it raises InputError for anything else that the function returns.
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
                "or a list with one JSON value a sample. Return one of them."
            )
        for key, value in made.items():
            if not isinstance(value, torch.Tensor):
                raise InputError(
                    f"{name} returned a {type(value).__name__} as {key!r}; expected a tensor. "
                    "Convert it with torch.as_tensor, or return a list with one value a sample."
                )
        return made

    return answer
