"""The parts of pipepar that are mutated, and the tests that should detect the mutants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Part:
    """Modules and their tests."""

    modules: tuple[str, ...]
    """Dotted names."""
    tests: tuple[str, ...]
    """Files and folders, relative to the checkout."""
    ranks: int = 0
    """Ranks that mpirun starts for the tests; 0 for tests of one process."""
    seconds: float = 240
    """Time limit of the tests; a mutant that exceeds it counts as detected."""


def _modules(package: str, names: str) -> tuple[str, ...]:
    return tuple(f"pipepar.{package}.{name}" for name in names.split())


PARTS: Final = {
    "plan": Part(
        _modules(
            "plan",
            "partition search prefix_sums device_states infeasible costs hardware simulate plan",
        ),
        ("tests/plan",),
    ),
    "journal": Part(
        (
            *_modules("data.writers", "journal partial unfinished array_writer"),
            *_modules("data.writers.formats", "npy safetensors"),
            "pipepar.data.sample_set",
        ),
        (
            "tests/data/test_sample_set.py",
            "tests/data/writers",
            "tests/jobs/test_resume.py",
            "tests/jobs/test_resume_ends.py",
        ),
    ),
    "wire": Part(
        (*_modules("comm.channels", "header spec entries memory"), "pipepar.comm.gpu.packing"),
        ("tests/comm/channels", "tests/comm/gpu/test_packing.py"),
    ),
    "slots": Part(
        _modules("comm.gpu", "slots"),
        ("tests/comm/gpu/test_slots.py", "tests/comm/gpu/test_nccl_channel.py"),
    ),
    "weights": Part(
        _modules("model.weights", "weight_source checkpoint checkpoint_formats recipes renaming"),
        ("tests/model/weights",),
    ),
    "microbatch": Part(
        ("pipepar.microbatch", *_modules("engine.script", "batch_split batch_merge")),
        ("tests/leaves/test_microbatch.py", "tests/engine/test_batches.py", "tests/comm/channels"),
    ),
    "mpi channel": Part(
        _modules("comm.channels", "mpi_sender mpi_receiver mpi_endpoint"),
        tuple(f"tests/ranks/ranks_channel{part}.py" for part in ("", "_refusals", "_abort")),
        ranks=2,
        seconds=60,
    ),
}
