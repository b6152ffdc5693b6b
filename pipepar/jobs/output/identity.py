"""The identity of a job: a job may resume an output only if both have the same identity.

It consists of everything that determines the results. It does not contain the number of ranks, the
plan and the depth, which do not affect them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from torch import nn

from pipepar.data.readers.registry import find_input_format
from pipepar.data.writers.journal import Fields
from pipepar.errors import InputError
from pipepar.files import fingerprint
from pipepar.host.device_context import DeviceContext
from pipepar.jobs.options import Job
from pipepar.model.capture.graph import Graph
from pipepar.model.module_tensors import fingerprint_of, named_tensors
from pipepar.model.source.import_path import sources_of
from pipepar.model.source.open_source import Source

FORMAT: Final = 2
"""The version of the journal's format, of header and records."""

# Suffixes of the files of a model's folder, except weights, that affect the results.
_SETTINGS: Final = (".json", ".txt", ".model", ".jinja")
_DIGITS: Final = 16
# Packages of which another version may compute, tokenise or decode differently.
_PACKAGES: Final = ("pipepar", "torch", "numpy", "transformers", "tokenizers", "pillow")


def identity(
    job: Job,
    graph: Graph,
    source: Source,
    context: DeviceContext,
    count: int,
    micro_batch: int | None,
) -> dict[str, Any]:
    """Return the identity of a job; called on rank 0, which sees all files.

    Args:
        job: the options of the job.
        graph: the captured model.
        source: the location of its weights, or their values.
        context: the devices of the ranks.
        count: number of samples.
        micro_batch: samples per micro-batch; None if not known yet.

    Returns:
        JSON values by name; contents of files as digests.

    Raises:
        OSError: a file cannot be read.
    """
    return {
        "format": FORMAT,
        "model": _model(job, graph),
        "weights": _short(source.weights.fingerprint()),
        "input": _input(job.input),
        "samples": count,
        "micro_batch": micro_batch,
        "task": job.task_name,
        "preprocess": _function(job.preprocess),
        "postprocess": _function(job.postprocess),
        "labels": None if job.labels is None else _short(fingerprint(job.labels)),
        "dtype": job.dtype,
        "max_length": job.max_length,
        "padding": job.padding,
        "devices": ", ".join(sorted(set(context.devices.by_rank))),
        "versions": ", ".join(map(_version, _PACKAGES)),
    }


def require_same(found: Fields, own: Fields, path: Path) -> None:
    """Refuse to resume the output of another job.

    Args:
        found: the identity in the journal.
        own: the identity of this job.
        path: the output.

    Raises:
        InputError: the identities differ; the message lists every difference.
    """
    names = [*own, *(name for name in found if name not in own)]
    differing = [
        f"{name} {_shown(found.get(name))} then, {_shown(own.get(name))} now"
        for name in names
        if found.get(name) != own.get(name)
    ]
    if differing:
        raise InputError(
            f"--resume: the unfinished output {path} belongs to another job: "
            f"{'; '.join(differing)}. Expected the same model, input and options: give those, or "
            "leave --resume out to start from the beginning"
        )


def _model(job: Job, graph: Graph) -> str:
    """Return a digest of the graph, the values in it, and the files that define the model."""
    digest = hashlib.sha256(graph.digest.encode())
    held = named_tensors(graph.module)
    values = {name: tensor for name, tensor in held.items() if not tensor.is_meta}
    digest.update(fingerprint_of(values).encode())
    digest.update("\n".join(_settings(graph.module)).encode())
    if job.is_factory:
        digest.update((_function(job.model) or "").encode())
    elif job.is_folder:
        for file in sorted(Path(job.model).iterdir()):
            if file.suffix in _SETTINGS and file.is_file():
                digest.update(f"{file.name} {fingerprint(file)} ".encode())
    return _short(digest.hexdigest())


def _settings(module: nn.Module) -> Iterator[str]:
    """Yield the public attributes of all submodules that are plain values."""
    for path, part in module.named_modules():
        for name, value in sorted(vars(part).items()):
            if isinstance(value, bool | int | float | str) and not name.startswith("_"):
                yield f"{path} {name} {value!r}"


def _input(path: Path) -> str:
    return _short(find_input_format(path).fingerprint(path))


def _function(name: str | None) -> str | None:
    """Return the name of a user function with a digest of its source files."""
    if name is None:
        return None
    digest = hashlib.sha256("".join(map(fingerprint, sources_of(name))).encode())
    return f"{name} ({_short(digest.hexdigest())})"


def _version(package: str) -> str:
    """Return the name and version of a package, or "no NAME" if it is not installed."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def _short(digest: str) -> str:
    return digest[:_DIGITS]


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
