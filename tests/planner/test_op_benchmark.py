"""The benchmark of operations: their arguments, their times, and operations that fail."""

from collections.abc import Callable, Sequence
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pipepar.microbatch import TensorSpec
from pipepar.model.capture.capture import capture
from pipepar.model.split.operations import Needed, Operation, distinct, operations_of
from pipepar.planner import op_benchmark as timing
from pipepar.planner.op_benchmark import OpBenchmark

torch.set_num_threads(1)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the pace for a shorter time, since no other process needs to be detected."""
    monkeypatch.setattr(timing, "_PACE_SECONDS", 0.05)


class Spy(nn.Module):
    """Calls a function with its arguments."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def __deepcopy__(self, memo: Any) -> "Spy":
        return Spy(self.function)

    def forward(self, *given: Any, **named: Any) -> Any:
        return self.function(*given, **named)


def tensor(*shape: int, dtype: torch.dtype = torch.float32, weight: bool = False) -> Needed:
    return Needed(TensorSpec.of(torch.empty(shape, dtype=dtype, device="meta")), weight, weight)


def operation(target: Any, *args: Any, **kwargs: Any) -> Operation:
    return Operation(target, args, kwargs, f"{target} {args} {kwargs}")


def bench(*operations: Operation, weight_bytes: int = 0) -> OpBenchmark:
    return OpBenchmark(operations, CPU, weight_bytes)


def spied(*args: Any, rounds: int = 1, weight_bytes: int = 0) -> list[tuple[Any, ...]]:
    """Return the arguments of all calls of an operation: one to warm up, one for each round."""
    calls: list[tuple[Any, ...]] = []
    made = bench(
        operation(Spy(lambda *given: calls.append(given)), *args), weight_bytes=weight_bytes
    )
    for _ in range(rounds):
        made._round()
    return calls


def timed(model: nn.Module, *args: torch.Tensor) -> list[float | None]:
    graph = capture(model.eval(), args, {})
    return OpBenchmark(distinct(operations_of(graph, len(args[0]))), CPU, 1 << 16).medians()


def test_each_operation_of_a_model_has_a_time() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.Sequential(nn.Linear(16, 16), layer, nn.Flatten(), nn.Linear(80, 2))
    times = timed(model, torch.randn(3, 5, 16))
    assert len(times) == 4
    assert all(seconds is not None and seconds > 0 for seconds in times)


def test_an_operation_that_fails_has_no_time_and_is_not_repeated() -> None:
    calls = 0

    def fail(x: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        raise ValueError("made-up values will not do")

    made = bench(operation(torch.relu, tensor(4)), operation(Spy(fail), tensor(4)))
    first, second = made.medians()
    assert first is not None
    assert first > 0
    assert second is None
    assert calls == 1


def test_an_operation_that_fails_later_has_no_time() -> None:
    calls = 0

    def fail_at_third(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise ValueError("enough")
        return x

    made = bench(operation(Spy(fail_at_third), tensor(4)), operation(torch.relu, tensor(4)))
    first, second = made.medians()
    assert first is None
    assert second is not None
    assert calls == 3
    assert made.pace([1.0, second], [1, 1]) > 0  # and is left out of the pace


def test_a_module_that_cannot_be_copied_has_no_time() -> None:
    class Unique(nn.Module):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("there is only one")

    made = bench(operation(Unique(), tensor(4)), operation(torch.relu, tensor(4)))
    first, second = made.medians()
    assert first is None
    assert second is not None


def test_experts_are_not_timed_since_their_work_depends_on_values() -> None:
    made = bench(Operation(torch.relu, (tensor(4),), {}, "transformers.grouped_mm.default"))
    assert made.medians() == [None]


def test_slow_operations_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_SECONDS", 0.0)
    calls: list[torch.Tensor] = []
    assert bench(operation(Spy(calls.append), tensor(4))).medians() != [None]
    assert len(calls) == 2  # one to warm up


@pytest.mark.parametrize("expected", [[], [None], [1.0]])
def test_the_pace_is_1_if_nothing_can_be_timed(
    expected: Sequence[float | None],
) -> None:
    def fail(*given: Any) -> None:
        raise ValueError("no")

    assert bench(*[operation(Spy(fail))] * len(expected)).pace(expected, [1] * len(expected)) == 1.0


def test_an_operation_without_an_expected_time_does_not_count() -> None:
    assert bench(operation(torch.relu, tensor(4))).pace([None], [1]) == 1.0


def test_the_pace_doubles_if_the_expected_time_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_PACE_SECONDS", 0.5)  # other tests may use the same core
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)), nn.ReLU())
    graph = capture(model.eval(), (torch.randn(32, 64),), {})
    made = OpBenchmark(distinct(operations_of(graph, 32)), CPU, 1 << 16)
    expected = made.medians()
    counts = [1] * len(expected)
    once = made.pace(expected, counts)
    twice = made.pace([seconds and 2 * seconds for seconds in expected], counts)
    assert once > 0
    assert 0.4 < twice / once < 10


def test_the_pace_is_the_expected_time_over_the_time_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock advances by a second at each reading."""
    made = bench(operation(torch.relu, tensor(4)), operation(torch.neg, tensor(4)))
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=count().__next__))
    assert made.medians() == [1.0, 1.0]
    assert made.pace([1.0, 1.0], [1, 1]) == 1.0
    assert made.pace([3.0, 5.0], [1, 1]) == 4.0
    assert made.pace([3.0, 5.0], [3, 1]) == 3.5
    assert made.pace([0.5, None], [1, 1]) == 0.5


def test_the_pace_is_measured_once_if_a_round_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_PACE_SECONDS", 0.0)
    calls: list[torch.Tensor] = []
    made = bench(operation(Spy(calls.append), tensor(4)), operation(torch.relu, tensor(4)))
    # The slow operation does not count, but its time ends the measurement.
    assert made.pace([None, 1e-6], [1, 1]) > 0
    assert len(calls) == 2


def test_arguments_have_the_specs_of_the_graph() -> None:
    last = TensorSpec(torch.bfloat16, (2, 3, 4, 5), (60, 1, 15, 3))
    expanded = TensorSpec(torch.bool, (3, 1, 8), (0, 0, 1))
    scalar = TensorSpec(torch.int64, (), ())
    empty = TensorSpec(torch.float64, (0, 4), (4, 1))
    specs = [last, expanded, scalar, empty]
    calls = spied([Needed(spec, False, False) for spec in specs], 3, "mode")
    for given, number, word in calls:
        assert [TensorSpec.of(each) for each in given] == specs
        assert (number, word) == (3, "mode")


def test_keyword_arguments_arrive_by_name() -> None:
    calls: list[dict[str, Any]] = []
    spy = Spy(lambda **named: calls.append(named))
    bench(operation(spy, x=tensor(2, 3), sizes=(1, 2)))
    assert calls[0]["x"].shape == (2, 3)
    assert calls[0]["sizes"] == (1, 2)


def test_floats_differ_and_integers_are_zero() -> None:
    values = tensor(300, 300), tensor(5, dtype=torch.int32), tensor(5, dtype=torch.bool)
    for floats, whole, flags in spied(*values):
        assert 0.1 <= floats.min() < floats.max() <= 1.0
        assert not whole.any()
        assert not flags.any()


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float16, torch.float64, torch.complex64, torch.uint8]
)
def test_arguments_of_any_dtype(dtype: torch.dtype) -> None:
    for (given,) in spied(tensor(8, dtype=dtype)):
        assert given.dtype is dtype


def test_activations_have_fixed_addresses_and_weights_move() -> None:
    weight = tensor(64, weight=True)
    # Memory for one weight and for the weights of a stage: four weights in all.
    calls = spied(tensor(64), tensor(64), weight, rounds=8, weight_bytes=3 * 64 * 4)
    assert len({one.data_ptr() for one, _, _ in calls}) == 1
    assert all(one.data_ptr() + 64 * 4 == other.data_ptr() for one, other, _ in calls)
    places = [given.data_ptr() for _, _, given in calls]
    assert [place - places[0] for place in places] == [256 * (turn % 4) for turn in range(9)]


def test_small_and_large_operations_use_the_same_addresses() -> None:
    calls: list[torch.Tensor] = []
    spy = Spy(calls.append)
    bench(*(operation(spy, tensor(size)) for size in (64, 64, 256)))
    assert len({given.data_ptr() for given in calls}) == 1


def test_only_weights_require_gradients() -> None:
    for given, weight in spied(tensor(4), tensor(4, weight=True)):
        assert not given.requires_grad
        assert weight.requires_grad


def test_overwritten_arguments_are_restored() -> None:
    """Otherwise values could become denormal, or indices could leave a table."""

    def spoil(floats: torch.Tensor, whole: torch.Tensor) -> None:
        seen.append((floats.clone(), whole.clone()))
        floats.mul_(1e-30)
        whole.add_(7)

    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    needed = tensor(100), tensor(3, dtype=torch.int64)
    made = bench(operation(Spy(spoil), *needed), operation(Spy(spoil), *needed))
    made.medians()
    assert len(seen) > 2
    for floats, whole in seen:
        assert floats.min() >= 0.1
        assert not whole.any()


def test_a_layer_in_channels_last_format() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert None not in timed(model, torch.randn(2, 3, 8, 8))


class Table(nn.Module):
    """A table that is indexed by a buffer which is not in a checkpoint."""

    positions: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(4, 8)
        self.register_buffer("positions", torch.arange(4), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, torch._subclasses.FakeTensor):
            assert self.positions.tolist() == [0, 1, 2, 3]
        result: torch.Tensor = x + self.rows(self.positions)
        return result


def test_a_layer_keeps_its_own_buffers() -> None:
    for _ in range(10):  # uninitialised memory may contain the right values by chance
        assert None not in timed(nn.Sequential(Table(), Table()), torch.randn(2, 4, 8))


def test_an_operation_that_needs_too_much_memory_is_not_computed() -> None:
    calls: list[torch.Tensor] = []
    large, small = operation(Spy(calls.append), tensor(1000)), operation(torch.relu, tensor(4))
    first, second = OpBenchmark([large, small], CPU, 1 << 16, room=500).medians()
    assert first is None
    assert second is not None
    assert not calls
