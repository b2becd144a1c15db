"""open_clip text towers, from a small random one in open_clip's own registry of architectures."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch

from latentguard.encoders.openclip import OpenClipEncoder
from latentguard.errors import EncoderError

CPU = torch.device("cpu")
ARCHITECTURE = "latentguard-test-tower"
TEXTS = ["a red wine on the table", "portrait of a knight with a sword and a shield", "dog"]


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("architectures")
    vision = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}
    variants = {
        ARCHITECTURE: {},
        f"{ARCHITECTURE}-custom": {"custom_text": True},
        f"{ARCHITECTURE}-bidirectional": {"custom_text": True, "text_cfg": {**text, "no_causal_mask": True}},
    }
    for name, changes in variants.items():
        config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, **changes}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def encoder() -> OpenClipEncoder:
    torch.manual_seed(0)
    return OpenClipEncoder(f"{ARCHITECTURE}:", device=CPU)


@pytest.fixture(scope="module")
def model() -> open_clip.CLIP:
    torch.manual_seed(0)
    return open_clip.create_model(ARCHITECTURE).eval()


def spelled(text: str, encoder: OpenClipEncoder) -> list[str]:
    return [text[start:end] for start, end in encoder.windows(text)[0].offsets[1:-1]]


def test_states_have_the_contracts_shapes(encoder: OpenClipEncoder) -> None:
    states = encoder.encode(TEXTS)
    lengths = [len(encoder.windows(text)[0].ids) for text in TEXTS]
    assert states.hidden.shape == (3, max(lengths), 32)
    assert states.mask.sum(dim=1).tolist() == lengths
    assert states.pooled.shape == (3, 32)


def test_projecting_pooled_gives_open_clips_own_text_features(encoder: OpenClipEncoder, model: open_clip.CLIP) -> None:
    with torch.no_grad():
        theirs = model.encode_text(open_clip.get_tokenizer(ARCHITECTURE)(TEXTS))
        ours = encoder.encode(TEXTS).pooled @ model.text_projection
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_a_tower_of_its_own_module_is_found() -> None:
    torch.manual_seed(0)
    encoder = OpenClipEncoder(f"{ARCHITECTURE}-custom:", device=CPU)
    torch.manual_seed(0)
    model = open_clip.create_model(f"{ARCHITECTURE}-custom").eval()
    with torch.no_grad():
        theirs = model.encode_text(open_clip.get_tokenizer(ARCHITECTURE)(TEXTS))
        ours = encoder.encode(TEXTS).pooled @ model.text.text_projection
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_several_layers_lie_side_by_side(encoder: OpenClipEncoder, model: open_clip.CLIP) -> None:
    torch.manual_seed(0)
    several = OpenClipEncoder(f"{ARCHITECTURE}:", device=CPU, layers=(0, 1, 2))
    ours, ids = several.encode([TEXTS[1]]), open_clip.get_tokenizer(ARCHITECTURE)([TEXTS[1]])
    with torch.no_grad():
        embedded = model.token_embedding(ids) + model.positional_embedding
        first = model.transformer.resblocks[0](embedded, attn_mask=model.attn_mask)
    length = ours.mask.shape[1]
    assert (several.width, several.depth, encoder.layers) == (96, 2, (2,))
    torch.testing.assert_close(ours.hidden[..., :32], embedded[:, :length])
    torch.testing.assert_close(ours.hidden[..., 32:64], first[:, :length], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.hidden[..., 64:], encoder.encode([TEXTS[1]]).hidden)
    assert torch.equal(ours.pooled, ours.hidden[:, -1])


def test_a_layer_that_does_not_exist_is_refused() -> None:
    with pytest.raises(EncoderError, match="layers are numbers from 0 to 2"):
        OpenClipEncoder(f"{ARCHITECTURE}:", device=CPU, layers=(3,))


def test_padding_changes_no_real_state(encoder: OpenClipEncoder) -> None:
    together = encoder.encode(TEXTS)
    for row, text in enumerate(TEXTS):
        alone = encoder.encode([text]).hidden[0]
        torch.testing.assert_close(together.hidden[row][together.mask[row]], alone, atol=1e-5, rtol=1e-5)


def test_the_encoder_is_frozen(encoder: OpenClipEncoder) -> None:
    assert not encoder.encode(TEXTS).hidden.requires_grad


@pytest.mark.parametrize(
    "text",
    [
        "a photo of a dog",
        "It's  A \t DOG!! 1984, isn't it?",
        "naïve café 🐕 東京",
        "rock &amp; roll &lt;3",
        "“curly” ﬁne Ｆｕｌｌ",
        "",
    ],
)
def test_tokens_are_those_of_open_clip(encoder: OpenClipEncoder, text: str) -> None:
    assert list(encoder.windows(text)[0].ids[1:-1]) == open_clip.SimpleTokenizer().encode(text)


def test_offsets_point_at_the_text_as_written(encoder: OpenClipEncoder) -> None:
    assert spelled("  A PHOTO, of\n🐕 naïve dogs", encoder)[:4] == ["A", "PHOTO", ",", "of"]
    assert spelled("🐕 naïve dogs", encoder)[-1] == "dogs"


def test_a_word_that_cleaning_changes_keeps_its_whole_span(encoder: OpenClipEncoder) -> None:
    assert spelled("rock&amp;roll dog", encoder) == ["rock&amp;roll"] * 3 + ["dog"]


def test_the_text_of_a_special_token_is_not_that_token(encoder: OpenClipEncoder) -> None:
    ids = encoder.windows("dog <end_of_text> nude")[0].ids
    assert ids.index(ids[-1]) == len(ids) - 1


def test_a_long_text_is_read_to_its_end_in_several_windows(encoder: OpenClipEncoder) -> None:
    text = "a photo of a dog running through the field " * 20 + "end"
    windows = encoder.windows(text)
    assert len(windows) > 1
    assert windows[-1].offsets[-2] == (len(text) - 3, len(text))
    assert encoder.encode_windows(windows).hidden.shape[:2] == (len(windows), 77)


def test_a_tower_without_a_causal_mask_is_refused() -> None:
    with pytest.raises(EncoderError, match="not a text tower"):
        OpenClipEncoder(f"{ARCHITECTURE}-bidirectional:", device=CPU)


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(EncoderError, match="no architecture 'ViT-nothing'"):
        OpenClipEncoder("ViT-nothing:", device=CPU)


def test_unknown_weights_are_one_clear_line() -> None:
    with pytest.raises(EncoderError, match="no-such-weights") as caught:
        OpenClipEncoder(f"{ARCHITECTURE}:no-such-weights", device=CPU)
    assert "\n" not in str(caught.value)
