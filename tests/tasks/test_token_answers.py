"""Answers about tokens, where texts are cut after --max-length and padded on either side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertTokenizer

from pipepar.data.readers.reader import Feed
from pipepar.data.readers.tokenized_text import TokenizedOptions, open_tokenized
from pipepar.errors import InputError
from pipepar.tasks.answers import Answer
from pipepar.tasks.catalog.fill_mask import fillings
from pipepar.tasks.catalog.token_classification import entities
from tests.helpers.folders import WORDS, text_folder

NAMES = ("O", "PER", "LOC")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("model") / "bert", "BertModel", layers=1)


@pytest.fixture(params=["right", "left"])
def tokenizer(folder: Path, request: pytest.FixtureRequest) -> Any:
    return BertTokenizer.from_pretrained(folder, padding_side=request.param)


def feed(path: Path, texts: list[str], tokenizer: Any, max_length: int | None) -> Feed:
    """One micro-batch of all texts, the longest first."""
    path.write_text("".join(f"{text}\n" for text in texts))
    options = TokenizedOptions(max_length, token_columns=True)
    (found,) = open_tokenized(path, tokenizer, options).feeds(len(texts))
    assert found.samples.tolist() == list(range(len(texts)))
    return found


def scores(feed: Feed, classes: int, best: int) -> torch.Tensor:
    """Logits that say `best` of every token, 2 more than of any other class."""
    logits = torch.zeros(*feed.kwargs["input_ids"].shape, classes)
    logits[..., best] = 2
    return logits


def answers(answer: Answer, logits: torch.Tensor, feed: Feed) -> list[Any]:
    rows = answer(logits, feed.columns)
    assert isinstance(rows, list)
    return rows


def words(answer: list[dict[str, Any]]) -> Iterator[tuple[str, int, int, int]]:
    for each in answer:
        yield each["word"], each["index"], each["start"], each["end"]


@pytest.mark.parametrize(("max_length", "kept"), [(None, 4), (6, 4), (5, 3), (3, 1)])
def test_entities_of_texts_that_are_cut(
    tmp_path: Path, tokenizer: Any, max_length: int | None, kept: int
) -> None:
    """Neither special tokens nor padding; index 0 is [CLS]."""
    found = feed(tmp_path / "x.txt", ["the quick ünsee fox", "dog"], tokenizer, max_length)
    assert found.kwargs["input_ids"].shape == (2, kept + 2)
    first, second = answers(entities(tokenizer, NAMES), scores(found, 3, 1), found)
    expected = [("the", 1, 0, 3), ("quick", 2, 4, 9), ("ünsee", 3, 10, 15), ("fox", 4, 16, 19)]
    assert list(words(first)) == expected[:kept]
    assert list(words(second)) == [("dog", 1, 0, 3)]
    assert {each["entity"] for each in [*first, *second]} == {"PER"}
    sure = float(torch.tensor([0.0, 2.0, 0.0]).softmax(0)[1])
    assert [each["score"] for each in second] == [pytest.approx(sure)]
    assert answers(entities(tokenizer, NAMES), scores(found, 3, 0), found) == [[], []]


def test_masks_of_texts_that_are_cut(tmp_path: Path, tokenizer: Any) -> None:
    """Where all were cut off there is nothing to fill; where one is left it stands alone."""
    texts = ["the [MASK] fox [MASK] dog", "lazy dog fox [MASK]", "a [MASK]"]
    found = feed(tmp_path / "x.txt", texts, tokenizer, 5)
    best = WORDS.index("lazy")
    logits = scores(found, len(WORDS), best)
    logits[found.kwargs["input_ids"] != tokenizer.mask_token_id] = 0
    one, none, last = answers(fillings(tokenizer), logits, found)
    assert none == []
    for answer, whole in ((one, "the lazy fox"), (last, "a lazy")):
        assert len(answer) == 5
        assert (answer[0]["token"], answer[0]["token_str"]) == (best, "lazy")
        assert answer[0]["sequence"] == whole
        assert answer[0]["score"] > answer[1]["score"]


def test_several_masks_are_filled_one_by_one(tmp_path: Path, tokenizer: Any) -> None:
    found = feed(tmp_path / "x.txt", ["the [MASK] fox [MASK]", "a [MASK]"], tokenizer, None)
    several, one = answers(fillings(tokenizer), scores(found, len(WORDS), 5), found)
    assert [len(each) for each in several] == [5, 5]
    assert [each[0]["sequence"] for each in several] == [
        "[CLS] the the fox [MASK] [SEP]",
        "[CLS] the [MASK] fox the [SEP]",
    ]
    assert one[0]["sequence"] == "a the"


def test_scores_of_other_tokens_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    found = feed(tmp_path / "x.txt", ["the fox", "a"], tokenizer, None)
    for shape in ((2, 4), (2, 3, 3), (1, 4, 3)):
        with pytest.raises(InputError, match=r"expected scores for each token, \(2, 4, 'classes'"):
            entities(tokenizer, NAMES)(torch.zeros(shape), found.columns)
