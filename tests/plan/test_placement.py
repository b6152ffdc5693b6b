"""The roles of the ranks."""

import pytest

from pipepar.errors import PlanError
from pipepar.plan.placement import Ends, Placement


def test_the_first_rank_reads_files_and_the_last_rank_writes_them() -> None:
    assert Ends.of_files(4) == Ends(0, 3)
    assert Ends.of_files(1) == Ends(0, 0)


def test_a_script_gets_results_on_the_rank_that_calls() -> None:
    assert Ends.of_script() == Ends(0, 0)


def test_stage_k_runs_on_rank_k_by_default() -> None:
    placement = Placement.of(Ends.of_files(3), None, 3, 3)
    assert [placement.stage_of(rank) for rank in range(3)] == [0, 1, 2]
    assert not placement.enters_elsewhere
    assert not placement.leaves_elsewhere


def test_a_rank_may_have_no_stage() -> None:
    placement = Placement.of(Ends.of_files(4), (2, 0), 2, 4)
    assert [placement.stage_of(rank) for rank in range(4)] == [1, None, 0, None]
    assert placement.enters_elsewhere
    assert placement.leaves_elsewhere


@pytest.mark.parametrize(("ends", "leaves"), [(Ends.of_files(2), False), (Ends.of_script(), True)])
def test_results_leave_the_last_stage_if_the_sink_is_another_rank(ends: Ends, leaves: bool) -> None:
    assert Placement.of(ends, (0, 1), 2, 2).leaves_elsewhere == leaves


def test_a_rank_outside_the_job_is_refused() -> None:
    with pytest.raises(PlanError, match="found a stage on rank 5, expected ranks 0 to 2; start 6"):
        Placement.of(Ends.of_files(3), (5, 0), 2, 3)
