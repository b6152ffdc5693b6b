"""Readers leave out micro-batches that are done, and the others are unchanged."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import BertTokenizer

from pipepar.data.readers.open_prepared import open_arrays, open_prepared
from pipepar.data.readers.reader import Feed, Reader
from pipepar.data.readers.text_samples import TextRules
from pipepar.data.readers.tokenized_text import TokenizedOptions, open_tokenized
from pipepar.data.sample_set import SampleSet
from pipepar.errors import PipeparError
from tests.helpers.folders import save_pictures, text_folder
from tests.helpers.functions import lengths

COUNT = 13
LINES = ["the fox", "a", "lazy dog jump over the fox", "dog", "", "quick brown fox"] * 2 + ["fox"]


def mean(pictures: list[Image.Image]) -> torch.Tensor:
    return torch.tensor([np.asarray(picture).mean() for picture in pictures])


@pytest.fixture(scope="module", params=["arrays", "pictures", "lines", "texts", "lenient"])
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder: Path = tmp_path_factory.mktemp("in")
    if request.param == "arrays":
        np.save(folder / "x.npy", np.arange(COUNT * 2.0).reshape(COUNT, 2))
        return open_arrays(folder / "x.npy")
    if request.param == "pictures":
        save_pictures(folder / "in", COUNT)
        return open_prepared(folder / "in", mean, "mean")
    data = [line.encode() for line in LINES]
    if request.param == "lenient":
        data[2] = data[7] = b"\xff"
    (folder / "x.txt").write_bytes(b"\n".join(data) + b"\n")
    if request.param == "lines":
        return open_prepared(folder / "x.txt", lengths, "lengths")
    tokenizer = BertTokenizer.from_pretrained(text_folder(folder / "bert", "BertModel"))
    rules = TextRules(lenient=request.param == "lenient")
    return open_tokenized(folder / "x.txt", tokenizer, TokenizedOptions(rules=rules, window=6))


def values(feed: Feed) -> list[object]:
    named = [*feed.kwargs.items(), *feed.columns.items()]
    tensors = [*feed.args, *(value for _, value in named)]
    return [feed.samples.tolist(), [name for name, _ in named], [t.tolist() for t in tensors]]


@given(micro_batch=st.integers(1, COUNT + 1), data=st.data())
def test_remaining_micro_batches_are_unchanged(
    reader: Reader, micro_batch: int, data: st.DataObject
) -> None:
    feeds = list(reader.feeds(micro_batch))
    samples = [feed.samples.tolist() for feed in feeds]
    assert sorted(chain(*samples)) == list(range(COUNT))
    there = data.draw(st.lists(st.booleans(), min_size=len(feeds), max_size=len(feeds)))
    done = SampleSet(COUNT)
    for positions, is_done in zip(samples, there, strict=True):
        done.add(positions if is_done else [])
    left = list(reader.feeds(micro_batch, done))
    wanted = [feed for feed, is_done in zip(feeds, there, strict=True) if not is_done]
    assert list(map(values, left)) == list(map(values, wanted))
    assert [str(feed.fault) for feed in left] == [str(feed.fault) for feed in wanted]


def test_a_partly_done_micro_batch_is_refused(reader: Reader) -> None:
    first = next(feed.samples.tolist() for feed in reader.feeds(3) if len(feed.samples) == 3)
    for part in (first[:1], first[:2], first[2:]):
        done = SampleSet(COUNT)
        done.add(part)
        with pytest.raises(PipeparError, match=f"{len(part)} of the 3 samples of the micro-batch"):
            list(reader.feeds(3, done))


def test_all_samples_are_done(reader: Reader) -> None:
    assert list(reader.feeds(4, SampleSet(COUNT, [(0, COUNT)]))) == []
