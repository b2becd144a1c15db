"""Fine-tuning small random models on sets that can be learned, with and without encryption."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from passkey_models import LINES

from privacy.errors import ConversionError, DataError, FinetuneError, MissingDependencyError, WrongPasskeyError
from privacy.passkey import PassKey, PasskeyClient, check_folder
from privacy.passkey.finetune import finetune
from privacy.passkey.results import RESULTS, Results, Settings
from privacy.passkey.training import Hyperparameters
from privacy.passkey.transforms import Transform

FolderOf = Callable[[str], Path]

PERMUTATION = Transform("none")
HOW = Hyperparameters(epochs=4, batch_size=8, learning_rate=5e-3)
# For each task a model of this family, and of T5 and BART, which make texts.
MODELS = {
    "classification": "bert",
    "pairs": "distilbert-lm",
    "tagging": "xlm-roberta",
    "summarisation": "t5",
    "translation": "bart",
}
NEEDED = {"summarisation": "rouge_score", "translation": "sacrebleu"}
NAMES, PLACES, OTHERS = ("Viktor", "Ada"), ("harbour", "villages"), ("quiet", "warm", "bread", "fresh", "glimmered")


@pytest.fixture(scope="module")
def model_of(folder_of: FolderOf, tmp_path_factory: pytest.TempPathFactory) -> FolderOf:
    """Gives the folder of a small model whose random weights are of the usual size, so that it learns soon."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            torch.manual_seed(7)
            config = transformers.AutoConfig.from_pretrained(folder_of(name))
            config.initializer_range = config.init_std = 0.05
            config.initializer_factor = 0.3  # of T5, whose usual one is made for other learning rates
            getattr(transformers, config.architectures[0])(config).save_pretrained(made[name])
            transformers.AutoTokenizer.from_pretrained(folder_of(name)).save_pretrained(made[name])
        return made[name]

    return folder


def rows(task: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Examples that can be learned: a word decides on the class, names and places are tagged, texts come back."""
    generator = random.Random(seed)
    for _ in range(count):
        words = generator.sample(OTHERS, 3)
        label = generator.choice(("gloomy", "purple"))
        text = " ".join([*words, label])
        if task == "classification":
            yield {"sentence": text, "label": label}
        elif task == "pairs":
            yield {"premise": text, "hypothesis": "it is purple", "label": "entailment" if label == "purple" else "no"}
        elif task == "tagging":
            tokens = [*words, generator.choice(NAMES), "watched", generator.choice(PLACES)]
            yield {"tokens": tokens, "tags": ["O", "O", "O", "B-PER", "O", "B-LOC"]}
        elif task == "summarisation":
            yield {"document": text, "summary": label}
        else:
            yield {"source": text, "target": label}


def data(folder: Path, task: str, *, train: int = 48, measured: int = 16) -> dict[str, str]:
    """Files for the settings of a task."""
    places = {}
    for name, count, seed in (("train", train, 1), ("evaluation", measured, 2)):
        path = folder / f"{task}-{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(task, count, seed)), encoding="utf-8")
        places[name] = str(path)
    return places


def settings(task: str, model: Path, folder: Path, **changes: Any) -> Settings:
    options: dict[str, Any] = {"how": HOW, "transform": PERMUTATION, "max_length": 24, **data(folder, task), **changes}
    return Settings(task=task, model=str(model), **options)


@pytest.fixture(scope="module")
def compared(
    model_of: FolderOf, passkey: PassKey, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Results, Path]]:
    """Results and output folder of a task trained both ways under a permutation; not to be changed by a test."""
    made: dict[str, tuple[Results, Path]] = {}

    def of(task: str) -> tuple[Results, Path]:
        if task in NEEDED:
            pytest.importorskip(NEEDED[task], reason=f"needs {NEEDED[task]}")
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            chosen = settings(task, model_of(MODELS[task]), folder)
            made[task] = finetune(chosen, folder / "out", passkey, plain=True), folder / "out"
        return made[task]

    return of


Compared = Callable[[str], tuple[Results, Path]]


@pytest.mark.parametrize("task", MODELS)
def test_the_loss_falls_on_what_can_be_learned(task: str, compared: Compared) -> None:
    for run in compared(task)[0].runs:
        first, last = run.losses[0][1], run.losses[-1][1]
        assert last < 0.95 * first


@pytest.mark.parametrize("task", MODELS)
def test_a_permutation_changes_neither_losses_nor_metrics(task: str, compared: Compared) -> None:
    plain, encrypted = compared(task)[0].runs
    assert (plain.encryption, encrypted.encryption) == ("none", "permutation")
    assert encrypted.losses == [(step, pytest.approx(loss, abs=1e-5)) for step, loss in plain.losses]
    assert encrypted.evaluation_loss == pytest.approx(plain.evaluation_loss, abs=1e-5)
    assert encrypted.scores == pytest.approx(plain.scores, abs=1e-5)


def test_what_decides_is_learned(compared: Compared) -> None:
    assert [run.scores["accuracy"] for run in compared("classification")[0].runs] == [100.0, 100.0]
    assert all(run.scores["entity F1"] > 80 for run in compared("tagging")[0].runs)


def test_the_table_compares_the_runs(compared: Compared) -> None:
    lines = compared("classification")[0].table().splitlines()
    assert [len(line) for line in lines] == [len(lines[0])] * 4
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["task", "model", "encryption", "accuracy", "difference", "training"]
    assert cells[3][2:5] == ["permutation", "100.00", "+0.00 points"]


def test_results_are_kept_with_the_settings(compared: Compared) -> None:
    results, folder = compared("pairs")
    content = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    assert content["labels"] == ["entailment", "no"]
    assert content["settings"]["how"]["learning_rate"] == HOW.learning_rate
    assert [run["scores"] for run in content["runs"]] == [run.scores for run in results.runs]
    assert sorted(path.name for path in folder.iterdir()) == ["encrypted", "plain", RESULTS]


@pytest.mark.parametrize("task", MODELS)
def test_the_encrypted_folder_holds_no_text(task: str, compared: Compared) -> None:
    folder = compared(task)[1] / "encrypted"
    words = {word for line in LINES for word in line.split() if len(word) > 5} | {"gloomy", "Viktor", "entailment"}
    words.remove("shared")  # which T5's and BART's embeddings are called
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file()).lower()
    assert not [word for word in words if word.lower().encode() in content]
    assert str(compared(task)[1]).encode() not in content


def test_checkpoints_of_an_encrypted_run_hold_no_text(
    model_of: FolderOf, passkey: PassKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, after=9)
    with pytest.raises(KeyboardInterrupt):
        finetune(settings("classification", model_of("bert"), tmp_path), tmp_path / "out", passkey)
    content = b"".join(path.read_bytes() for path in (tmp_path / "out/checkpoints").rglob("*") if path.is_file())
    assert content
    assert not [word for word in (b"gloomy", b"purple", b"quiet", b"bread") if word in content]


def test_a_server_without_the_key_gives_the_same_answers(
    compared: Compared, model_of: FolderOf, passkey: PassKey
) -> None:
    folder = compared("classification")[1]
    check_folder(folder / "encrypted")
    client = PasskeyClient(model_of("bert"), passkey, folder / "encrypted")
    texts = [row["sentence"] for row in rows("classification", 8, seed=3)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "plain")
    given = {"plain": tokenizer(texts, padding=True, return_tensors="pt"), "encrypted": client.encrypt_batch(texts)}
    models = {
        name: transformers.AutoModelForSequenceClassification.from_pretrained(folder / name).eval() for name in given
    }
    with torch.no_grad():
        logits = {name: models[name](**inputs).logits for name, inputs in given.items()}
    assert torch.allclose(logits["encrypted"], logits["plain"], atol=1e-4)
    assert models["plain"].config.id2label == {0: "gloomy", 1: "purple"}
    assert models["encrypted"].config.id2label == {0: "LABEL_0", 1: "LABEL_1"}


def test_encrypted_files_can_be_trained_on_without_the_key(
    compared: Compared, model_of: FolderOf, passkey: PassKey, tmp_path: Path
) -> None:
    folder = compared("classification")[1]
    converted = folder / "encrypted"
    client = PasskeyClient(model_of("bert"), passkey, converted)
    for name, place in data(tmp_path, "classification").items():
        lines = [json.loads(line) for line in Path(place).read_text(encoding="utf-8").splitlines()]
        for row in lines:
            row["sentence"] = client.text_of(client.encrypt(row["sentence"]))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    chosen = settings(
        "classification",
        converted,
        tmp_path,
        train=str(tmp_path / "train.jsonl"),
        evaluation=str(tmp_path / "evaluation.jsonl"),
    )
    results = finetune(chosen, tmp_path / "out", plain=True)
    assert results.runs[0].scores["accuracy"] == 100.0


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (Transform("glide"), "glide ×1, not carried"),
        (Transform("orthogonal", noise=0.1, carried=True), "orthogonal, noise 0.1"),
    ],
)
def test_a_model_with_mapped_embeddings_is_trained(
    transform: Transform, name: str, model_of: FolderOf, passkey: PassKey, tmp_path: Path
) -> None:
    chosen = settings("classification", model_of("bert"), tmp_path, transform=transform)
    run = finetune(chosen, tmp_path / "out", passkey).runs[0]
    assert run.losses[-1][1] < 0.9 * run.losses[0][1]
    assert run.encryption == name


def test_the_table_says_where_a_transform_hides_nothing(model_of: FolderOf, passkey: PassKey, tmp_path: Path) -> None:
    pytest.importorskip("rouge_score", reason="needs rouge_score")
    for transform, name in (
        (Transform("glide", carried=True), "glide ×1, not carried, plain output rows"),
        (Transform("orthogonal", carried=True), "orthogonal"),
    ):
        chosen = settings("summarisation", model_of("t5"), tmp_path, transform=transform, how=replace(HOW, epochs=0.5))
        run = finetune(chosen, tmp_path / transform.kind, passkey).runs[0]
        assert run.encryption == name


def test_a_byte_level_tokenizer_tags_words(model_of: FolderOf, passkey: PassKey, tmp_path: Path) -> None:
    chosen = settings("tagging", model_of("roberta"), tmp_path)
    plain, encrypted = finetune(chosen, tmp_path / "out", passkey, plain=True).runs
    assert encrypted.scores == pytest.approx(plain.scores, abs=1e-5)
    assert plain.scores["entity F1"] == 100.0


def test_what_is_cut_off_counts_as_missed(model_of: FolderOf, tmp_path: Path) -> None:
    chosen = settings("tagging", model_of("xlm-roberta"), tmp_path, max_length=8)
    scores = finetune(chosen, tmp_path / "out", plain=True).runs[0].scores
    assert scores["entity recall"] == 0.0


def interrupt(monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Has somebody press Ctrl-C in the training step that follows `after` others."""
    step, done = transformers.Trainer.training_step, iter(range(after))

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if next(done, None) is None:
            raise KeyboardInterrupt
        return step(*arguments, **options)

    monkeypatch.setattr(transformers.Trainer, "training_step", interrupted)


@pytest.mark.parametrize("after", [8, 32], ids=["in the plain run's second epoch", "in the encrypted one's"])
def test_an_interrupted_work_goes_on_as_if_nothing_had_happened(
    after: int, compared: Compared, model_of: FolderOf, passkey: PassKey, tmp_path: Path
) -> None:
    whole = compared("classification")[0]
    chosen = replace(whole.settings, model=str(model_of("bert")))
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, after=after)
        with pytest.raises(KeyboardInterrupt):
            finetune(chosen, tmp_path / "out", passkey, plain=True)
    resumed = finetune(chosen, tmp_path / "out", passkey, plain=True, resume=True)
    for run, other in zip(resumed.runs, whole.runs, strict=True):
        assert run.losses == [(step, pytest.approx(loss, abs=1e-5)) for step, loss in other.losses]
        assert run.scores == pytest.approx(other.scores)
    assert any(run.resumed for run in resumed.runs)
    assert "since resumed" in resumed.table()


def test_half_a_checkpoint_is_not_gone_on_from(model_of: FolderOf, tmp_path: Path) -> None:
    chosen = settings("classification", model_of("bert"), tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, after=4)
        with pytest.raises(KeyboardInterrupt):
            finetune(chosen, tmp_path / "out", plain=True)
    checkpoints = tmp_path / "out/checkpoints/plain"
    half = checkpoints / "checkpoint-999"
    shutil.copytree(next(checkpoints.iterdir()), half)
    (half / "trainer_state.json").unlink()
    assert finetune(chosen, tmp_path / "out", plain=True, resume=True).runs[0].resumed


def test_a_plain_run_leaves_what_an_encrypted_one_goes_on_from(
    model_of: FolderOf, passkey: PassKey, tmp_path: Path
) -> None:
    chosen = settings("classification", model_of("bert"), tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, after=20)
        with pytest.raises(KeyboardInterrupt):
            finetune(chosen, tmp_path / "out", passkey)
    finetune(chosen, tmp_path / "out", plain=True, resume=True)
    resumed = finetune(chosen, tmp_path / "out", passkey, resume=True)
    assert [(run.encryption, run.resumed) for run in resumed.runs] == [("none", False), ("permutation", True)]


def test_a_head_for_other_classes_is_replaced(model_of: FolderOf, tmp_path: Path) -> None:
    chosen = settings("classification", model_of("bert-classifier"), tmp_path)  # which tells three classes apart
    assert finetune(chosen, tmp_path / "out", plain=True).runs[0].scores["accuracy"] > 80.0


def test_a_finished_work_is_not_done_again(compared: Compared, passkey: PassKey, tmp_path: Path) -> None:
    results, folder = compared("classification")
    shutil.copytree(folder, tmp_path / "out")
    assert finetune(results.settings, tmp_path / "out", passkey, plain=True, resume=True).table() == results.table()


def test_only_the_same_settings_are_gone_on_with(compared: Compared, tmp_path: Path) -> None:
    results, folder = compared("classification")
    with pytest.raises(FinetuneError, match="begun with other settings"):
        finetune(replace(results.settings, limit=3), folder, plain=True, resume=True)
    with pytest.raises(DataError, match="--resume"):
        finetune(results.settings, folder, plain=True)


def test_settings_are_chosen_by_what_is_held_out(model_of: FolderOf, tmp_path: Path) -> None:
    chosen = settings("classification", model_of("bert"), tmp_path, evaluation=None, hold_out=0.25, limit=8)
    assert finetune(chosen, tmp_path / "out", plain=True).examples == (8, 12)


def test_the_prefix_stands_before_each_source(model_of: FolderOf, tmp_path: Path) -> None:
    pytest.importorskip("rouge_score", reason="needs rouge_score")
    losses = []
    for prefix in ("", "summarize: "):
        chosen = settings("summarisation", model_of("t5"), tmp_path, prefix=prefix, how=replace(HOW, epochs=1))
        losses.append(finetune(chosen, tmp_path / f"out{len(prefix)}", plain=True).runs[0].losses[0][1])
    assert losses[0] != losses[1]


def test_a_class_that_was_not_trained_is_named_by_its_row(model_of: FolderOf, tmp_path: Path) -> None:
    chosen = settings("classification", model_of("bert"), tmp_path)
    Path(str(chosen.evaluation)).write_text('{"sentence": "a", "label": "grey"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"row 1: field 'label': has a class that the training data lacks"):
        finetune(chosen, tmp_path / "out", plain=True)
    assert not (tmp_path / "out").exists()


def test_a_wrong_passkey_shows_before_any_training(model_of: FolderOf, compared: Compared, tmp_path: Path) -> None:
    converted = compared("classification")[1] / "encrypted"
    chosen = settings("classification", model_of("bert"), tmp_path, converted=str(converted))
    with pytest.raises(WrongPasskeyError):
        finetune(chosen, tmp_path / "out", PassKey.from_text("another passkey altogether"), plain=True)
    assert not (tmp_path / "out/plain").exists()


def test_a_model_converted_before_is_trained(
    model_of: FolderOf, compared: Compared, passkey: PassKey, tmp_path: Path
) -> None:
    converted = compared("classification")[1] / "encrypted"
    chosen = settings("classification", model_of("bert"), tmp_path, converted=str(converted))
    assert finetune(chosen, tmp_path / "out", passkey).runs[0].encryption == "permutation (encrypted)"
    check_folder(tmp_path / "out/encrypted")


def test_a_missing_metric_shows_before_any_training(
    model_of: FolderOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(MissingDependencyError, match="pip install sacrebleu"):
        finetune(settings("translation", model_of("bart"), tmp_path), tmp_path / "out", plain=True)
    assert not (tmp_path / "out").exists()


def test_a_model_that_makes_no_texts_is_refused(model_of: FolderOf, tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu", reason="needs sacrebleu")
    with pytest.raises(FinetuneError, match="can't be loaded for this task"):
        finetune(settings("translation", model_of("bert"), tmp_path), tmp_path / "out", plain=True)


def test_a_half_converted_model_is_refused(
    compared: Compared, model_of: FolderOf, passkey: PassKey, tmp_path: Path
) -> None:
    shutil.copytree(compared("classification")[1] / "encrypted", tmp_path / "half")
    (tmp_path / "half/passkey.json").unlink()
    chosen = settings("classification", model_of("bert"), tmp_path, converted=str(tmp_path / "half"))
    with pytest.raises(ConversionError):
        finetune(chosen, tmp_path / "out", passkey)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "translating"}, "the task is one of"),
        ({"hold_out": 0.5}, "either evaluation data or a share"),
        ({"evaluation": None, "hold_out": 1.5}, "not between 0 and 1"),
        ({"columns": ("text",)}, "classification takes 2 columns: sentence, label"),
        ({"prefix": "summarize: "}, "no use for a prefix"),
        ({"limit": 0}, "the limit is not a whole number from 1"),
        ({"max_length": 1}, "the maximal length is not a whole number from 8"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    whole = {"task": "classification", "model": "m", "train": "a.tsv", "evaluation": "b.tsv"}
    with pytest.raises(FinetuneError, match=said):
        Settings(**{**whole, **changes})


@pytest.mark.parametrize(
    "changes", [{"epochs": 0.0}, {"batch_size": 0}, {"learning_rate": float("nan")}, {"seed": -1}, {"seed": 2**32}]
)
def test_hyperparameters_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(FinetuneError, match="is not"):
        Hyperparameters(**changes)


def test_a_text_longer_than_the_model_takes_is_cut(model_of: FolderOf, tmp_path: Path) -> None:
    chosen = settings("classification", model_of("bert"), tmp_path, max_length=1000, how=replace(HOW, epochs=1))
    Path(chosen.train).write_text(f'{{"sentence": "{"quiet bread " * 200}", "label": "gloomy"}}\n' * 8, "utf-8")
    Path(str(chosen.evaluation)).write_text(Path(chosen.train).read_text("utf-8"), "utf-8")
    assert finetune(chosen, tmp_path / "out", plain=True).runs[0].scores["accuracy"] == 100.0


def test_half_precision_on_a_cpu_is_refused(model_of: FolderOf, tmp_path: Path) -> None:
    if torch.accelerator.is_available():
        pytest.skip("this machine has a GPU")
    chosen = settings("classification", model_of("bert"), tmp_path, how=replace(HOW, precision="fp16"))
    with pytest.raises(FinetuneError, match="fp16 needs a GPU"):
        finetune(chosen, tmp_path / "out", plain=True)


def test_bfloat16_trains_as_well(model_of: FolderOf, tmp_path: Path) -> None:
    chosen = settings("classification", model_of("bert"), tmp_path, how=replace(HOW, precision="bf16"))
    assert finetune(chosen, tmp_path / "out", plain=True).runs[0].scores["accuracy"] >= 90.0


def test_a_training_that_diverges_is_an_error(model_of: FolderOf, tmp_path: Path) -> None:
    chosen = settings("classification", model_of("bert"), tmp_path, how=replace(HOW, learning_rate=1e38))
    with pytest.raises(FinetuneError, match="lower --learning-rate"):
        finetune(chosen, tmp_path / "out", plain=True)
