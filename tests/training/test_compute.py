"""Training in half precision, compiled, and by several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latentguard.encoders.base import TextEncoder
from latentguard.errors import DataError, DeviceError
from latentguard.training.cache import TokenStateCache
from latentguard.training.compute import Compute, Half, chosen_half
from latentguard.training.pairs import TrainingPair
from latentguard.training.prefetch import ahead
from latentguard.training.processes import Processes, local_device
from latentguard.training.run import TrainingRun
from latentguard.training.trainer import Trainer, TrainingArguments, TrainingResult

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
NAMES = ["knife", "gun", "bomb", "blood", "war", "fight", "naked", "nude", "sword", "shield"]
PLACES = ["table", "street", "bridge", "house", "river", "garden", "city", "field"]
PAIRS = [
    TrainingPair(name, f"a {name} in the {place}", f"a cat in the {place}", "violence", "test")
    for name in NAMES
    for place in PLACES
]
NEGATIVES = [f"a {what} on the {place}" for what in ("boat", "dog", "photo", "sunset") for place in PLACES]
SHORT = TrainingArguments(
    epochs=1, concepts_per_batch=8, negatives_per_batch=60, held_out=0.2, evaluate_every=5, mentions=2, hidden=16
)


def trained(encoder: TextEncoder, folder: Path, compute: Compute, **options: bool) -> TrainingResult:
    return made(encoder, folder, compute).train(**options)


def made(encoder: TextEncoder, folder: Path, compute: Compute) -> Trainer:
    cache = TokenStateCache(folder.parent / "states", encoder)
    return Trainer(encoder, cache, PAIRS, [NEGATIVES], SHORT, folder, compute)


def farthest(first: TrainingResult, second: TrainingResult) -> float:
    """The largest difference of a weight."""
    both = [dict(result.mapping.state_dict()) for result in (first, second)]
    return max(float((both[0][name] - both[1][name]).abs().max()) for name in both[0])


# In fp16 the first steps overflow and are left out, until the scale of the loss has come down.
@pytest.mark.parametrize(("precision", "apart"), [("bf16", 0.1), ("fp16", 1.0)])
def test_half_precision_learns_what_single_precision_does(
    precision: Half, apart: float, tiny_encoder: TextEncoder, tmp_path: Path
) -> None:
    whole = trained(tiny_encoder, tmp_path / "fp32", Compute(CPU))
    half = trained(tiny_encoder, tmp_path / precision, Compute(CPU, precision))
    assert all(tensor.dtype == torch.float32 for tensor in half.mapping.state_dict().values())
    assert 0 < farthest(whole, half) < 0.05
    assert half.history[-1]["loss"] == pytest.approx(whole.history[-1]["loss"], abs=apart)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_resumes_bit_for_bit(precision: Half, tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    compute = Compute(CPU, precision)
    whole = trained(tiny_encoder, tmp_path / "whole", compute)
    stop_after_first_checkpoint(made(tiny_encoder, tmp_path / "cut", compute))
    resumed = trained(tiny_encoder, tmp_path / "cut", compute, resume=True)
    assert resumed.history == whole.history
    assert farthest(whole, resumed) == 0.0


def stop_after_first_checkpoint(trainer: Trainer) -> None:
    evaluate, seen = trainer.evaluate, 0

    def once(state: dict[str, torch.Tensor]) -> dict[str, float]:
        nonlocal seen
        seen += 1
        if seen > 1:
            raise KeyboardInterrupt
        return evaluate(state)

    trainer.evaluate = once  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


def test_a_checkpoint_of_another_precision_is_refused(tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    trained(tiny_encoder, tmp_path / "run", Compute(CPU))
    with pytest.raises(DataError, match="precision"):
        trained(tiny_encoder, tmp_path / "run", Compute(CPU, "bf16"), resume=True)


def test_fp16_scales_the_loss_and_survives_an_overflow(tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    run = made(tiny_encoder, tmp_path / "run", Compute(CPU, "fp16"))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # the first gradients overflow float32's halves
    run.compute = FixedScaler(CPU, "fp16", scaler)
    result = run.train()
    assert scaler.get_scale() < 2.0**40
    assert all(bool(tensor.isfinite().all()) for tensor in result.mapping.state_dict().values())


class FixedScaler(Compute):
    """A compute whose scaler is one that the test holds."""

    def __init__(self, device: torch.device, precision: Half, scaler: torch.amp.GradScaler) -> None:
        super().__init__(device, precision)
        object.__setattr__(self, "_scaler", scaler)

    def scaler(self) -> torch.amp.GradScaler:
        found: torch.amp.GradScaler = self.__dict__["_scaler"]
        return found


def test_a_compiled_training_gives_the_same_weights(tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    plain = trained(tiny_encoder, tmp_path / "plain", Compute(CPU))
    compiled = trained(tiny_encoder, tmp_path / "compiled", Compute(CPU, compiler="eager"))
    assert farthest(plain, compiled) < 1e-3


def test_a_compiler_that_can_not_work_here_is_one_clear_line(tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="the compiler tvm can't be used here") as caught:
        trained(tiny_encoder, tmp_path / "run", Compute(CPU, compiler="tvm"))
    assert "\n" not in str(caught.value)


def test_the_precision_follows_the_device_unless_given() -> None:
    assert chosen_half(None, CPU) == "fp32"
    assert chosen_half(None, torch.device("cuda")) == "bf16"
    assert chosen_half("fp16", CPU) == "fp16"
    with pytest.raises(DeviceError, match="'int8'"):
        chosen_half("int8", CPU)


def test_training_on_the_numpy_device_is_refused() -> None:
    with pytest.raises(DeviceError, match="needs PyTorch"):
        local_device("numpy")


def test_of_several_processes_none_may_choose_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DeviceError, match="each takes its own GPU"):
        local_device("cuda:1")
    assert local_device("cpu") == CPU


def test_shares_of_all_processes_are_the_whole() -> None:
    rows = list(range(13))
    shares = [rows[Processes(index, 3).share] for index in range(3)]
    assert sorted(row for share in shares for row in share) == rows
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_next_batch_is_made_while_the_last_is_in_use() -> None:
    made_steps: list[int] = []
    second = threading.Event()

    def make(step: int) -> int:
        made_steps.append(step)
        if step == 1:
            second.set()
        return step

    batches = ahead(make, range(4), CPU)
    assert next(batches) == 0
    assert second.wait(10)
    batches.close()
    time.sleep(0.05)
    assert made_steps == [0, 1]


def test_what_goes_wrong_in_a_batch_is_raised_in_its_turn() -> None:
    def make(step: int) -> int:
        if step == 1:
            raise DataError("step 1")
        return step

    batches = ahead(make, range(3), CPU)
    assert next(batches) == 0
    with pytest.raises(DataError, match="step 1"):
        next(batches)


def training_run(folder: Path, encoder: Path) -> TrainingRun:
    folder.mkdir()
    rows = [f"{pair.concept},{pair.unsafe},{pair.safe},{pair.category}" for pair in PAIRS]
    (folder / "pairs.csv").write_text("\n".join(["concept,unsafe_prompt,safe_prompt,category", *rows]) + "\n")
    (folder / "harmless.txt").write_text("\n".join(NEGATIVES) + "\n")
    return TrainingRun(
        [folder / "pairs.csv"],
        folder / "out",
        negatives=[folder / "harmless.txt"],
        false_positive_rate=0.5,
        encoder=f"hf:{encoder}",
        device="cpu",
        cache=folder / "states",
        arguments=TrainingArguments(epochs=1, held_out=0.2, hidden=16, concepts_per_batch=8, evaluate_every=5),
    )


def as_command(run: TrainingRun) -> list[str]:
    return [
        *("train.py", "--data", str(run.data[0]), "--negatives", str(run.negatives[0]), "--encoder", str(run.encoder)),
        *("--cache", str(run.cache), "--output", str(run.output), "--false-positive-rate", "0.5", "--device", "cpu"),
        *("--epochs", "1", "--held-out", "0.2", "--hidden", "16"),
        *("--concepts-per-batch", "8", "--evaluate-every", "5"),
    ]


def test_two_processes_train_the_weights_of_one(tmp_path: Path, tiny_folder: Path) -> None:
    pytest.importorskip("accelerate", reason="starts and joins the processes")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        training_run(tmp_path / "one", tiny_folder).execute()
    finally:
        torch.set_num_threads(threads)
    launch = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"),
        *("--num_processes", "2", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"),
    ]
    two = subprocess.run(
        [*launch, *as_command(training_run(tmp_path / "two", tiny_folder))],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("wrote") == 1, "one process tells how it went"
    weights, others = (load_file(tmp_path / name / "out" / "model.safetensors") for name in ("one", "two"))
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, atol=1e-3, rtol=1e-3)
    histories = [
        json.loads((tmp_path / name / "out" / "training" / "metrics.json").read_text())["evaluations"]
        for name in ("one", "two")
    ]
    for row, other in zip(*histories, strict=True):
        assert other == pytest.approx(row, abs=1e-3)
    config = json.loads((tmp_path / "two" / "out" / "config.json").read_text())
    assert config["training"]["compute"] == {"device": "cpu", "precision": "fp32", "processes": 2}
