"""Why a module cannot be traced, in the user's terms."""

from __future__ import annotations

import traceback

import torch
from torch import nn

from pipepar.errors import CaptureError


def not_traceable(module: nn.Module, failure: Exception | None) -> CaptureError:
    """The error for a module that no choice of sizes could trace. *Local.*

    Args:
        module: the module.
        failure: what the last attempt raised; None if its graph did not fit the example.

    Returns:
        The error, with the user's own line where that is known.
    """
    error = CaptureError(
        f"{type(module).__name__} cannot be turned into a graph: {_reason(failure)}"
        f"{_user_line(failure)}; give the model as an nn.Sequential of its layers, or change "
        f"that line so that it does not depend on the values of tensors"
    )
    error.__cause__ = failure
    return error


def _reason(failure: Exception | None) -> str:
    if failure is None:
        return "what was traced does not fit the example"
    lines = str(failure).strip().splitlines() or ["no message"]
    return f"{type(failure).__name__}: {lines[0]}"


def _user_line(failure: Exception | None) -> str:
    """The innermost line outside of torch and of this package."""
    ours = __file__.rsplit("model", 1)[0]
    theirs = torch.__file__.rsplit("__init__", 1)[0]
    frames = traceback.extract_tb(failure.__traceback__) if failure else []
    for frame in reversed(frames):
        if not frame.filename.startswith((ours, theirs, "<")):
            return f" ({frame.filename}:{frame.lineno}: {frame.line})"
    return ""
