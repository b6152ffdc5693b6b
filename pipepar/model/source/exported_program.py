"""A program that `torch.export.save` wrote: its graph is read, its weights stay in the file.

A .pt2 file is an uncompressed zip archive: the program as JSON, every weight as bytes of its own,
and JSON that says which is which. `torch.export.load` would read all of it into memory.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, Final

import torch
from torch import fx, nn
from torch._export.serde import schema
from torch._export.serde.serialize import (
    ExportedProgramDeserializer,
    _bytes_to_dataclass,
)

from pipepar.errors import InputError
from pipepar.microbatch import TensorSpec
from pipepar.model.weights.checkpoint import TensorFiles
from pipepar.model.weights.exported_weights import (
    Payload,
    payloads,
    read_member,
    stored_tensor,
)

aten = torch.ops.aten

_MODEL: Final = "models/model.json"
_EXAMPLE: Final = "data/sample_inputs/model.pt"


def open_exported(path: Path) -> nn.Module:
    """Read a program without its weights.

    Args:
        path: the .pt2 file.

    Returns:
        A module whose parameters and persistent buffers are on meta.

    Raises:
        InputError: there is no such file, or it holds no program that this torch can read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            state = _state(archive)
            constants = _constants(archive)
            program = _bytes_to_dataclass(schema.ExportedProgram, read_member(archive, _MODEL))
            example = _example(archive)
        return _checked(_module(program, state, constants, example), path)
    except InputError:
        raise
    except Exception as error:  # a damaged file fails in as many ways as there are fields
        raise InputError(
            f"{path} cannot be read as an exported program ({type(error).__name__}: {error}); "
            f"export the model again with torch {torch.__version__} and torch.export.save"
        ) from error


def _module(
    program: Any,
    state: dict[str, torch.Tensor],
    constants: dict[str, torch.Tensor],
    example: tuple[Any, ...],
) -> fx.GraphModule:
    loaded = ExportedProgramDeserializer().deserialize(program, state, constants, example)
    # Its guards hold the sizes that were fixed when it was exported.
    module: fx.GraphModule = loaded.module(check_guards=True)
    for node in module.graph.find_nodes(op="call_function", target=aten.detach_.default):
        # Export wraps constants in it; without gradients it does nothing, and views refuse it.
        node.replace_all_uses_with(node.args[0])
        module.graph.erase_node(node)
    module.recompile()
    return module


def _checked(module: fx.GraphModule, path: Path) -> nn.Module:
    """Refuse a program whose results are random, because it was exported for training."""
    for node in module.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        for index, parameter in enumerate(schema.arguments if schema else ()):
            value = node.args[index] if index < len(node.args) else node.kwargs.get(parameter.name)
            if parameter.name in ("train", "training") and value is True:
                raise InputError(
                    f"{path} was exported in training mode ({node.name} is on), expected a model "
                    f"in eval mode; call model.eval() and export it again"
                )
    return module


def _state(archive: zipfile.ZipFile) -> dict[str, torch.Tensor]:
    """Every weight on meta; those that share their bytes are one tensor."""
    tensors: dict[str, torch.Tensor] = {}
    shared: dict[tuple[object, ...], torch.Tensor] = {}
    for name, payload in payloads(archive, "weights").items():
        stored = stored_tensor(archive, "weights", name, payload)
        key = (stored.offset, stored.spec)
        if key not in shared:
            shared[key] = _on_meta(stored.spec, payload)
        tensors[name] = shared[key]
    return tensors


def _on_meta(spec: TensorSpec, payload: Payload) -> torch.Tensor:
    tensor = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device="meta")
    if not payload["is_param"]:
        return tensor
    return nn.Parameter(tensor, requires_grad=payload["tensor_meta"]["requires_grad"])


def _constants(archive: zipfile.ZipFile) -> dict[str, torch.Tensor]:
    with TensorFiles() as files:
        return {
            name: files.read(stored_tensor(archive, "constants", name, payload))
            for name, payload in payloads(archive, "constants").items()
        }


def _example(archive: zipfile.ZipFile) -> tuple[Any, ...]:
    """The inputs that the program was exported with; its guards are made of them.

    Loaded here, because torch would go on with any pickle at all where the safe way fails.
    """
    try:
        example = torch.load(io.BytesIO(read_member(archive, _EXAMPLE)), weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"the example inputs in {archive.filename} are more than tensors, which could run code "
            f"when they are read; export the model with tensors and plain values"
        ) from error
    return tuple(example)
