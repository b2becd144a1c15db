"""The published checkpoint: read as data alone, and scoring as the published code does."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from latentguard import ConceptEntry, LatentGuard, WeightsError
from latentguard.cli import main
from latentguard.weights import import_official, load_weights, read_official

WIDTH, HEADS, HEAD_WIDTH, OUTPUT = 64, 16, 32, 128
CONCEPTS = ("knife fight", "naked", "a very long concept with many words in it", "bomb")
PROMPTS = ("a photograph of an astronaut riding a horse", "naked", "x" * 40, "wine, bread and cheese on a table; 4k")

Checkpoint = dict[str, Tensor]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """Random tensors under the names and in the shapes of the published ones, but for the width (768 there)."""
    generator = torch.Generator().manual_seed(3)
    inner = HEADS * HEAD_WIDTH
    shapes = {
        "x1_to_key": (inner, WIDTH),
        "x2_to_query": (inner, WIDTH),
        "x1_to_value": (inner, WIDTH),
        "final_mlp": (OUTPUT, inner),
        "mlp_query1": (OUTPUT, inner),
    }
    tensors = {"tempr": torch.tensor([1 / 0.07])}
    for name, (rows, columns) in shapes.items():
        tensors[f"{name}.weight"] = torch.randn(rows, columns, generator=generator) / columns**0.5
        tensors[f"{name}.bias"] = torch.randn(rows, generator=generator) / 10
    return tensors


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP text tower with the published tokenizer, whose vocabulary open_clip carries."""
    simple = open_clip.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): index for index, token in enumerate(simple.encoder)}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=list(simple.bpe_ranks), model_max_length=77)
    torch.manual_seed(4)
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    folder = tmp_path_factory.mktemp("clip")
    transformers.CLIPTextModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def saved(tensors: object, folder: Path) -> Path:
    path = folder / "model_parameters.pth"
    torch.save(tensors, path)
    return path


def published_scores(tensors: Checkpoint, clip: Path) -> Tensor:
    """Scores of PROMPTS [B, N] as the published code computes them: keys and values anew for every concept."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip)
    model = transformers.CLIPTextModel.from_pretrained(clip).eval()

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def encoded(text: str) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            ids = tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
            states = model(input_ids=ids)
        return states.last_hidden_state[0], states.pooler_output[0]

    scores = []
    for prompt in PROMPTS:
        hidden, pooled = encoded(prompt)
        x1 = torch.cat([pooled[None], hidden])
        assert x1.shape == (78, WIDTH)
        of_prompt = []
        for concept in CONCEPTS:
            x2 = encoded(concept)[1]
            query, key, value = linear("x2_to_query", x2), linear("x1_to_key", x1), linear("x1_to_value", x1)
            heads = []
            for head in range(HEADS):
                part = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
                attention = torch.softmax(key[:, part] @ query[part] / HEAD_WIDTH**0.5, dim=0)
                heads.append(attention @ value[:, part])
            mapped, direction = linear("final_mlp", torch.cat(heads)), linear("mlp_query1", query)
            of_prompt.append(tensors["tempr"][0] * F.cosine_similarity(mapped, direction, dim=0))
        scores.append(torch.stack(of_prompt))
    return torch.stack(scores)


def test_the_imported_checkpoint_scores_as_the_published_code(
    checkpoint: Checkpoint, clip: Path, tmp_path: Path
) -> None:
    concepts = [ConceptEntry(name) for name in CONCEPTS]
    path = saved(checkpoint, tmp_path)
    folder = import_official(path, tmp_path / "official", threshold=4.47, concepts=concepts, encoder=f"hf:{clip}")
    guard = LatentGuard.from_pretrained(folder)
    expected = published_scores(checkpoint, clip)
    found = [dict(verdict.scores(None)) for verdict in guard.check_batch(PROMPTS)]
    scores = torch.tensor([[of_prompt[name] for name in CONCEPTS] for of_prompt in found])
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.tensor(guard.score(PROMPTS)), expected.amax(dim=1), atol=1e-4, rtol=0)
    assert expected.std() > 0.1  # else anything would agree


def test_an_explanation_of_the_imported_checkpoint_sums_to_the_margin(
    checkpoint: Checkpoint, clip: Path, tmp_path: Path
) -> None:
    concepts = [ConceptEntry(name) for name in CONCEPTS]
    path = saved(checkpoint, tmp_path)
    folder = import_official(path, tmp_path / "official", threshold=4.47, concepts=concepts, encoder=f"hf:{clip}")
    verdict = LatentGuard.from_pretrained(folder).check(PROMPTS[0])
    assert verdict.explain().margin == pytest.approx(verdict.margin, abs=1e-3)


def test_the_imported_folder_says_where_it_came_from(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = import_official(saved(checkpoint, tmp_path), tmp_path / "w", threshold=4.47, concepts=[ConceptEntry("a")])
    config = load_weights(folder).config
    assert (config.encoder, config.pad_to_window, config.threshold) == (
        "hf:openai/clip-vit-large-patch14",
        True,
        4.47,
    )
    assert "arXiv 2404.08031" in (folder / "README.md").read_text()


def test_the_command_imports_with_the_projects_own_bank(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = saved(checkpoint, tmp_path), tmp_path / "official"
    assert main(["import-official", str(path), "--output", str(folder), "--threshold", "4.47"]) == 0
    assert capsys.readouterr().out == f"wrote {folder}\n"
    assert len(load_weights(folder).concepts) >= 400


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "proof"

    class Malice:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (proof,)

    for write in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))):
        path = tmp_path / "model_parameters.pth"
        write({"tempr": Malice()}, path)
        with pytest.raises(WeightsError, match="tensors and nothing else"):
            read_official(path)
        assert not proof.exists()
    pickle.loads(path.read_bytes())
    assert proof.exists()  # the file is as dangerous as it claims


@pytest.mark.parametrize("name", ["tempr", "x1_to_key.weight", "mlp_query1.bias"])
def test_a_checkpoint_without_a_tensor_is_refused_by_that_name(
    checkpoint: Checkpoint, tmp_path: Path, name: str
) -> None:
    path = saved({key: tensor for key, tensor in checkpoint.items() if key != name}, tmp_path)
    with pytest.raises(WeightsError, match=f"no tensor '{name}'"):
        read_official(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(tempr=torch.zeros(2)),
        lambda t: t.update({"x2_to_query.weight": torch.zeros(512)}),
        lambda t: t.update({"x2_to_query.weight": torch.zeros(500, 64)}),
        lambda t: t.update({"final_mlp.weight": torch.zeros(())}),
        lambda t: t.update({"x1_to_key.weight": torch.zeros(512, 768)}),
        lambda t: t.update({"x1_to_key.weight": 5}),
        lambda t: t["x1_to_key.bias"].fill_(torch.nan),
    ],
)
def test_a_checkpoint_of_other_shapes_or_numbers_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    tensors = {name: tensor.clone() for name, tensor in checkpoint.items()}
    change(tensors)
    with pytest.raises(WeightsError, match=r"model_parameters\.pth: ") as caught:
        read_official(saved(tensors, tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04", b"\x80\x02]q\x00.", b"\x80\x02}\x8c\x01\xff."])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model_parameters.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"model_parameters\.pth: "):
        read_official(path)


def test_a_truncated_checkpoint_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = saved(checkpoint, tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="damaged"):
        read_official(path)


@pytest.mark.parametrize("path", ["absent.pth", "."])
def test_a_file_that_is_not_there_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(WeightsError, match=r"No such file|Is a directory"):
        read_official(tmp_path / path)
