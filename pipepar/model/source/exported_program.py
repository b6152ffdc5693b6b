"""Reads the graph of a program that `torch.export.save` wrote, without its weights.

A .pt2 file is an uncompressed zip archive. It contains the program as JSON, the bytes of each
weight as one member, and JSON that assigns members to names. `torch.export.load` would read all of
it into memory.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from pipepar.errors import InputError
from pipepar.microbatch import TensorSpec
from pipepar.model.compat.torch_internals import (
    EXAMPLE_MEMBER,
    PROGRAM_MEMBER,
    deserialize_program,
    schema_arguments,
)
from pipepar.model.weights.checkpoint import TensorFiles
from pipepar.model.weights.exported_weights import (
    Payload,
    payloads,
    read_member,
    stored_tensor,
)

aten = torch.ops.aten


def open_exported(path: Path) -> nn.Module:
    """Read a program without its weights.

    Args:
        path: the .pt2 file.

    Returns:
        A module whose parameters and persistent buffers are on meta.

    Raises:
        InputError: the file does not exist, contains no program that this torch can read, or has a
            program in training mode, compressed tensors, or pickled objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            state, constants = _state(archive), _constants(archive)
            program = read_member(archive, PROGRAM_MEMBER)
            module = deserialize_program(program, state, constants, _example(archive))
        _remove_detach(module)
        _check_eval_mode(module, path)
        return module
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise any exception
        raise InputError(
            f"{path} cannot be read as an exported program ({type(error).__name__}: {error}); "
            f"export the model again with torch {torch.__version__} and torch.export.save"
        ) from error


def _remove_detach(module: fx.GraphModule) -> None:
    """Remove all `detach_` nodes, which export adds to constants.

    `detach_` has no effect without gradients, and views do not support it.
    """
    for node in module.graph.find_nodes(op="call_function", target=aten.detach_.default):
        node.replace_all_uses_with(node.args[0])
        module.graph.erase_node(node)
    module.recompile()


def _check_eval_mode(module: fx.GraphModule, path: Path) -> None:
    """Refuse a program that was exported in training mode, since its results are random."""
    for node in module.graph.nodes:
        for parameter, value in schema_arguments(node):
            if parameter.name in ("train", "training") and value is True:
                raise InputError(
                    f"{path} was exported in training mode ({node.name} is on), expected a model "
                    f"in eval mode; call model.eval() and export it again"
                )


def _state(archive: zipfile.ZipFile) -> dict[str, torch.Tensor]:
    """Return each weight on meta; weights with the same bytes and layout are one tensor."""
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
    """Return the inputs that the program was exported with; its guards depend on them.

    They are loaded here, because torch would load any pickle that `weights_only` refuses.
    """
    try:
        example = torch.load(io.BytesIO(read_member(archive, EXAMPLE_MEMBER)), weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"the example inputs in {archive.filename} are more than tensors, which could run code "
            f"when they are read; export the model with tensors and plain values"
        ) from error
    return tuple(example)
