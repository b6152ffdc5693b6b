from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from pipepar.data.readers.reader import Feed, Reader
from pipepar.data.readers.tokenized_text import TokenizedOptions, open_tokenized
from pipepar.errors import InputError
from tests.helpers.folders import text_folder

WORDS = ["[PAD]", "[UNK]", "example", "a", "b", "c", "d"]


def tokenizer(**options: object) -> PreTrainedTokenizerFast:
    """Return a tokenizer that splits at spaces; the id of a word is its index in WORDS."""
    model = models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]")
    words = Tokenizer(model)
    words.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    options = {"pad_token": "[PAD]", "unk_token": "[UNK]", **options}
    return PreTrainedTokenizerFast(tokenizer_object=words, **options)  # type: ignore[no-untyped-call]


def bert(folder: Path) -> Any:
    """Return a tokenizer that adds two special tokens to each text."""
    return BertTokenizer.from_pretrained(text_folder(folder, "BertModel"))


def texts(feed: Feed) -> list[str]:
    ids, mask = feed.kwargs["input_ids"], feed.kwargs["attention_mask"].bool()
    return [" ".join(WORDS[i] for i in row[keep]) for row, keep in zip(ids, mask, strict=True)]


def restored(reader: Reader, micro_batch: int) -> list[str]:
    found: dict[int, str] = {}
    for feed in reader.feeds(micro_batch):
        assert len(feed.samples) <= micro_batch
        for sample, text in zip(feed.samples.tolist(), texts(feed), strict=True):
            assert sample not in found
            found[sample] = text
    return [found[sample] for sample in range(len(found))]


def written(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@given(
    st.lists(st.lists(st.sampled_from("abcd"), max_size=6).map(" ".join), max_size=30),
    st.integers(1, 8),
    st.integers(1, 12),
    st.sampled_from(["txt", "jsonl"]),
)
def test_every_line_is_read_once_with_its_position(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[str],
    micro_batch: int,
    window: int,
    suffix: str,
) -> None:
    as_line = json.dumps if suffix == "jsonl" else str
    data = "".join(as_line(line) + "\n" for line in lines)
    path = written(tmp_path_factory.mktemp("text") / f"x.{suffix}", data)
    reader = open_tokenized(path, tokenizer(), TokenizedOptions(window=window))
    assert len(reader) == len(lines)
    assert restored(reader, micro_batch) == lines
    whole = max(micro_batch, window // micro_batch * micro_batch)
    feeds = list(reader.feeds(micro_batch))
    for feed in feeds:
        assert len({sample // whole for sample in feed.samples.tolist()}) == 1
    assert all(len(feed.samples) == micro_batch for feed in feeds[:-1])


def test_longest_first_and_padded_to_the_micro_batch(tmp_path: Path) -> None:
    path = written(tmp_path / "x.txt", "a\na b c d\na b\na b c\n")
    first, second = open_tokenized(path, tokenizer()).feeds(2)
    assert first.samples.tolist() == [1, 3]
    assert second.samples.tolist() == [2, 0]
    assert first.args == ()
    assert set(first.kwargs) == {"input_ids", "attention_mask"}
    assert first.kwargs["input_ids"].tolist() == [[3, 4, 5, 6], [3, 4, 5, 0]]
    assert second.kwargs["input_ids"].tolist() == [[3, 4], [3, 0]]
    assert second.kwargs["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert {t.dtype for t in (first.samples, *first.kwargs.values())} == {torch.int64}


def test_a_micro_batch_may_be_larger_than_the_window(tmp_path: Path) -> None:
    reader = open_tokenized(written(tmp_path / "x.txt", "a\n" * 5000), tokenizer())
    assert [len(feed.samples) for feed in reader.feeds(4500)] == [4500, 500]


def test_samples_of_equal_length_keep_their_order(tmp_path: Path) -> None:
    path = written(tmp_path / "x.txt", "a\nb\nc\n")
    assert [f.samples.tolist() for f in open_tokenized(path, tokenizer()).feeds(2)] == [[0, 1], [2]]


def test_the_tokenizers_other_inputs_are_passed(tmp_path: Path) -> None:
    names = ["input_ids", "token_type_ids", "attention_mask"]
    path = written(tmp_path / "x.txt", "a\na b\n")
    (feed,) = open_tokenized(path, tokenizer(model_input_names=names)).feeds(2)
    assert feed.kwargs["token_type_ids"].tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("", []),
        ("a", ["a"]),
        ("a\n", ["a"]),
        ("a\n\n", ["a", ""]),
        ("\n", [""]),
        ("\na", ["", "a"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\u2028b\x0cc\n", ["[UNK]"]),
        ("\ufeffa\n", ["a"]),
    ],
)
def test_line_endings(tmp_path: Path, data: str, expected: list[str]) -> None:
    reader = open_tokenized(written(tmp_path / "x.txt", data), tokenizer())
    assert len(reader) == len(expected)
    assert restored(reader, 2) == expected


def test_lines_without_tokens_are_one_token_wide(tmp_path: Path) -> None:
    (feed,) = open_tokenized(written(tmp_path / "x.txt", "\n\n"), tokenizer()).feeds(2)
    assert feed.kwargs["input_ids"].tolist() == [[0], [0]]
    assert feed.kwargs["attention_mask"].tolist() == [[0], [0]]
    assert feed.kwargs["input_ids"].dtype == torch.int64


@pytest.mark.parametrize(
    ("own", "given_length", "width"), [(2, None, 2), (2, 3, 3), (int(1e30), None, 4), (9, 1, 1)]
)
def test_truncation(tmp_path: Path, own: int, given_length: int | None, width: int) -> None:
    path = written(tmp_path / "x.txt", "a b c d\n")
    options = TokenizedOptions(max_length=given_length)
    reader = open_tokenized(path, tokenizer(model_max_length=own), options)
    assert next(reader.feeds(1)).kwargs["input_ids"].tolist() == [[3, 4, 5, 6][:width]]


@pytest.mark.parametrize("own", [False, True])
def test_a_limit_that_special_tokens_reach_is_refused(tmp_path: Path, own: bool) -> None:
    path = written(tmp_path / "x.txt", "the fox a fox\n")
    words = bert(tmp_path / "bert")

    def opened(limit: int) -> Reader:
        words.model_max_length = limit if own else 16
        return open_tokenized(path, words, TokenizedOptions(None if own else limit))

    for limit in (1, 2):
        with pytest.raises(
            InputError, match=f"truncated to {limit} token.* 2 special.*-length 3 or more"
        ):
            opened(limit)
    assert next(opened(3).feeds(1)).kwargs["input_ids"].shape == (1, 3)


def test_jsonl_field_and_bare_strings(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", '{"text": "a b", "body": 1}\n"c"\r\n{"text": ""}')
    assert restored(open_tokenized(path, tokenizer()), 2) == ["a b", "c", ""]


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_example_is_the_first_samples(tmp_path: Path, rows: int) -> None:
    feed = open_tokenized(written(tmp_path / "x.txt", "a b\nc\n" * rows), tokenizer()).example()
    assert feed.samples.tolist() == [0, 1]
    assert texts(feed) == ["a b", "c"]


def test_example_of_an_empty_file(tmp_path: Path) -> None:
    reader = open_tokenized(written(tmp_path / "x.txt", ""), tokenizer())
    assert list(reader.feeds(2)) == []
    assert texts(reader.example()) == ["example", "example"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"\xff\xfe", "byte 0xff at position 0 is not UTF-8"),
        (b"{", "invalid JSON"),
        (b"", "invalid JSON"),
        (b"[" * 100_000, "invalid JSON"),
        (b"3", "found a bare int"),
        (b'["a"]', "found a bare list"),
        (b'{"body": "a"}', "found an object with the fields 'body'"),
        (b"{}", r"found an object with the fields \(none\)"),
        (b'{"text": null}', "found a NoneType in it"),
        (rb'"\ud800"', "half of a surrogate pair"),
    ],
)
def test_bad_jsonl_lines_are_found_at_open(tmp_path: Path, line: bytes, found: str) -> None:
    path = written(tmp_path / "x.jsonl", b'"a"\n' * 9 + line + b'\n"b"\n')
    with pytest.raises(InputError, match=rf"{path}, line 10: {found}.*expected"):
        open_tokenized(path, tokenizer())


def test_undecodable_txt_line_is_found_at_open(tmp_path: Path) -> None:
    path = written(tmp_path / "x.txt", b"a\nb\ncaf\xe9\n")
    with pytest.raises(InputError, match=r"line 3: byte 0xe9 at position 3.*iconv"):
        open_tokenized(path, tokenizer())


@pytest.mark.parametrize("after", ["a\n", "a\nb\nc\n", "a\nb"])
def test_a_changed_file_is_refused_before_a_feed_is_yielded(tmp_path: Path, after: str) -> None:
    path = written(tmp_path / "x.txt", "a\nb\n")
    reader = open_tokenized(path, tokenizer())
    written(path, after)
    feeds = reader.feeds(2)
    with pytest.raises(InputError, match=r"now; expected .*, as when it was opened"):
        next(feeds)


def test_options_are_checked_at_open(tmp_path: Path) -> None:
    path = written(tmp_path / "x.txt", "a\n")
    with pytest.raises(InputError, match="max_length 0"):
        open_tokenized(path, tokenizer(), TokenizedOptions(max_length=0))
    with pytest.raises(InputError, match="window 0"):
        open_tokenized(path, tokenizer(), TokenizedOptions(window=0))
    with pytest.raises(InputError, match=r"no padding token.*tokenizer\.pad_token"):
        open_tokenized(path, tokenizer(pad_token=None))
    with pytest.raises(InputError, match="at least 1"):
        open_tokenized(path, tokenizer()).feeds(0)
    with pytest.raises(InputError, match=r"expected one of \.txt, \.jsonl"):
        open_tokenized(written(tmp_path / "x.npy", b""), tokenizer())
