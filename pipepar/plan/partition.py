"""Where to cut: the partition with the smallest bottleneck that sends the fewest bytes.

Two exact dynamic programmes over the legal cut positions. The first finds the smallest possible
bottleneck, the cost of the most expensive stage: the linear partition problem (Skiena, *The
Algorithm Design Manual*, section 10.7; used for pipelines in PipeDream, Narayanan et al., SOSP
2019). A bottleneck alone leaves most cuts undecided, and they would land anywhere, inside
attention too, where several tensors cross instead of one. So bytes need a price off the
bottleneck as well: the second programme takes, among all partitions whose bottleneck is at most
(1 + slack) times the smallest, the one with the fewest bytes crossing in total, and among those
the one with the smallest bottleneck.
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
    _check_enough(work, cuts, stages)
    if stages == 1:
        return ()
    places = np.array([0, *cuts, len(costs)])
    span = _spans(work[places])
    limit = _smallest_bottleneck(span, stages) * (1 + slack + _ROUNDING)
    bytes_at = np.array([0.0, *(_bytes(crossing[p]) for p in cuts), 0.0])
    return tuple(int(places[i]) for i in _fewest_bytes(span, bytes_at, stages, limit))


def _bytes(value: float | None) -> float:
    return 0.0 if value is None else float(value)


def _useful_cuts(work: Floats, crossing: Sequence[float | None]) -> list[int]:
    """The legal positions with work on both sides."""
    return [
        position
        for position in range(1, len(crossing))
        if crossing[position] is not None and 0 < work[position] < work[-1]
    ]


def _check_enough(work: Floats, cuts: list[int], stages: int) -> None:
    most = len({float(work[p]) for p in cuts}) + 1
    if stages > most:
        raise PlanError(
            f"found {stages} stages to plan for, expected at most {most}: the model has "
            f"{most - 1} places where it can be cut; start at most {most} ranks"
        )


def _spans(work: Floats) -> Floats:
    """Cost of a stage from place i to place j; infinite where it would have nothing to compute."""
    span = work[None, :] - work[:, None]
    return np.where(span > 0, span, np.inf)


def _smallest_bottleneck(span: Floats, stages: int) -> float:
    worst = span[0]
    for _ in range(stages - 1):
        worst = np.maximum(worst[:, None], span).min(axis=0)
    return float(worst[-1])


def _fewest_bytes(span: Floats, bytes_at: Floats, stages: int, limit: float) -> list[int]:
    allowed = span <= limit
    total = np.where(allowed[0], 0.0, np.inf)
    worst = np.where(allowed[0], span[0], np.inf)
    came_from: list[npt.NDArray[np.intp]] = []
    for _ in range(stages - 1):
        sums = np.where(allowed, (total + bytes_at)[:, None], np.inf)
        fewest = sums.min(axis=0)
        ties = np.where(sums <= fewest, np.maximum(worst[:, None], span), np.inf)
        came_from.append(ties.argmin(axis=0))
        total, worst = fewest, ties.min(axis=0)
    chosen = [len(bytes_at) - 1]
    for previous in reversed(came_from):
        chosen.append(int(previous[chosen[-1]]))
    return chosen[:0:-1]
