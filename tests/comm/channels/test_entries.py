"""A micro-batch as entries, and back."""

import pytest
import torch

from pipepar.comm.channels.entries import entries_of, microbatch_of
from pipepar.errors import WireError
from pipepar.microbatch import ONLY_STEP, Fault, MicroBatch, Step, Value

SAMPLES = torch.tensor([4, 7])
COLUMN = torch.zeros(2, 3)
VALUES: tuple[Value, ...] = (torch.ones(2), 3, "text", None)


def round_trip(sent: MicroBatch) -> MicroBatch:
    return microbatch_of(sent.index, sent.step.program, entries_of(sent))


def test_a_micro_batch_of_values_only() -> None:
    found = round_trip(MicroBatch(5, VALUES))
    assert found == MicroBatch(5, VALUES)
    assert found.step is ONLY_STEP


def test_samples_columns_and_step_are_restored() -> None:
    step = Step(2, torch.tensor([1, 2, 3]))
    found = round_trip(MicroBatch(0, VALUES, SAMPLES, {"label": COLUMN, "#": SAMPLES}, step=step))
    assert found.values == VALUES
    assert found.samples is SAMPLES
    assert list(found.columns) == ["label", "#"]
    assert found.columns["label"] is COLUMN
    assert found.step.program == 2
    assert found.step.fields is step.fields


@pytest.mark.parametrize("stage", [3, "source"])
def test_a_micro_batch_with_an_error(stage: int | str) -> None:
    fault = Fault(stage, "ValueError: 'quoted' \u4e00")
    found = round_trip(MicroBatch(1, (), SAMPLES, error=fault))
    assert (found.error, found.values) == (fault, ())


def test_missing_fields_are_none() -> None:
    """So micro-batches without fields have the same spec, which is sent once."""
    assert entries_of(MicroBatch(0, (1,))) == (None, None, None, None, 1)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ((None,) * 3, "a micro-batch of 3 entries arrived, expected 4 or more"),
        (("no json", None, None, None), "has the field 'no json', expected JSON"),
        (('["a"]', None, None, None), "expected a stage and a message"),
        ((5, None, None, None), "the error of a micro-batch is 5"),
        ((None, None, 5, None), "found type int as samples of a micro-batch, expected a tensor"),
        ((None, None, torch.zeros(2), None), "samples of a micro-batch are torch.float32"),
        (
            (None, torch.zeros(2, 2, dtype=torch.int64), None, None),
            "step fields of a micro-batch",
        ),
        ((None, None, None, '{"a": 1}'), "the names of columns are"),
        ((None, None, None, "[1]"), "the names of columns are"),
        ((None, None, None, '["a"]'), "1 columns are announced, found 0 entries for them"),
        (
            (None, None, None, '["a"]', 3),
            "found type int as column 'a' of a micro-batch",
        ),
        ((None, None, None, "[" * 100_000), "has the field .*, expected JSON"),
    ],
)
def test_invalid_entries_are_refused(entries: tuple[Value, ...], message: str) -> None:
    with pytest.raises(WireError, match=message):
        microbatch_of(0, 0, entries)
