"""The embedded default encoder: the published model, however it is run, from a cache that survives damage."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from latentguard.encoders.base import TokenStates
from latentguard.encoders.embedded import EmbeddedEncoder, model_folder
from latentguard.errors import EncoderError

TEXTS = [
    "a red wine on the table",
    "Portrait of a knight with a sword and a shield, oil on canvas, 18th century",
    "dog",
    "Two children reading a large illustrated book about dinosaurs under a blanket fort",
]
LOAD = "from latentguard.encoders.embedded import EmbeddedEncoder; encoder = EmbeddedEncoder()"


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.cosine_similarity(a, b, dim=-1)


def run(script: str, cache: Path, *, wait: bool = True) -> subprocess.Popen[str]:
    """A Python process with a cache folder of its own."""
    environment = {"LATENTGUARD_CACHE": str(cache), "PYTHONPATH": str(Path.cwd()), "PATH": ""}
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if wait:
        process.wait(timeout=120)
    return process


def output(process: subprocess.Popen[str]) -> str:
    written, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return written


@pytest.fixture(scope="module")
def states(embedded: EmbeddedEncoder) -> TokenStates:
    return embedded.encode(TEXTS)


def test_states_have_the_contracts_shapes_and_types(embedded: EmbeddedEncoder, states: TokenStates) -> None:
    longest = max(len(embedded.windows(text)[0].ids) for text in TEXTS)
    assert states.hidden.shape == (len(TEXTS), longest, embedded.width)
    assert states.mask.shape == (len(TEXTS), longest)
    assert states.pooled.shape == (len(TEXTS), 384)
    assert (states.hidden.dtype, states.mask.dtype, states.pooled.dtype) == (
        torch.float32,
        torch.bool,
        torch.float32,
    )


def test_the_mask_counts_the_real_tokens(embedded: EmbeddedEncoder, states: TokenStates) -> None:
    assert states.mask.sum(dim=1).tolist() == [len(embedded.windows(text)[0].ids) for text in TEXTS]


def test_pooled_is_the_mean_of_the_real_tokens(states: TokenStates) -> None:
    for hidden, mask, pooled in zip(states.hidden, states.mask, states.pooled, strict=True):
        torch.testing.assert_close(hidden[mask].mean(dim=0), pooled, atol=1e-5, rtol=1e-5)


def test_near_meanings_are_near(embedded: EmbeddedEncoder) -> None:
    dog, puppy, invoice = embedded.encode(["a photo of a dog", "picture of a puppy", "quarterly tax invoice"]).pooled
    assert cosine(dog, puppy) > cosine(dog, invoice) + 0.3


def test_fp32_in_onnx_runtime_gives_the_states_of_transformers(reference: EmbeddedEncoder) -> None:
    ours, theirs = EmbeddedEncoder(precision="fp32").encode(TEXTS), reference.encode(TEXTS)
    torch.testing.assert_close(ours.hidden[ours.mask], theirs.hidden[theirs.mask], atol=1e-3, rtol=0)
    torch.testing.assert_close(ours.pooled, theirs.pooled, atol=1e-3, rtol=0)


def test_int8_states_stay_near_the_fp32_ones(states: TokenStates, reference: EmbeddedEncoder) -> None:
    theirs = reference.encode(TEXTS)
    assert cosine(states.hidden[states.mask], theirs.hidden[theirs.mask]).min() > 0.98
    assert cosine(states.pooled, theirs.pooled).min() > 0.99


@pytest.mark.parametrize("layers", [(2, 4, 6), (0,), (0, 3)], ids=str)
def test_fp32_layers_are_those_of_transformers(layers: tuple[int, ...]) -> None:
    ours = EmbeddedEncoder(precision="fp32", layers=layers).encode(TEXTS)
    theirs = EmbeddedEncoder(backend="torch", layers=layers).encode(TEXTS)
    torch.testing.assert_close(ours.hidden[ours.mask], theirs.hidden[theirs.mask], atol=1e-3, rtol=0)
    torch.testing.assert_close(ours.pooled, theirs.pooled, atol=1e-3, rtol=0)


def test_several_layers_lie_side_by_side(embedded: EmbeddedEncoder, states: TokenStates) -> None:
    several = EmbeddedEncoder(layers=(2, 6))
    ours, second = several.encode(TEXTS), EmbeddedEncoder(layers=[2]).encode(TEXTS)
    assert (several.width, several.layers, several.depth, embedded.layers) == (768, (2, 6), 6, (6,))
    assert (ours.hidden.shape[-1], ours.pooled.shape[-1]) == (768, 768)
    torch.testing.assert_close(ours.hidden, torch.cat([second.hidden, states.hidden], dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.pooled, torch.cat([second.pooled, states.pooled], dim=-1), atol=1e-5, rtol=0)


def test_int8_states_of_every_layer_stay_near_the_fp32_ones() -> None:
    layers = tuple(range(7))
    ours = EmbeddedEncoder(layers=layers).encode(TEXTS)
    theirs = EmbeddedEncoder(backend="torch", layers=layers).encode(TEXTS)
    mask = ours.mask
    near = cosine(ours.hidden[mask].unflatten(-1, (7, 384)), theirs.hidden[mask].unflatten(-1, (7, 384)))
    assert near.min() > 0.98


def test_each_choice_of_layers_keeps_a_graph_of_its_own(cache_folder: Path) -> None:
    for _ in range(2):
        for layers in ((2,), (2, 6), (2, 4, 6)):
            assert EmbeddedEncoder(layers=layers).encode(["dog"]).hidden.shape[-1] == 384 * len(layers)
    assert all(len(list(cache_folder.rglob(f"int8-l{chosen}-*.onnx"))) == 1 for chosen in ("2", "2.6", "2.4.6"))


def test_a_texts_states_do_not_depend_on_its_batch(embedded: EmbeddedEncoder, states: TokenStates) -> None:
    for row, text in enumerate(TEXTS):
        alone = embedded.encode([text])
        torch.testing.assert_close(alone.hidden[0], states.hidden[row][states.mask[row]], atol=1e-4, rtol=0)
        torch.testing.assert_close(alone.pooled[0], states.pooled[row], atol=1e-4, rtol=0)


def test_a_long_text_is_read_to_its_end_in_several_windows(embedded: EmbeddedEncoder) -> None:
    text = "a quiet street in the rain, " * 100 + "the end"
    windows = embedded.windows(text)
    assert len(windows) > 1
    assert windows[-1].offsets[-2] == (len(text) - 3, len(text))
    assert embedded.encode_windows(windows).hidden.shape[:2] == (len(windows), embedded.window)


def test_an_empty_text_has_states(embedded: EmbeddedEncoder) -> None:
    assert embedded.encode([""]).hidden.isfinite().all()


def test_the_torch_model_is_frozen(reference: EmbeddedEncoder) -> None:
    assert not reference.encode(TEXTS).hidden.requires_grad


def test_the_number_of_threads_changes_no_state(states: TokenStates) -> None:
    torch.testing.assert_close(EmbeddedEncoder(threads=1).encode(TEXTS).pooled, states.pooled, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("precision", "backend"), [("bf16", "onnx"), ("fp16", "onnx"), ("int8", "torch")], ids=lambda value: value
)
def test_a_precision_that_does_not_exist_is_refused(precision: str, backend: str) -> None:
    with pytest.raises(EncoderError, match=precision):
        EmbeddedEncoder(precision=precision, backend=backend)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.9999), ("fp16", 0.999), ("bf16", 0.995)])
def test_a_gpu_gives_the_states_of_the_cpu(precision: str, least: float, reference: EmbeddedEncoder) -> None:
    ours, theirs = EmbeddedEncoder(device="cuda", precision=precision).encode(TEXTS), reference.encode(TEXTS)
    assert ours.hidden.is_cuda
    assert cosine(ours.hidden[ours.mask].cpu(), theirs.hidden[theirs.mask]).min() > least


def test_a_damaged_model_file_is_repaired(cache_folder: Path) -> None:
    weights = model_folder("model.safetensors") / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(50_000_000)
        file.write(b"damage")
    assert model_folder("model.safetensors") == weights.parent
    with weights.open("rb") as file:
        file.seek(50_000_000)
        assert file.read(6) != b"damage"


def test_a_damaged_graph_is_made_again(cache_folder: Path, embedded: EmbeddedEncoder, states: TokenStates) -> None:
    (graph,) = cache_folder.rglob("int8-l6-*.onnx")
    size = graph.stat().st_size
    with graph.open("r+b") as file:
        file.truncate(1000)
    assert torch.equal(EmbeddedEncoder().encode(TEXTS).pooled, states.pooled)
    assert next(cache_folder.rglob("int8-l6-*.onnx")).stat().st_size == size


def test_loading_runs_no_code_of_the_models_package_and_no_heavy_library(cache_folder: Path) -> None:
    heavy = ["all_minilm_l6_v2", "transformers", "open_clip", "torchvision", "onnx"]
    script = f"import json, sys; {LOAD}; print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    assert json.loads(output(run(script, cache_folder))) == []


def test_processes_that_start_at_once_do_not_disturb_each_other(tmp_path: Path, states: TokenStates) -> None:
    cache, start = tmp_path / "cache", tmp_path / "start"
    script = (
        "import time; from pathlib import Path; import latentguard.encoders.embedded\n"
        f"print('ready', flush=True)\nwhile not Path({str(start)!r}).exists(): time.sleep(0.01)\n"
        f"{LOAD}; print(encoder.encode([{TEXTS[0]!r}]).pooled[0].tolist())"
    )
    processes = [run(script, cache, wait=False) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    start.touch()
    for process in processes:
        torch.testing.assert_close(torch.tensor(json.loads(output(process))), states.pooled[0], atol=1e-4, rtol=0)
    assert not list(cache.rglob(".*partial"))


def test_a_process_killed_while_it_unpacks_leaves_a_cache_that_works(
    tmp_path: Path, states: TokenStates, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = run(LOAD, tmp_path, wait=False)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob(".partial/model.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.002)
    killed.kill()
    killed.communicate(timeout=60)
    assert not list(tmp_path.rglob("minilm-l6/model.safetensors"))
    monkeypatch.setenv("LATENTGUARD_CACHE", str(tmp_path))
    torch.testing.assert_close(EmbeddedEncoder().encode(TEXTS).pooled, states.pooled, atol=1e-4, rtol=0)


def test_a_disk_that_fills_is_one_clear_line_and_leaves_no_file(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from latentguard.errors import EncoderError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "from latentguard.encoders.embedded import model_folder\n"
        "try: model_folder('model.safetensors')\nexcept EncoderError as error: print(error)"
    )
    message = output(run(script, tmp_path))
    assert "can't write" in message
    assert message.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
