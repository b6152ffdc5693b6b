"""The Python API on any number of ranks: bit for bit the output of the unsplit model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mpi4py import MPI
from torch import nn
from torch.utils import _pytree as pytree

from pipepar.errors import InputError, PeerError, PipeparError
from pipepar.pipeline import Pipeline
from tests.helpers.models import Constant, Convolutions, Encoder, Pair
from tests.helpers.rank_fixtures import on_ranks

pytestmark = [pytest.mark.mpi, on_ranks(1, 2, 3)]


def ids(rows: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * 100 + length)
    mask = torch.ones(rows, length, dtype=torch.int64)
    mask[::2, length // 2 :] = 0
    return {"ids": torch.randint(0, 50, (rows, length), generator=generator), "mask": mask}


@pytest.fixture(scope="module")
def encoder() -> Iterator[nn.Module]:
    # Without gradients, eager torch runs a fused kernel for these layers, which rounds differently.
    # torch.export does not trace that kernel.
    torch.backends.mha.set_fastpath_enabled(False)
    torch.manual_seed(1)
    yield Encoder().eval()
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.fixture(scope="module")
def encoding(encoder: nn.Module, shared: Path) -> Iterator[Pipeline]:
    """A pipeline of the encoder that several tests share."""
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with Pipeline(encoder, example_args=(ids(4, 9),), micro_batch=2, depth=1) as pipe:
        yield pipe
    after = encoder.state_dict()
    assert list(after) == list(before), "the model does not change"
    assert all(torch.equal(after[name], before[name]) for name in before)


def unsplit(model: nn.Module, size: int, *args: Any, **kwargs: Any) -> list[Any]:
    """Return the leaves of the outputs of the unsplit model on the same micro-batches, joined."""

    def part(leaf: Any, begin: int) -> Any:
        has_rows = isinstance(leaf, torch.Tensor) and leaf.dim() > 0
        return leaf[begin : begin + size] if has_rows else leaf

    leaves = pytree.tree_leaves((args, kwargs))
    total = next(len(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim())
    outputs = []
    with torch.no_grad():
        for begin in range(0, total, size):
            args_part, kwargs_part = pytree.tree_map(
                lambda leaf, begin=begin: part(leaf, begin), (args, kwargs)
            )
            outputs.append(pytree.tree_leaves(model(*args_part, **kwargs_part)))
    return [
        torch.cat(leaves) if isinstance(leaves[0], torch.Tensor) else leaves[0]
        for leaves in zip(*outputs, strict=True)
    ]


def assert_equal(found: Any, expected: list[Any]) -> None:
    leaves = pytree.tree_leaves(found)
    assert len(leaves) == len(expected)
    for one, other in zip(leaves, expected, strict=True):
        if isinstance(other, torch.Tensor):
            assert torch.equal(one, other)
        else:
            assert one == other


def test_a_whole_batch(encoder: nn.Module, encoding: Pipeline) -> None:
    for rows, length in ((2, 9), (1, 9), (11, 9), (8, 30), (3, 2), (4, 9)):
        batch = ids(rows, length)
        found = encoding(batch)
        if encoding.rank == 0:
            assert set(found) == {"logits", "hidden"}
            assert_equal(found, unsplit(encoder, 2, batch))
        else:
            assert found is None


def test_keyword_arguments_scalars_none_and_a_structured_output() -> None:
    torch.manual_seed(2)
    model = Convolutions().eval()
    x = torch.randn(5, 3, 8, 8)
    with Pipeline(
        model, example_args=(x, 0.5), example_kwargs={"bias": None}, micro_batch=2
    ) as pipe:
        found = pipe(x, 0.5, bias=None)
        if pipe.rank == 0:
            assert isinstance(found, Pair)
            assert_equal(found, unsplit(model, 2, x, 0.5, bias=None))


def test_a_sequential() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))).eval()
    x = torch.randn(10, 8)
    with Pipeline(model, example_args=(x,), micro_batch=3) as pipe:
        found = pipe(x)
        if pipe.rank == 0:
            assert_equal(found, unsplit(model, 3, x))


def test_a_stream_keeps_the_order_of_batches(encoder: nn.Module, encoding: Pipeline) -> None:
    batches = [ids(1 + index % 7, 2 + index % 5) for index in range(36)]
    for _ in range(2):
        found = list(encoding.stream((batch,) for batch in batches))
        assert len(found) == (len(batches) if encoding.rank == 0 else 0)
        for each, batch in zip(found, batches, strict=False):
            assert_equal(each, unsplit(encoder, 2, batch))
    assert list(encoding.stream([])) == []


def test_results_are_yielded_while_batches_are_fed() -> None:
    """So a stream can be endless, and later batches can depend on earlier results."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))).eval()
    fed = 0

    def endless() -> Iterator[torch.Tensor]:
        nonlocal fed
        while True:
            fed += 1
            yield torch.randn(2, 4)

    with Pipeline(model, example_args=(torch.randn(2, 4),), micro_batch=2) as pipe:
        for count, _ in enumerate(pipe.stream(endless())):
            assert fed - count < 40
            if count == 200:
                break
        x = torch.randn(6, 4)  # the pipeline can still be used
        found = pipe(x)
        if pipe.rank == 0:
            assert_equal(found, unsplit(model, 2, x))


def test_a_stream_can_be_left_at_any_moment(encoder: nn.Module, encoding: Pipeline) -> None:
    """Results that were under way are dropped; the next call returns only its own."""
    batches = [(ids(4, 5),), (ids(3, 7),), (ids(2, 6),)]
    for taken in (1, 2, 3):
        stream = encoding.stream(batches)
        for _, found in zip(range(taken), stream, strict=False):
            assert set(found) == {"logits", "hidden"}
        del stream
        found = encoding(ids(5, 8))
        if encoding.rank == 0:
            assert_equal(found, unsplit(encoder, 2, ids(5, 8)))


def test_the_pipeline_can_be_used_after_an_invalid_input(
    encoder: nn.Module, encoding: Pipeline
) -> None:
    bad = {"ids": ids(4, 9)["ids"], "mask": ids(4, 9)["mask"].float()}
    for batches in ([(bad,)], [(ids(4, 9),), (ids(3, 9),), (bad,), (ids(1, 9),)]):
        if encoding.rank == 0:
            with pytest.raises(InputError, match="mask"):
                list(encoding.stream(batches))
        else:
            assert list(encoding.stream(batches)) == []
        found = encoding(ids(5, 8))
        if encoding.rank == 0:
            assert_equal(found, unsplit(encoder, 2, ids(5, 8)))


def test_a_call_during_a_stream_is_refused(encoding: Pipeline) -> None:
    stream = encoding.stream([(ids(4, 9),)] * 3)
    first = next(stream, None)
    if first is not None and MPI.COMM_WORLD.size > 1:
        with pytest.raises(PipeparError, match="still open"):
            encoding(ids(4, 9))
    assert len(list(stream)) == (2 if encoding.rank == 0 else 0)


def test_a_summary_covers_the_time_since_the_last_one(encoding: Pipeline) -> None:
    encoding.summary()
    for total in (6, 3):
        encoding(ids(total, 9))
        summary = encoding.summary()
        assert summary.samples == total
        assert 0 < summary.bound <= summary.seconds * 1.001
        assert [s.totals["compute"].count for s in summary.stages] == [-(-total // 2)] * len(
            summary.stages
        )


def test_a_model_that_only_one_rank_has_is_refused_on_all() -> None:
    if MPI.COMM_WORLD.size == 1:
        pytest.skip("needs a rank without the model")
    model: Any = nn.Linear(2, 2) if MPI.COMM_WORLD.rank == 0 else None
    with pytest.raises(PipeparError, match="neither a model nor layers"):
        Pipeline(model, example_args=(torch.zeros(1, 2),))


def test_a_result_does_not_keep_a_larger_buffer_alive() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))).eval()
    with Pipeline(model, example_args=(torch.randn(2, 4),), micro_batch=1000) as pipe:
        pipe(torch.randn(1000, 4))
        found = pipe(torch.randn(2, 4))
        if pipe.rank == 0:
            assert found.untyped_storage().nbytes() <= 2 * 2 * 4 * 4


def test_nan_in_the_input_is_nan_in_the_output() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))).eval()
    x = torch.full((3, 4), float("nan"))
    with Pipeline(model, example_args=(x,)) as pipe:
        found = pipe(x)
        if pipe.rank == 0:
            assert found.isnan().all()


def test_a_batch_without_rows() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))).eval()
    with Pipeline(model, example_args=(torch.randn(2, 4),)) as pipe:
        found = pipe(torch.empty(0, 4))
        if pipe.rank == 0:
            assert found.shape == (0, 4)


def test_more_ranks_than_layers_is_refused_on_every_rank() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    if MPI.COMM_WORLD.size == 1:
        pytest.skip("one rank is never too many")
    with pytest.raises(PipeparError, match="at most 1 rank"):
        Pipeline(model, example_args=(torch.randn(2, 4),))


def test_an_invalid_time_limit_is_refused_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the environment of rank 0 is used."""
    if MPI.COMM_WORLD.size == 1:
        pytest.skip("a single rank is not monitored")
    monkeypatch.setenv("PIPEPAR_STALL_SECONDS", "-5" if MPI.COMM_WORLD.rank == 0 else "5")
    kind = InputError if MPI.COMM_WORLD.rank == 0 else PeerError
    layers = [nn.Linear(2, 2) for _ in range(MPI.COMM_WORLD.size)]
    pipe = Pipeline(layers=layers, example_args=(torch.zeros(1, 2),), micro_batch=1)
    with pytest.raises(kind, match="PIPEPAR_STALL_SECONDS is '-5', expected seconds above 0"):
        pipe.__enter__()
    pipe.close()


@pytest.mark.parametrize("name", ["micro_batch", "depth"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(PipeparError, match=f"{name} is 0, expected at least 1"):
        Pipeline(nn.Linear(2, 2), example_args=(torch.zeros(1, 2),), **{name: 0})  # type: ignore[arg-type]


def test_a_stage_without_inputs_from_other_stages() -> None:
    torch.manual_seed(0)
    model, x = Constant().eval(), torch.randn(6, 3, 3)
    with torch.no_grad():
        expected = torch.cat([model(x[:4]), model(x[4:])])
    with Pipeline(model, example_args=(x,), micro_batch=4) as pipe:
        found = pipe(x)
        inputs = [stage.inputs for stage in pipe._assembly.plan.stages]
    assert MPI.COMM_WORLD.size != 3 or inputs[1] == ()
    assert found is None if MPI.COMM_WORLD.rank else torch.equal(found, expected)
