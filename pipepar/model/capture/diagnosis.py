"""Why a module cannot be traced, and what to do about it, in the user's terms."""

from __future__ import annotations

import inspect
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
_LAYERS = (
    "give its layers, which are not traced: as an nn.Sequential or pipepar.Pipeline(layers=[...])"
)


def not_traceable(module: nn.Module, failure: Exception | None) -> CaptureError:
    """The error for a module that no choice of sizes could trace.

    Args:
        module: the module.
        failure: what the last attempt raised; None if its graph did not fit the example.

    Returns:
        The error, with the user's own line where that is known.
    """
    error = CaptureError(
        f"{type(module).__name__} cannot be turned into a graph: "
        f"{reason(module, failure)}; {_remedy(module, failure)}, or {_LAYERS}"
    )
    error.__cause__ = failure
    return error


def reason(module: nn.Module, failure: Exception | None) -> str:
    """What stopped the tracing, in one line.

    Args:
        module: the module.
        failure: what the attempt raised; None if its graph did not fit the example.

    Returns:
        The reason, and the model's own line where that is known.
    """
    if failure is None:
        return "what was traced does not fit the example"
    frames = traceback.extract_tb(failure.__traceback__)
    place = ", called at ".join(map(shown, _own_frames(module, frames)))
    return f"{_what(failure)}{place and f', at {place}'}"


def shown(frame: traceback.FrameSummary) -> str:
    """A line of code as `file:line (source)`.

    Args:
        frame: where it stands.

    Returns:
        Its place and, where it can be read, the line itself.
    """
    place = f"{frame.filename}:{frame.lineno}"
    return f"{place} ({frame.line})" if frame.line else place


def _what(failure: Exception) -> str:
    if isinstance(failure, _DATA_DEPENDENT):
        return "what it does next depends on the values of tensors"
    if _leaves_torch(failure):
        return "it takes tensors out of torch, where nothing can be traced"
    lines = str(failure).strip().splitlines() or ["no message"]
    return f"{type(failure).__name__}: {lines[0].rstrip('.')}"


def _leaves_torch(failure: Exception) -> bool:
    """Fakes refuse to become arrays and to show where their data lies."""
    return any(word in str(failure) for word in (".numpy()", "data pointer", "data_ptr"))


def _remedy(module: nn.Module, failure: Exception | None) -> str:
    if isinstance(failure, _DATA_DEPENDENT) and has_eager_experts(module):
        return (
            "the experts' eager code visits only those that were chosen: build the model with "
            'experts_implementation="grouped_mm" or "batched_mm"'
        )
    if isinstance(failure, _DATA_DEPENDENT):
        return "choose with torch.where or by a mask instead, which always compute the same"
    if failure is not None and _leaves_torch(failure):
        return "use torch's own operation instead"
    return "check that the model itself takes the example, or change that line"


def _own_frames(
    module: nn.Module, frames: Iterable[traceback.FrameSummary]
) -> list[traceback.FrameSummary]:
    """The innermost line that the user wrote, and the innermost of the model's classes.

    A model out of a library has no line of the user's; a helper of that library, such as the one
    that makes masks, says less than the layer which called it.
    """
    libraries = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "purelib", "platlib"))
    model = _files(module)
    theirs = [frame for frame in frames if not of_tracing(frame.filename)]
    written = [frame for frame in theirs if not frame.filename.startswith(libraries)]
    classes = [frame for frame in theirs if frame.filename in model]
    found = [*(classes or theirs)[-1:], *written[-1:]]
    return list({(frame.filename, frame.lineno): frame for frame in found}.values())


def of_tracing(filename: str) -> bool:
    """Whether a file is torch's or this package's, and so no place for a user to look.

    Args:
        filename: as in a traceback.

    Returns:
        Also True for code that has no file.
    """
    ours = __file__.rsplit("model", 1)[0]
    theirs = torch.__file__.rsplit("__init__", 1)[0]
    return filename.startswith((ours, theirs, "<"))


def _files(module: nn.Module) -> set[str]:
    """The files that define the module's classes, torch's own left out."""
    found = set()
    for kind in {type(part) for part in module.modules()}:
        try:
            found.add(inspect.getfile(kind))
        except (TypeError, OSError):
            continue  # defined in an interactive session
    return {name for name in found if not of_tracing(name)}
