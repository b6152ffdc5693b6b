"""The private interfaces of torch that pipepar uses.

Tested on CPUs: torch 2.11.0 and 2.14.1 (CUDA builds) and 2.13.0. To test another version X:

    pip install --target FOLDER torch==X
    PYTHONPATH=FOLDER python -m pytest tests/model

Private names that have not changed for years stay where they are used: `torch.utils._pytree`, to
which the documentation of torch.export refers; `TorchDispatchMode`, which is documented in
"Extending PyTorch"; the tables of nn.Module (`_parameters`, `_buffers`, `_modules`, hooks); and
`Tensor._version`.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, Final

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx
from torch._export.serde import schema, serialize
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv

__all__ = [
    "CPU_ATTENTION",
    "EXAMPLE_MEMBER",
    "EXPORT_LOGGERS",
    "PROGRAM_MEMBER",
    "DataDependentOutputException",
    "DynamicOutputShapeException",
    "FakeTensor",
    "FakeTensorMode",
    "GuardOnDataDependentSymNode",
    "OpOverload",
    "ShapeEnv",
    "cast_options",
    "checkpoint_offset",
    "deserialize_program",
    "payload_member",
    "schema_arguments",
    "serialized_dtype",
    "sizes_fixed_by_tracing",
    "storage_number",
    "tracing_conditions",
]

EXPORT_LOGGERS: Final = ("torch._subclasses.fake_tensor", "torch._export.non_strict_utils")
"""The loggers that report each size that a model does not accept or that tracing fixes."""

CPU_ATTENTION: Final = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""The operation that computes attention on a CPU."""

PROGRAM_MEMBER: Final = "models/model.json"
"""The member of a .pt2 archive that contains the program."""
EXAMPLE_MEMBER: Final = "data/sample_inputs/model.pt"
"""The member of a .pt2 archive that contains the example inputs."""


def payload_member(kind: str) -> str:
    """Return the member of a .pt2 archive that describes the tensors of a kind.

    Args:
        kind: "weights" or "constants".
    """
    return f"data/{kind}/model_{kind}_config.json"


def serialized_dtype(number: Any) -> torch.dtype:
    """Return the dtype that a number in a .pt2 archive represents."""
    return serialize.deserialize_scalar_type(number)


def deserialize_program(
    program: bytes,
    state: dict[str, torch.Tensor],
    constants: dict[str, torch.Tensor],
    example: tuple[Any, ...],
) -> fx.GraphModule:
    """Build the module of a serialized program, with guards on its inputs.

    Args:
        program: the content of `PROGRAM_MEMBER`.
        state: the program's parameters and buffers by name; they may be on meta.
        constants: its other tensors by name.
        example: the inputs that it was exported with.
    """
    parsed = serialize._bytes_to_dataclass(schema.ExportedProgram, program)
    loaded = serialize.ExportedProgramDeserializer().deserialize(parsed, state, constants, example)
    module: fx.GraphModule = loaded.module(check_guards=True)
    return module


def tracing_conditions(env: ShapeEnv) -> tuple[Any, ...]:
    """Return the guards of tracing and the upper, not the lower, bounds of dynamic sizes.

    Returns:
        Expressions over the symbols of dynamic sizes, each once.
    """
    guards = [guard.expr.xreplace(env.replacements) for guard in env.guards]
    bounds = [
        symbol <= bound.upper
        for symbol, bound in env.var_to_range.items()
        if symbol not in env.replacements
        and bound.upper.is_Integer
        and bound.upper < sys.maxsize - 1
    ]
    return tuple(x for x in dict.fromkeys([*guards, *bounds]) if x is not sympy.true)


def sizes_fixed_by_tracing(env: ShapeEnv) -> Iterator[tuple[int, traceback.FrameSummary]]:
    """Yield each size that a guard fixes, and the source line that required it.

    Sizes for which torch recorded no line are omitted.
    """
    for guard in env.guards:
        frame = guard.sloc.framework_loc
        if isinstance(guard.expr, sympy.Eq) and isinstance(frame, traceback.FrameSummary):
            symbol, size = guard.expr.args
            if symbol.is_Symbol:
                yield size, frame


def schema_arguments(node: fx.Node) -> Iterator[tuple[torch.Argument, Any]]:
    """Yield every parameter in the schema of a node's operation, with its value in the node.

    The value is None if the node does not pass the parameter. Yields nothing for a node that does
    not call an operation of the dispatcher.
    """
    if not isinstance(node.target, OpOverload):
        return
    for index, parameter in enumerate(node.target._schema.arguments):
        given = index < len(node.args)
        yield parameter, node.args[index] if given else node.kwargs.get(parameter.name)


def storage_number(tensor: torch.Tensor) -> int:
    """Return a number that identifies a tensor's storage while it exists, also on meta."""
    number: int = tensor.untyped_storage()._cdata
    return number


def checkpoint_offset(tensor: torch.Tensor) -> int | None:
    """Return the byte offset in its file of a tensor's storage that `torch.load` put on meta.

    Returns:
        None for a file in the format that torch wrote before version 1.6.
    """
    return getattr(tensor.untyped_storage(), "_checkpoint_offset", None)


def cast_options(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dtype and the memory format among the arguments of `nn.Module.to`.

    Returns:
        Keyword arguments of `nn.Module.to`, without a device.
    """
    _, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    options = {"dtype": dtype, "memory_format": memory_format}
    return {name: value for name, value in options.items() if value is not None}
