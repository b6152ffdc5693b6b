"""Each task on the command line, compared with Hugging Face's pipelines."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipepar.jobs.run import Job, run_job
from tests.helpers.folders import picture_folder, pixels, save_pictures, text_folder
from tests.helpers.jobs.command import MLP, pipepar
from tests.helpers.jobs.threads import in_threads

pytestmark = pytest.mark.long(25)

TEXTS = ["the quick fox jumps", "unseen dog over ünseen fox .", "a", "", "lazy " * 30, "the dog"]
SMALL = ("--micro-batch", "2")
MASKED = ["the [MASK] fox", "a [MASK] dog over the [MASK] .", "[MASK]", "lazy " * 5 + "[MASK]"]
ENTITIES: dict[str, Any] = {
    "id2label": {0: "O", 1: "PER", 2: "LOC"},
    "label2id": {"O": 0, "PER": 1, "LOC": 2},
}


def run(folder: Path, texts: list[str], task: str, *options: object) -> list[Any]:
    """Return the lines of a run's .jsonl output."""
    source, target = folder.parent / "in.txt", folder.parent / "out.jsonl"
    source.write_text("".join(text + "\n" for text in texts))
    status, output = pipepar("run", folder, source, target, "--task", task, *SMALL, *options)
    assert status == 0, output
    return [json.loads(line) for line in target.read_text().splitlines()]


def reference(folder: Path, task: str, samples: list[Any], **options: Any) -> list[Any]:
    """Return the answers of Hugging Face's pipeline, one sample at a time."""
    from transformers import pipeline

    pipe: Any = pipeline(task, model=str(folder), device="cpu")  # type: ignore[call-overload]
    return [pipe(sample, **options) for sample in samples]


def equal(found: Any, expected: Any) -> bool:
    """Return whether answers are equal except for the rounding of scores."""
    if isinstance(expected, list):
        pairs = zip(found, expected, strict=True)
        return len(found) == len(expected) and all(equal(a, b) for a, b in pairs)
    if isinstance(expected, dict):
        return bool(found.keys() == expected.keys()) and all(
            equal(found[name], expected[name]) for name in expected
        )
    if isinstance(expected, str) or expected is None:
        return bool(found == expected)
    return bool(found == pytest.approx(float(expected), rel=1e-5))


@pytest.mark.parametrize(
    "options",
    [
        {"num_labels": 3},
        {"num_labels": 1},
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        {"num_labels": 1, "problem_type": "regression"},
    ],
)
def test_text_classification(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = text_folder(tmp_path / "bert", "BertForSequenceClassification", **options)
    found = run(folder, TEXTS, "text-classification")
    expected = reference(folder, "text-classification", TEXTS, truncation=True)
    assert equal(found, [answer[0] for answer in expected])


def test_token_classification(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "bert", "BertForTokenClassification", **ENTITIES)
    texts = [text for text in TEXTS if text]
    found = run(folder, texts, "token-classification")
    assert equal(found, reference(folder, "token-classification", texts))
    words = {entity["word"] for entity in found[1]}
    assert "ünseen" in words  # the text has the word, the vocabulary does not
    assert {entity["entity"] for answer in found for entity in answer} == {"PER", "LOC"}


def test_token_classification_with_padding_on_the_left(tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    folder = text_folder(tmp_path / "bert", "BertForTokenClassification", **ENTITIES)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "padding_side": "left"}))
    texts = ["the quick fox jumps", "the dog"]
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    assert batch["attention_mask"][1].tolist() == [0, 0, 0, 1, 1, 1, 1]
    with torch.no_grad():
        logits = AutoModelForTokenClassification.from_pretrained(folder).eval()(**batch).logits
    best = logits[1, 4:6].softmax(-1).max(-1)  # neither padding nor [CLS] nor [SEP]
    expected = [
        {
            "entity": ENTITIES["id2label"][number],
            "score": score,
            "index": at + 1,
            "word": word,
            "start": 4 * at,
            "end": 4 * at + 3,
        }
        for at, (word, number, score) in enumerate(
            zip(("the", "dog"), best.indices.tolist(), best.values.tolist(), strict=True)
        )
        if number
    ]
    assert expected
    assert run(folder, texts, "token-classification")[1] == expected


def test_fill_mask(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "bert", "BertForMaskedLM")
    assert equal(run(folder, MASKED, "fill-mask"), reference(folder, "fill-mask", MASKED))


def test_a_text_without_a_mask_is_refused(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "bert", "BertForMaskedLM")
    source = tmp_path / "in.txt"
    source.write_text("the [MASK]\nthe dog\n")
    status, output = pipepar("run", folder, source, tmp_path / "o.jsonl", "--task", "fill-mask")
    assert status == 1
    assert "in.txt, line 2: the text contains no [MASK]" in output


def test_image_classification(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "vit")
    paths = save_pictures(tmp_path / "in", 5)
    target = tmp_path / "o.jsonl"
    status, output = pipepar(
        *("run", folder, tmp_path / "in", target, "--task", "image-classification"),
        *("--micro-batch", 2),
    )
    assert status == 0, output
    found = [json.loads(line) for line in target.read_text().splitlines()]
    files = [answer.pop("file") for answer in found]
    assert files == ["a/p0.png", "a/p1.png", "p2.png", "p3.png", "p4.png"]
    pictures = [Image.open(path) for path in paths]
    expected = reference(folder, "image-classification", pictures, top_k=1)
    assert equal(found, [answer[0] for answer in expected])


@pytest.mark.parametrize("first", [True, False], ids=["channels first", "channels last"])
def test_uint8_arrays_are_pictures_and_floats_are_pixel_values(tmp_path: Path, first: bool) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    folder = picture_folder(tmp_path / "vit")
    array = pixels(3)
    np.save(tmp_path / "raw.npy", array.transpose(0, 3, 1, 2) if first else array)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    loader: Any = AutoImageProcessor
    processor = loader.from_pretrained(folder)
    values = processor(images=list(map(Image.fromarray, array)), return_tensors="pt")
    np.savez(tmp_path / "values.npz", anything=values["pixel_values"].numpy())
    with torch.no_grad():
        expected = model(**values).logits
    for source in ("raw.npy", "values.npz"):
        target = tmp_path / "o.safetensors"
        status, output = pipepar(
            "run", folder, tmp_path / source, target, "--task", "image-classification"
        )
        assert status == 0, output
        assert torch.equal(load_file(target)["logits"], expected)


def test_pixels_are_cast_to_the_dtype_of_the_model(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "vit", torch.bfloat16)
    save_pictures(tmp_path / "in", 3)
    target = tmp_path / "o.safetensors"
    status, output = pipepar(
        "run", folder, tmp_path / "in", target, "--task", "image-classification"
    )
    assert status == 0, output
    assert load_file(target)["logits"].dtype == torch.bfloat16


def test_labels_of_a_factorys_model_are_numbers(rows: Path, tmp_path: Path) -> None:
    target = tmp_path / "o.jsonl"
    identity = "tests.helpers.functions:identity"
    status, output = pipepar("run", identity, rows, target, "--task", "text-classification")
    assert status == 0, output
    scores = torch.from_numpy(np.load(rows)).softmax(1).max(1)
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert [answer["label"] for answer in found] == scores.indices.tolist()
    assert [answer["score"] for answer in found] == scores.values.tolist()


REFUSED: list[tuple[str, list[str], str]] = [
    ("o.npy", ["--task", "fill-mask"], "the answers of fill-mask differ in length"),
    ("o.jsonl", ["--task", "token-classification"], "needs the tokenizer of a Hugging Face"),
    ("o.jsonl", ["--task", "translation"], "found task 'translation', expected one of"),
]


@pytest.mark.parametrize(("target", "options", "message"), REFUSED)
def test_invalid_tasks_are_refused_before_anything_is_loaded(
    rows: Path, tmp_path: Path, target: str, options: list[str], message: str
) -> None:
    status, output = pipepar("run", MLP, rows, tmp_path / target, *options)
    assert status == 1
    assert message in output
    assert "Traceback" not in output


def test_a_model_without_scores_of_classes_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones((2, 3, 4), np.float32), y=np.ones((2, 3, 4), "f4"))
    status, output = pipepar(
        *("run", "tests.helpers.factories:two", tmp_path / "in.npz", tmp_path / "o.jsonl"),
        *("--task", "text-classification"),
    )
    assert status == 1
    assert "expected the scores of classes" in output


def test_pictures_need_a_processor(tmp_path: Path) -> None:
    save_pictures(tmp_path / "in", 2)
    status, output = pipepar("run", MLP, tmp_path / "in", tmp_path / "o.npy")
    assert status == 1
    assert "has no image processor; give --preprocess" in output
    folder = text_folder(tmp_path / "bert", "BertModel")
    status, output = pipepar("run", folder, tmp_path / "in", tmp_path / "o.npy")
    assert status == 1
    assert "holds no image processor" in output


@pytest.mark.filterwarnings("ignore:.*they will slow each other")
def test_columns_reach_the_last_rank(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "bert", "BertForTokenClassification", **ENTITIES)
    alone = run(folder, TEXTS, "token-classification")
    for ranks in (2, 3):
        target = tmp_path / f"{ranks}.jsonl"
        named = Job(str(folder), tmp_path / "in.txt", target, "token-classification", micro_batch=2)
        in_threads(ranks, partial(run_job, job=named))
        found = [json.loads(line) for line in target.read_text().splitlines()]
        assert found == alone, ranks
