"""Where to cut: the partition with the smallest bottleneck that sends the fewest bytes.

Two exact searches over the legal cut positions. The first finds the smallest possible bottleneck,
the cost of the most expensive stage, by bisection: stages that each take as much as a limit allows
reach the end if any can (the linear partition problem; Skiena, *The Algorithm Design Manual*,
section 10.7; used for pipelines in PipeDream, Narayanan et al., SOSP 2019). A bottleneck alone
leaves most cuts undecided, and they would land anywhere, inside attention too, where several
tensors cross instead of one. So bytes need a price off the bottleneck as well: a dynamic programme
takes, among all partitions whose bottleneck is at most (1 + slack) times the smallest, the one with
the fewest bytes crossing in total, and among those the one with the smallest bottleneck.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipepar.errors import PlanError

Floats = npt.NDArray[np.float64]

# Rounding in a sum of costs must not exclude the partition that defines the bottleneck.
_ROUNDING = 1e-9


def partition(
    costs: Sequence[float],
    crossing: Sequence[float | None],
    stages: int,
    slack: float = 0.05,
) -> tuple[int, ...]:
    """Choose where to cut a row of nodes into stages. *Local.*

    Args:
        costs: cost of each node, 0 or more; any unit.
        crossing: for each position p, bytes that cross if one cuts before node p; None where a
            cut is not legal. As long as `costs`; position 0 is never a cut.
        stages: how many stages, 1 or more. Every stage gets a cost above 0.
        slack: how much the bottleneck may exceed the smallest possible, as a fraction of it.

    Returns:
        The stages - 1 cut positions, ascending.

    Raises:
        PlanError: there are fewer legal cuts than the stages need.
    """
    if stages < 1:
        raise PlanError(f"found {stages} stages, expected 1 or more; start at least 1 rank")
    if len(crossing) != len(costs):
        raise ValueError(f"{len(crossing)} crossings for {len(costs)} costs")
    work = np.concatenate([[0.0], np.cumsum(np.asarray(costs, dtype=np.float64))])
    cuts = _useful_cuts(work, crossing)
    legal = sum(size is not None for size in crossing[1:])
    _check_enough(work, cuts, stages, legal)
    if stages == 1:
        return ()
    places = np.array([0, *cuts, len(costs)])
    done = work[places]
    limit = _smallest_bottleneck(done, stages) * (1 + slack + _ROUNDING)
    bytes_at = np.array([0.0, *(_bytes(crossing[p]) for p in cuts), 0.0])
    return tuple(int(places[i]) for i in _fewest_bytes(done, bytes_at, stages, limit))


def _bytes(value: float | None) -> float:
    return 0.0 if value is None else float(value)


def _useful_cuts(work: Floats, crossing: Sequence[float | None]) -> list[int]:
    """The legal positions with work on both sides."""
    return [
        position
        for position in range(1, len(crossing))
        if crossing[position] is not None and 0 < work[position] < work[-1]
    ]


def _check_enough(work: Floats, cuts: list[int], stages: int, legal: int) -> None:
    most = len({float(work[p]) for p in cuts}) + 1
    if stages > most:
        raise PlanError(
            f"found {stages} stages to plan for, expected at most {most}: each needs work of its "
            f"own, and of the model's legal cuts ({legal}) {most - 1} have work before, after and "
            f"between them; start at most {most} ranks"
        )


def _smallest_bottleneck(done: Floats, stages: int) -> float:
    """Narrow it down until no number lies between what cannot be reached and what can.

    Args:
        done: work before each place where a stage may begin or end, ascending.
        stages: how many.
    """
    least = 0.0
    most = best = float(done[-1])
    while least < (middle := (least + most) / 2) < most:
        reached = _bottleneck_within(done, stages, middle)
        if reached is None:
            least = middle
        else:
            most, best = middle, reached
    return best


def _bottleneck_within(done: Floats, stages: int, limit: float) -> float | None:
    """The bottleneck if every stage takes as much as the limit allows; None if work remains.

    Fewer stages may do; dividing one of them makes the bottleneck no larger.
    """
    place, bottleneck = 0, 0.0
    for _ in range(stages):
        end = int(np.searchsorted(done, done[place] + limit, side="right")) - 1
        bottleneck = max(bottleneck, float(done[end] - done[place]))
        place = end
    return bottleneck if place == len(done) - 1 else None


def _fewest_bytes(done: Floats, bytes_at: Floats, stages: int, limit: float) -> list[int]:
    """Places of the cuts. Row s of each array is about s stages that end at a place."""
    total = np.full((stages + 1, len(done)), np.inf)
    total[0, 0] = 0.0
    worst = np.zeros_like(total)
    came_from = np.zeros(total.shape, dtype=np.intp)
    # A stage that ends at a place begins in a window before it: near enough for the limit, and
    # far enough to have something to compute. Tables of all pairs of places would take gigabytes.
    first = np.searchsorted(done, done - limit, side="left")
    past = np.searchsorted(done, done, side="left")
    for place in range(1, len(done)):
        window = slice(first[place], past[place])
        sums = total[:-1, window] + bytes_at[window]  # [stages, begins]
        fewest = sums.min(axis=1)
        bottleneck = np.maximum(worst[:-1, window], done[place] - done[window])
        ties = np.where(sums <= fewest[:, None], bottleneck, np.inf)
        total[1:, place], worst[1:, place] = fewest, ties.min(axis=1)
        came_from[1:, place] = first[place] + ties.argmin(axis=1)
    chosen = [len(done) - 1]
    for stage in range(stages, 1, -1):
        chosen.append(int(came_from[stage, chosen[-1]]))
    return chosen[:0:-1]
