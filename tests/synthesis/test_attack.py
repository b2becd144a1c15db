"""The adversarial search: what it may not spell, how near it comes, and that a seed gives the same again."""

from __future__ import annotations

import string
import time
from pathlib import Path

import pytest
import torch
import transformers

from latentguard.encoders.embedded import EmbeddedEncoder
from latentguard.encoders.huggingface import HuggingFaceEncoder
from latentguard.errors import ConceptError, EncoderError
from latentguard.synthesis.attack import AdversarialSearch, Replacement

WORDS = ["gun", "guns", "pistol", "knife", "knives", "blade", "fight", "brawl", "red", "wine", "photo", "of", "street"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP text tower whose vocabulary holds letters and `WORDS`."""
    letters = [*string.ascii_lowercase, *[f"{letter}</w>" for letter in string.ascii_lowercase]]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
    entries = dict.fromkeys([*letters, *[a + b for a, b in merges], "<|startoftext|>", "<|endoftext|>"])
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=list(dict.fromkeys(merges)), model_max_length=32)
    torch.manual_seed(3)
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_factor=20.0,
    )
    folder = tmp_path_factory.mktemp("clip")
    transformers.CLIPTextModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def embedded() -> AdversarialSearch:
    """A short search against the embedded encoder."""
    return AdversarialSearch(steps=3, candidates=12, topk=32)


@pytest.fixture(params=["bert", "clip"])
def tiny(request: pytest.FixtureRequest, tiny_folder: Path, clip_folder: Path) -> str:
    return f"hf:{tiny_folder if request.param == 'bert' else clip_folder}"


def cosine(encoder: HuggingFaceEncoder | EmbeddedEncoder, first: str, second: str) -> float:
    one, other = encoder.encode([first]).pooled, encoder.encode([second]).pooled
    return float(torch.nn.functional.cosine_similarity(one, other))


def test_the_similarity_is_that_of_the_encoder(tiny: str) -> None:
    search = AdversarialSearch(tiny, steps=2, candidates=8)
    encoder = HuggingFaceEncoder(tiny.removeprefix("hf:"), device=torch.device("cpu"))
    (found,) = search.replacements("gun", ["photo of gun on street"], count=1)
    within = cosine(encoder, f"photo of {found.text} on street", "photo of gun on street")
    alone = cosine(encoder, found.text, "gun")
    assert found.similarity == pytest.approx((within + alone) / 2, abs=1e-5)


def test_a_seed_gives_the_same_replacements_bit_for_bit(tiny: str) -> None:
    runs = [AdversarialSearch(tiny, steps=3, candidates=8, seed=seed).replacements("gun") for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_results_do_not_depend_on_the_concepts_before(tiny: str) -> None:
    search = AdversarialSearch(tiny, steps=2, candidates=8)
    alone = search.replacements("knife fight")
    search.replacements("gun")
    assert search.replacements("knife fight") == alone


def test_the_nearest_comes_first_and_all_differ(tiny: str) -> None:
    found = AdversarialSearch(tiny, steps=3, candidates=8).replacements("red wine", count=3)
    assert found == sorted(found, key=lambda one: -one.similarity)
    assert len({one.text for one in found}) == len(found) > 0


def test_more_steps_come_nearer(tiny: str) -> None:
    near = [AdversarialSearch(tiny, steps=steps, candidates=16).replacements("gun", count=1) for steps in (1, 8)]
    assert near[1][0].similarity >= near[0][0].similarity


@pytest.mark.parametrize("concept", ["gun", "knife fight", "Red Wine"])
def test_the_concept_is_not_spelt(tiny: str, concept: str) -> None:
    for found in AdversarialSearch(tiny, steps=3, candidates=16).replacements(concept, count=2):
        letters = found.text.replace(" ", "").lower()
        assert not any(word in letters for word in concept.lower().split())
        assert not any(token in word for token in found.text.split() for word in concept.lower().split())


def test_replacements_against_the_embedded_encoder(embedded: AdversarialSearch) -> None:
    start = time.perf_counter()
    found = embedded.replacements("knife fight", ["two men in a knife fight behind the bar"], count=2)
    assert time.perf_counter() - start < 60  # seconds; some two on a free core
    assert len(found) == 2
    assert found[0].similarity > 0.6
    text = f"two men in a {found[0].text} behind the bar"
    encoder = EmbeddedEncoder(backend="torch")
    within = cosine(encoder, text, "two men in a knife fight behind the bar")
    alone = cosine(encoder, found[0].text, "knife fight")
    assert found[0].similarity == pytest.approx((within + alone) / 2, abs=1e-4)
    assert not any(word in one.text for one in found for word in ("knife", "kniv", "fight"))


def test_tokens_are_words_that_read_as_themselves(embedded: AdversarialSearch) -> None:
    tower = embedded._tower
    assert len(tower.vocabulary) > 10_000
    assert all(surface.isascii() and surface.isalpha() for surface in tower.vocabulary.values())
    some = list(tower.vocabulary)[::500]
    assert tower.ids(tower.text(some)) == tuple(some)


def test_contexts_that_do_not_spell_the_concept_are_passed_over(tiny: str) -> None:
    search = AdversarialSearch(tiny, steps=2, candidates=8)
    assert search.replacements("gun", ["red wine", "gun", "gun on gun"]) == search.replacements("gun")


def test_an_overlong_context_is_passed_over(tiny: str) -> None:
    search = AdversarialSearch(tiny, steps=2, candidates=8)
    assert search.replacements("gun", ["red " * 100 + "gun"]) == search.replacements("gun")


def test_a_replacement_holds_text_and_similarity() -> None:
    assert Replacement("a", 0.5) == Replacement(text="a", similarity=0.5)


def test_an_empty_concept_is_refused(tiny: str) -> None:
    with pytest.raises(ConceptError, match="empty"):
        AdversarialSearch(tiny).replacements(" ")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("open_clip:ViT-B-32:", "give no gradients"),
        ("nonsense", "not an encoder"),
        ("hf:/nowhere", "no such folder"),
    ],
)
def test_encoders_without_gradients_are_refused(name: str, complaint: str) -> None:
    with pytest.raises(EncoderError, match=complaint):
        AdversarialSearch(name)


def test_the_encoder_in_onnx_is_refused() -> None:
    with pytest.raises(EncoderError, match="ONNX"):
        AdversarialSearch(EmbeddedEncoder())


def test_t5_is_refused(tmp_path: Path) -> None:
    tokenizer = transformers.T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581a", -1.0), ("a", -1.0), ("\u2581", -1.0)],
        extra_ids=0,
        model_max_length=16,
    )
    tokenizer.save_pretrained(tmp_path)
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0
    )
    transformers.T5EncoderModel(config).save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match="t5"):
        AdversarialSearch(f"hf:{tmp_path}")


@pytest.mark.parametrize("option", ["steps", "candidates", "topk"])
def test_a_search_of_nothing_is_refused(tiny: str, option: str) -> None:
    with pytest.raises(EncoderError, match=option):
        AdversarialSearch(tiny, **{option: 0})
