"""Reasons why a module cannot be traced, with the line of the user's code and a remedy."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from collections.abc import Iterable

import torch
from torch import nn

from pipepar.errors import CaptureError
from pipepar.model.compat.torch_internals import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    GuardOnDataDependentSymNode,
)
from pipepar.model.compat.transformers_internals import has_eager_experts

_DATA_DEPENDENT = (
    GuardOnDataDependentSymNode,
    DataDependentOutputException,
    DynamicOutputShapeException,
)


def not_traceable(module: nn.Module, failure: Exception | None) -> CaptureError:
    """Return the error for a module that could be traced with none of the shapes tried.

    Args:
        module: the module.
        failure: the last error of an attempt with the example's sizes; None if there was none,
            since each traced graph refused the example.

    Returns:
        The error, with the reason and a remedy.
    """
    error = CaptureError(
        f"{type(module).__name__} cannot be turned into a graph: {reason(module, failure)}; "
        f"{_remedy(module, failure)}, or pass its layers, which are not traced, as an "
        f"nn.Sequential or pipepar.Pipeline(layers=[...])"
    )
    error.__cause__ = failure
    return error


def reason(module: nn.Module, failure: Exception | None) -> str:
    """Return why tracing failed, in one line.

    Args:
        module: the module.
        failure: the error of the attempt; None if its graph did not accept the example.

    Returns:
        The reason, with the lines of the model and of the user's code if they are known.
    """
    if failure is None:
        return "the traced graph does not accept the example"
    frames = traceback.extract_tb(failure.__traceback__)
    lines = ", called at ".join(map(source_line, _model_frames(module, frames)))
    return f"{_cause(failure)}{lines and f', at {lines}'}"


def source_line(frame: traceback.FrameSummary) -> str:
    """Return the position of a frame as `file:line (source)`.

    Args:
        frame: a frame of a traceback.

    Returns:
        The position, without the source if it cannot be read.
    """
    position = f"{frame.filename}:{frame.lineno}"
    return f"{position} ({frame.line})" if frame.line else position


def _cause(failure: Exception) -> str:
    if isinstance(failure, _DATA_DEPENDENT):
        return "its control flow or a shape depends on the values of tensors"
    if _leaves_torch(failure):
        return "it takes tensors out of torch, which cannot be traced"
    lines = str(failure).strip().splitlines() or ["no message"]
    return f"{type(failure).__name__}: {lines[0].rstrip('.')}"


def _leaves_torch(failure: Exception) -> bool:
    """Whether an error's message mentions `.numpy()` or a data pointer; a fake tensor has none."""
    return any(word in str(failure) for word in (".numpy()", "data pointer", "data_ptr"))


def _remedy(module: nn.Module, failure: Exception | None) -> str:
    if isinstance(failure, _DATA_DEPENDENT) and has_eager_experts(module):
        return (
            "the eager code of the experts computes only the chosen ones: build the model with "
            'experts_implementation="grouped_mm" or "batched_mm"'
        )
    if isinstance(failure, _DATA_DEPENDENT):
        return "choose with torch.where or a mask instead, so that all inputs take the same path"
    if failure is not None and _leaves_torch(failure):
        return "use torch's own operation instead"
    return "check that the model itself accepts the example, or change that line"


def _model_frames(
    module: nn.Module, frames: Iterable[traceback.FrameSummary]
) -> list[traceback.FrameSummary]:
    """Return the innermost frame in the model's files, and the innermost in the user's code.

    The model's files define its classes; without a frame in them, the innermost frame outside of
    torch and this package counts. The two differ if the user's model contains one of a library. A
    layer of that library explains more than the helper function it calls, such as one that makes
    masks. Frames at the same line are returned once.
    """
    libraries = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "purelib", "platlib"))
    model_files = _model_files(module)
    frames = [frame for frame in frames if not is_tracing_code(frame.filename)]
    in_user_code = [frame for frame in frames if not frame.filename.startswith(libraries)]
    in_model = [frame for frame in frames if frame.filename in model_files]
    found = [*(in_model or frames)[-1:], *in_user_code[-1:]]
    return list({(frame.filename, frame.lineno): frame for frame in found}.values())


def is_tracing_code(filename: str) -> bool:
    """Whether a file belongs to torch or to this package.

    Args:
        filename: as in a traceback.

    Returns:
        True also for code without a file.
    """
    ours = __file__.rsplit("model", 1)[0]
    theirs = torch.__file__.rsplit("__init__", 1)[0]
    return filename.startswith((ours, theirs, "<"))


def _model_files(module: nn.Module) -> set[str]:
    """Return the files that define the module's classes, except those of torch and this package."""
    sources = {sys.modules.get(type(part).__module__) for part in module.modules()}
    files = {getattr(source, "__file__", None) for source in sources}
    return {name for name in files if name and not is_tracing_code(name)}
