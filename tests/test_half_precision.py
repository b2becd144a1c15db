"""What a GPU runs, on the processor: prompts scored together, in half precision, compiled, and read ahead."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from models import CONCEPTS, LONG_PROMPT, PROMPTS, WIDTH, random_heads, random_mapping

from latentguard import LatentGuard, Policy, guard, mapping
from latentguard.arrays import fetched
from latentguard.cli import main
from latentguard.encoders import load_encoder
from latentguard.encoders.base import Precision, TokenStates
from latentguard.encoders.embedded import EmbeddedEncoder
from latentguard.encoders.huggingface import HuggingFaceEncoder
from latentguard.errors import DeviceError, EncoderError
from latentguard.fingerprint import model_fingerprint
from latentguard.mapping import with_pooled
from latentguard.training.compute import Half

CPU = torch.device("cpu")
ALL = [*PROMPTS, LONG_PROMPT]
# The small encoder's weights are large, so its rounding is too.
TOLERANCE = {"bf16": 0.5, "fp16": 0.05}
SHIPPED_TOLERANCE = {"bf16": 0.05, "fp16": 0.005}


def guard_in(precision: Precision | None, folder: Path, compiler: str | None = None) -> LatentGuard:
    encoder = HuggingFaceEncoder(str(folder), device=CPU, precision=precision, compiler=compiler)
    return LatentGuard(encoder, random_mapping(), CONCEPTS, Policy(0.5), random_heads())


def test_prompts_scored_together_get_the_scores_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "_CONCEPTS_AT_A_TIME", 3)
    layer = random_mapping()
    torch.manual_seed(1)
    hidden, mask = torch.randn(5, 9, WIDTH), torch.arange(9) < torch.tensor([9, 1, 4, 9, 7])[:, None]
    z, z_mask = with_pooled(TokenStates(hidden, mask, hidden[:, 0]))
    queries = layer.queries(torch.randn(7, WIDTH))
    together = layer._score_together(queries, z, z_mask)
    torch.testing.assert_close(together, layer.score(queries, z, z_mask), atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_scores_in_half_precision_are_near_those_in_single(precision: Precision, tiny_folder: Path) -> None:
    whole, half = guard_in(None, tiny_folder), guard_in(precision, tiny_folder)
    difference = np.abs(half.score(ALL) - whole.score(ALL)).max()
    assert 0 < difference < TOLERANCE[precision]


def test_shipped_scores_in_half_precision_are_near_those_in_single() -> None:
    layers = LatentGuard.from_pretrained(device="cpu").encoder.layers
    scores = {}
    for precision in get_args(Half):
        encoder = EmbeddedEncoder(device="cpu", precision=precision, backend="torch", layers=layers)
        scores[precision] = LatentGuard.from_pretrained(encoder=encoder).score(ALL)
    for precision, most in SHIPPED_TOLERANCE.items():
        assert 0 < np.abs(scores[precision] - scores["fp32"]).max() < most


def test_an_explanation_in_half_precision_adds_up_to_the_score(tiny_folder: Path) -> None:
    verdict = guard_in("bf16", tiny_folder).check("a knife fight on the street")
    told = verdict.explain()
    total = sum(token.contribution for token in told.tokens) + told.whole_prompt + told.bias
    assert total == pytest.approx(verdict.score, abs=TOLERANCE["bf16"])


@pytest.mark.parametrize("at_a_time", [1, 2, 5])
def test_reading_ahead_changes_no_score(
    at_a_time: int, headed_guard: LatentGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = headed_guard.score(ALL)
    verdicts = headed_guard.check_batch(ALL)
    monkeypatch.setattr(guard, "_READ_AT_A_TIME", {"cpu": at_a_time})
    np.testing.assert_allclose(headed_guard.score(ALL), expected, atol=1e-4)
    assert [verdict.concept for verdict in headed_guard.check_batch(ALL)] == [verdict.concept for verdict in verdicts]


def test_what_is_fetched_from_the_processor_is_there() -> None:
    np.testing.assert_array_equal(fetched(torch.arange(3))(), [0, 1, 2])
    np.testing.assert_array_equal(fetched(np.arange(3))(), [0, 1, 2])


def test_a_compiled_encoder_gives_the_same_states(tiny_folder: Path, tiny_encoder: HuggingFaceEncoder) -> None:
    compiled = HuggingFaceEncoder(str(tiny_folder), device=CPU, compiler="eager")
    for texts in (PROMPTS, PROMPTS[:2]):
        ours, theirs = compiled.encode(texts), tiny_encoder.encode(texts)
        torch.testing.assert_close(ours.hidden[ours.mask], theirs.hidden[theirs.mask], atol=1e-5, rtol=0)


def test_a_guard_is_asked_for_in_half_precision_and_compiled(tiny_weights: Path) -> None:
    plain = LatentGuard.from_pretrained(tiny_weights, device="cpu")
    half = LatentGuard.from_pretrained(tiny_weights, device="cpu", precision="bf16", compiler="eager")
    np.testing.assert_allclose(half.score(PROMPTS), plain.score(PROMPTS), atol=TOLERANCE["bf16"])
    assert model_fingerprint(half) != model_fingerprint(plain)


def test_a_compiler_that_pytorch_lacks_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(DeviceError, match="no compiler 'nonsense'"):
        load_encoder(f"hf:{tiny_folder}", device="cpu", compiler="nonsense")


def test_onnx_runtime_compiles_nothing() -> None:
    with pytest.raises(DeviceError, match="ONNX Runtime"):
        load_encoder(device="cpu", compiler="eager")


def test_a_precision_that_pytorch_lacks_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(EncoderError, match="int8"):
        load_encoder(f"hf:{tiny_folder}", device="cpu", precision="int8")


def test_the_command_screens_in_half_precision(tiny_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    common = ["screen", "--file_path", str(tmp_path / "prompts.txt"), "--model", str(tiny_weights), "--device", "cpu"]
    output = tmp_path / "out.csv"
    assert main([*common, "--precision", "bf16", "--output", str(output)]) == 0
    assert len(output.read_text().splitlines()) == 1 + len(PROMPTS)


@pytest.mark.parametrize("wrong", [("--precision", "fp8"), ("--compile", "nonsense")], ids=lambda option: option[0])
def test_a_wrong_option_is_one_line(
    wrong: tuple[str, str], tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n")
    command = ["screen", "--file_path", str(tmp_path / "prompts.txt"), "--model", str(tiny_weights), "--device", "cpu"]
    assert main([*command, *wrong]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-2), *TOLERANCE.items()])
def test_a_gpu_gives_the_scores_of_the_processor(precision: Precision, most: float, tiny_folder: Path) -> None:
    encoder = HuggingFaceEncoder(str(tiny_folder), device=torch.device("cuda"), precision=precision)
    on_gpu = LatentGuard(encoder, random_mapping(), CONCEPTS, Policy(0.5), random_heads())
    many = ALL * 50  # some read while others are computed
    assert np.abs(on_gpu.score(many) - guard_in(None, tiny_folder).score(many)).max() < most
