"""Training: it learns, resumes as if nothing had happened, and stops by concepts it never saw."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from latentguard import LatentGuard
from latentguard.encoders.base import TextEncoder
from latentguard.errors import DataError
from latentguard.training.cache import TokenStateCache
from latentguard.training.compute import Compute
from latentguard.training.pairs import TrainingPair
from latentguard.training.run import TrainingRun
from latentguard.training.sampling import draw_batch
from latentguard.training.trainer import Trainer, TrainingArguments, TrainingResult

CPU = Compute(torch.device("cpu"))
NAMES = ["knife", "gun", "bomb", "blood", "war", "fight", "naked", "nude", "sword", "shield"]
PLACES = ["table", "street", "bridge", "house", "river", "garden", "city", "field"]
PAIRS = [
    TrainingPair(name, f"a {name} in the {place}", f"a cat in the {place}", "c", "test")
    for name in NAMES
    for place in PLACES
]
NEGATIVES = [f"a {what} on the {place}" for what in ("boat", "dog", "photo", "sunset") for place in PLACES]
SHORT = TrainingArguments(
    epochs=2, concepts_per_batch=4, negatives_per_batch=4, held_out=0.2, evaluate_every=10, mentions=2
)


def trainer(encoder: TextEncoder, folder: Path, arguments: TrainingArguments = SHORT) -> Trainer:
    cache = TokenStateCache(folder.parent / "states", encoder)
    return Trainer(encoder, cache, PAIRS, [NEGATIVES], arguments, folder, CPU)


def weights(result: TrainingResult) -> dict[str, torch.Tensor]:
    return dict(result.mapping.state_dict())


def test_without_pairs_and_without_the_grammar_there_is_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to train on"):
        TrainingRun((), tmp_path / "run").execute()


def test_training_lowers_the_loss_and_keeps_the_best_evaluation(tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    result = trainer(tiny_encoder, tmp_path / "run", replace(SHORT, epochs=6, patience=99)).train()
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert result.best["auc_decisive"] == max(row["auc_decisive"] for row in result.history)


def test_the_same_seed_gives_the_same_weights(tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    first, second = (weights(trainer(tiny_encoder, tmp_path / name).train()) for name in ("a", "b"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_other_weights(tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    first = weights(trainer(tiny_encoder, tmp_path / "a").train())
    second = weights(trainer(tiny_encoder, tmp_path / "b", replace(SHORT, seed=1)).train())
    assert not torch.equal(first["to_query.weight"], second["to_query.weight"])


def test_resuming_after_an_interruption_continues_bit_for_bit(tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    whole = trainer(tiny_encoder, tmp_path / "whole").train()

    interrupted = trainer(tiny_encoder, tmp_path / "cut")
    read, calls = interrupted.cache.read, 0

    def until_step_17(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls > 17:
            raise KeyboardInterrupt
        return read(*args, **kwargs)  # type: ignore[arg-type]

    interrupted.cache.read = until_step_17  # type: ignore[assignment,method-assign]
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    resumed = trainer(tiny_encoder, tmp_path / "cut").train(resume=True)

    assert resumed.history == whole.history
    assert all(torch.equal(weights(resumed)[name], tensor) for name, tensor in weights(whole).items())


def test_a_finished_run_resumes_to_the_same_result(tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    first = trainer(tiny_encoder, tmp_path / "run").train()
    again = trainer(tiny_encoder, tmp_path / "run").train(resume=True)
    assert again.history == first.history
    assert all(torch.equal(weights(again)[name], tensor) for name, tensor in weights(first).items())


def test_a_checkpoint_is_not_overwritten_unasked(tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    trainer(tiny_encoder, tmp_path / "run").train()
    with pytest.raises(DataError, match="--resume"):
        trainer(tiny_encoder, tmp_path / "run").train()


def test_a_checkpoint_of_another_recipe_is_refused(tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    trainer(tiny_encoder, tmp_path / "run").train()
    with pytest.raises(DataError, match="another recipe"):
        trainer(tiny_encoder, tmp_path / "run", replace(SHORT, learning_rate=5e-4)).train(resume=True)


def test_a_truncated_checkpoint_is_refused(tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    trainer(tiny_encoder, tmp_path / "run").train()
    path = tmp_path / "run" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a readable checkpoint"):
        trainer(tiny_encoder, tmp_path / "run").train(resume=True)


def test_training_stops_when_held_out_concepts_no_longer_gain(tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    arguments = replace(SHORT, epochs=500, evaluate_every=2, patience=3, learning_rate=0.0)
    result = trainer(tiny_encoder, tmp_path / "run", arguments).train()
    assert len(result.history) == 4


def test_metrics_are_written_as_json(tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    result = trainer(tiny_encoder, tmp_path / "run").train()
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert written["evaluations"] == result.history
    assert written["recipe"]["epochs"] == SHORT.epochs


def test_held_out_concepts_and_negatives_are_not_trained_on(tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    run = trainer(tiny_encoder, tmp_path / "run", replace(SHORT, held_out=0.3))
    trained = set(run.table.unsafe.tolist()) | set(np.concatenate(run.negatives).tolist())
    held_back = run.held_out.prompts[run.held_out.unsafe | ~run.held_out.twin]
    assert not trained & set(held_back.tolist())
    assert len(held_back)


def test_a_twin_that_names_the_concept_itself_is_left_out(tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    pairs = [TrainingPair(name, f"a {name} fight", f"an old {name} on the table", None, "t") for name in NAMES]
    cache = TokenStateCache(tmp_path / "states", tiny_encoder)
    arguments = replace(SHORT, mentions=0)
    run = Trainer(tiny_encoder, cache, pairs, [NEGATIVES], arguments, tmp_path / "run", CPU)
    assert (run.table.safe == -1).all()


def test_a_prompt_that_names_another_concept_of_the_batch_is_no_negative_of_it(
    tiny_encoder: TextEncoder, tmp_path: Path
) -> None:
    pairs = [TrainingPair(name, f"a {name} and a {NAMES[i - 1]}", "a cat", None, "t") for i, name in enumerate(NAMES)]
    cache = TokenStateCache(tmp_path / "states", tiny_encoder)
    arguments = replace(SHORT, mentions=0)
    run = Trainer(tiny_encoder, cache, pairs, [NEGATIVES], arguments, tmp_path / "run", CPU)
    batch = draw_batch(run.table, run.negatives, concepts=99, harmless=2, seed=0, step=0)
    naming = run._naming_others(batch)
    concepts = [run.table.concepts[c] for c in batch.concepts]
    for row, concept in enumerate(concepts):
        before = NAMES[NAMES.index(concept) - 1]
        assert [concepts[c] for c in np.flatnonzero(naming[row])] == [before] * (before in concepts)


def test_too_few_concepts_to_hold_some_out_is_a_clear_error(tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    cache = TokenStateCache(tmp_path / "states", tiny_encoder)
    with pytest.raises(DataError, match="too few concepts"):
        Trainer(tiny_encoder, cache, PAIRS[:8], [NEGATIVES], SHORT, tmp_path / "run", CPU)


def write_triples(path: Path) -> Path:
    rows = [f"{pair.concept},{pair.unsafe},{pair.safe}" for pair in PAIRS]
    path.write_text("\n".join(["concept,unsafe_prompt,safe_prompt", *rows]) + "\n")
    return path


def command(tmp_path: Path, encoder_folder: Path, *more: str) -> list[str]:
    (tmp_path / "harmless.txt").write_text("\n".join(NEGATIVES) + "\n")
    (tmp_path / "calibrate.txt").write_text("\n".join(f"an old {word} by the {p}" for word in NAMES for p in PLACES))
    return [
        *(sys.executable, "train.py", "--data", str(write_triples(tmp_path / "triples.csv"))),
        *("--negatives", str(tmp_path / "harmless.txt"), "--calibrate", str(tmp_path / "calibrate.txt")),
        *("--false-positive-rate", "0.05", "--encoder", f"hf:{encoder_folder}", "--cache", str(tmp_path / "states")),
        *("--output", str(tmp_path / "out"), "--held-out", "0.2", "--device", "cpu", *more),
    ]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=240)


def test_train_py_writes_a_folder_that_screens(tmp_path: Path, tiny_folder: Path) -> None:
    done = run(command(tmp_path, tiny_folder, "--epochs", "2"))
    assert done.returncode == 0, done.stderr
    guard = LatentGuard.from_pretrained(tmp_path / "out", device="cpu")
    harmless = (tmp_path / "calibrate.txt").read_text().splitlines()
    assert np.mean([verdict.blocked for verdict in guard.check_batch(harmless)]) <= 0.05
    assert (tmp_path / "out" / "training" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_train_py_trains_heads_on_several_layers_with_what_the_grammar_writes(
    tmp_path: Path, tiny_folder: Path
) -> None:
    arguments = command(
        tmp_path, tiny_folder, "--epochs", "2", "--layers", "0", "2", "--grammar", "40", "--hidden", "16"
    )
    rows = [f"{pair.concept},{pair.unsafe},{pair.safe},violence" for pair in PAIRS]
    (tmp_path / "triples.csv").write_text("\n".join(["concept,unsafe_prompt,safe_prompt,category", *rows]) + "\n")
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    guard = LatentGuard.from_pretrained(tmp_path / "out", device="cpu")
    assert guard.heads is not None
    assert "violence" in guard.heads.prompt_head.shape.categories
    assert len(guard.heads.prompt_head.shape.categories) > 1  # the grammar's own
    assert guard.encoder.layers == (0, 2)
    assert 0 < (guard.check("a knife in the garden").probability or 0) < 1


def test_the_prompt_head_learns_harm_that_it_was_shown(tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    result = trainer(tiny_encoder, tmp_path / "run", replace(SHORT, epochs=8, patience=99, hidden=16)).train()
    assert result.prompt_head is not None
    assert max(row["auc_prompts"] for row in result.history) > 0.6


def test_pairs_without_categories_train_no_prompt_head(tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    cache = TokenStateCache(tmp_path / "states", tiny_encoder)
    pairs = [replace(pair, category=None) for pair in PAIRS]
    run = Trainer(tiny_encoder, cache, pairs, [NEGATIVES], SHORT, tmp_path / "run", CPU)
    result = run.train()
    assert result.prompt_head is None
    assert "auc_prompts" not in result.history[0]


def test_killed_training_resumes_to_the_weights_of_an_uninterrupted_one(tmp_path: Path, tiny_folder: Path) -> None:
    more = ("--epochs", "40", "--evaluate-every", "5", "--patience", "1000", "--concepts-per-batch", "8")
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    checkpoint = tmp_path / "cut" / "out" / "training" / "checkpoint.safetensors"
    process = subprocess.Popen(
        command(tmp_path / "cut", tiny_folder, *more),
        cwd=Path(__file__).parents[2],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.exists()
    assert not (tmp_path / "cut" / "out" / "config.json").exists(), "killed too late to tell anything"

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, flags in (("cut", ("--resume",)), ("whole", ())):
        done = subprocess.run(
            command(tmp_path / name, tiny_folder, *more, *flags),
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            env=environment,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
    models = [(tmp_path / name / "out" / "model.safetensors").read_bytes() for name in ("cut", "whole")]
    assert models[0] == models[1]


def test_a_calibration_file_with_training_prompts_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    arguments = command(tmp_path, tiny_folder, "--epochs", "1")
    (tmp_path / "calibrate.txt").write_text(NEGATIVES[0] + "\n")
    done = run(arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "calibrate.txt" in done.stderr
    assert not (tmp_path / "out" / "config.json").exists()
