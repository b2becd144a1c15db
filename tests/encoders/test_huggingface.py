"""Hugging Face text encoders, from folders of small random ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import transformers

from latentguard.encoders.huggingface import HuggingFaceEncoder
from latentguard.errors import EncoderError

CPU = torch.device("cpu")
TEXTS = ["a red wine on the table", "portrait of a knight with a sword and a shield", "dog"]
LONG_TEXT = "a photo of a dog running through the field and a knight with a sword on the table " * 12


def load(folder: Path, **options: object) -> HuggingFaceEncoder:
    return HuggingFaceEncoder(str(folder), device=CPU, **options)


@pytest.fixture(scope="module", params=["clip_folder", "bert_folder", "t5_folder"])
def encoder(request: pytest.FixtureRequest) -> HuggingFaceEncoder:
    return load(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> HuggingFaceEncoder:
    return load(clip_folder)


@pytest.fixture
def bert_copy(bert_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert_folder, tmp_path / "bert"))


def edit(path: Path, **changes: object) -> None:
    known = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**known, **changes}))


def test_states_have_the_contracts_shapes_and_types(encoder: HuggingFaceEncoder) -> None:
    states = encoder.encode(TEXTS)
    lengths = [len(encoder.windows(text)[0].ids) for text in TEXTS]
    assert states.hidden.shape == (3, max(lengths), encoder.width)
    assert states.mask.sum(dim=1).tolist() == lengths
    assert states.pooled.shape == (3, encoder.width)
    assert (states.hidden.dtype, states.pooled.dtype) == (torch.float32, torch.float32)


def test_padding_changes_no_real_state(encoder: HuggingFaceEncoder) -> None:
    together = encoder.encode(TEXTS)
    for row, text in enumerate(TEXTS):
        alone = encoder.encode([text])
        torch.testing.assert_close(together.hidden[row][together.mask[row]], alone.hidden[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.pooled[row], alone.pooled[0], atol=1e-5, rtol=1e-5)


def test_a_long_text_is_read_to_its_end_in_several_windows(encoder: HuggingFaceEncoder) -> None:
    windows = encoder.windows(LONG_TEXT)
    spans = {span for window in windows for span in window.offsets} - {(0, 0)}
    assert len(windows) > 1
    assert all(len(window.ids) <= encoder.window for window in windows)
    assert "".join(LONG_TEXT[start:end] for start, end in sorted(spans)) == LONG_TEXT.replace(" ", "")
    assert encoder.encode_windows(windows).hidden.shape[:2] == (len(windows), encoder.window)


def test_the_encoder_is_frozen(encoder: HuggingFaceEncoder) -> None:
    states = encoder.encode(TEXTS)
    assert not states.hidden.requires_grad
    assert not states.pooled.requires_grad


def test_windows_are_as_long_as_the_encoder_allows(clip_folder: Path, bert_folder: Path, t5_folder: Path) -> None:
    assert [load(folder).window for folder in (clip_folder, bert_folder, t5_folder)] == [77, 64, 48]


def test_clip_gives_the_towers_own_states_and_pooler_output(
    clip: HuggingFaceEncoder, clip_folder: Path, clip_tokenizer: transformers.CLIPTokenizer
) -> None:
    model = transformers.CLIPTextModel.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        theirs = model(**clip_tokenizer(TEXTS[1], return_tensors="pt"))
    ours = clip.encode([TEXTS[1]])
    torch.testing.assert_close(ours.hidden, theirs.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.pooled, theirs.pooler_output, atol=1e-5, rtol=1e-5)


def test_padding_to_the_window_gives_the_published_77_states(
    clip_folder: Path, clip_tokenizer: transformers.CLIPTokenizer
) -> None:
    model = transformers.CLIPTextModel.from_pretrained(clip_folder).eval()
    ids = clip_tokenizer(TEXTS, padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        theirs = model(input_ids=ids)
    ours = load(clip_folder, pad_to_window=True).encode(TEXTS)
    assert ours.mask.all()
    torch.testing.assert_close(ours.hidden, theirs.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.pooled, theirs.pooler_output, atol=1e-5, rtol=1e-5)


def test_padding_to_the_window_changes_no_real_state(clip: HuggingFaceEncoder, clip_folder: Path) -> None:
    padded, plain = load(clip_folder, pad_to_window=True).encode(TEXTS), clip.encode(TEXTS)
    length = plain.mask.shape[1]
    torch.testing.assert_close(padded.hidden[:, :length][plain.mask], plain.hidden[plain.mask], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded.pooled, plain.pooled, atol=1e-5, rtol=1e-5)


def test_an_old_configs_wrong_end_of_text_id_does_not_matter(
    clip: HuggingFaceEncoder, clip_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    edit(folder / "config.json", eos_token_id=2)
    torch.testing.assert_close(load(folder).encode(TEXTS).pooled, clip.encode(TEXTS).pooled)


def test_the_text_tower_of_a_whole_clip_is_found(
    clip: HuggingFaceEncoder,
    clip_folder: Path,
    clip_tokenizer: transformers.CLIPTokenizer,
    tmp_path: Path,
) -> None:
    tower = transformers.CLIPTextModel.from_pretrained(clip_folder)
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = transformers.CLIPConfig(text_config=tower.config.to_dict(), vision_config=vision.to_dict())
    whole = transformers.CLIPModel(config)
    whole.text_model.load_state_dict(tower.state_dict())
    whole.save_pretrained(tmp_path)
    clip_tokenizer.save_pretrained(tmp_path)
    torch.testing.assert_close(load(tmp_path).encode(TEXTS).pooled, clip.encode(TEXTS).pooled)


def test_several_layers_lie_side_by_side(encoder: HuggingFaceEncoder) -> None:
    folder = Path(encoder.name.removeprefix("hf:"))
    several = load(folder, layers=(0, 1, 2))
    alone = [load(folder, layers=[layer]).encode(TEXTS) for layer in (0, 1)] + [encoder.encode(TEXTS)]
    ours = several.encode(TEXTS)
    assert (several.width, several.depth, encoder.layers) == (96, 2, (2,))
    assert torch.equal(ours.hidden, torch.cat([states.hidden for states in alone], dim=-1))
    torch.testing.assert_close(ours.pooled, torch.cat([states.pooled for states in alone], dim=-1))


def test_layers_below_clips_last_are_not_normed(clip_folder: Path, clip_tokenizer: transformers.CLIPTokenizer) -> None:
    model = transformers.CLIPTextModel.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        theirs = model(**clip_tokenizer(TEXTS[1], return_tensors="pt"), output_hidden_states=True)
    ours = load(clip_folder, layers=(1, 2)).encode([TEXTS[1]])
    torch.testing.assert_close(ours.hidden[..., :32], theirs.hidden_states[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.hidden[..., 32:], theirs.last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [(3,), (1, 0)], ids=str)
def test_layers_that_do_not_exist_or_do_not_rise_are_refused(bert_folder: Path, layers: tuple[int, ...]) -> None:
    with pytest.raises(EncoderError, match="layers are numbers from 0 to 2"):
        load(bert_folder, layers=layers)


def test_bert_pools_by_the_mean(bert_folder: Path) -> None:
    states = load(bert_folder).encode([TEXTS[0]])
    torch.testing.assert_close(states.pooled[0], states.hidden[0].mean(dim=0))


def test_sentence_transformers_settings_are_followed(bert_copy: Path) -> None:
    edit(bert_copy / "sentence_bert_config.json", max_seq_length=20)
    edit(bert_copy / "1_Pooling" / "config.json", pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    encoder = load(bert_copy)
    states = encoder.encode(TEXTS)
    assert (encoder.window, encoder.pooling) == (20, "cls")
    assert torch.equal(states.pooled, states.hidden[:, 0])


def test_a_pooling_that_does_not_exist_is_refused(bert_copy: Path) -> None:
    edit(bert_copy / "1_Pooling" / "config.json", pooling_mode_max_tokens=True)
    with pytest.raises(EncoderError, match="pooling_mode_max_tokens"):
        load(bert_copy)


def test_t5_pools_by_the_mean_of_its_encoder(t5_folder: Path) -> None:
    states = load(t5_folder).encode([TEXTS[0]])
    torch.testing.assert_close(states.pooled[0], states.hidden[0].mean(dim=0))


def test_t5_has_no_fp16(t5_folder: Path) -> None:
    with pytest.raises(EncoderError, match="overflow"):
        load(t5_folder, precision="fp16")


def test_a_decoder_is_refused_by_its_class(bert_copy: Path) -> None:
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, architectures=["GPT2LMHeadModel"])
    config.save_pretrained(bert_copy)
    with pytest.raises(EncoderError, match="GPT2LMHeadModel is not a text encoder"):
        load(bert_copy)


def test_a_vision_tower_is_refused_by_its_class(bert_copy: Path) -> None:
    transformers.ViTConfig(architectures=["ViTModel"]).save_pretrained(bert_copy)
    with pytest.raises(EncoderError, match="ViTModel is not a text encoder"):
        load(bert_copy)


def test_weights_without_safetensors_are_refused(bert_copy: Path) -> None:
    (bert_copy / "model.safetensors").unlink()
    torch.save({}, bert_copy / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="can't be loaded"):
        load(bert_copy)


def test_weights_that_lack_a_tensor_are_refused(bert_folder: Path, bert_copy: Path) -> None:
    model = transformers.BertModel.from_pretrained(bert_folder)
    kept = {key: value for key, value in model.state_dict().items() if "layer.1.output" not in key}
    model.save_pretrained(bert_copy, state_dict=kept)
    with pytest.raises(EncoderError, match=r"lack 4 tensors.*encoder\.layer\.1\.output"):
        load(bert_copy)


def test_truncated_weights_are_refused(bert_copy: Path) -> None:
    weights = bert_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(EncoderError, match="can't be loaded"):
        load(bert_copy)


def test_weights_without_the_unused_pooler_are_taken(bert_folder: Path, bert_copy: Path) -> None:
    transformers.BertModel.from_pretrained(bert_folder, add_pooling_layer=False).save_pretrained(bert_copy)
    assert torch.equal(load(bert_copy).encode(TEXTS).pooled, load(bert_folder).encode(TEXTS).pooled)


def test_a_folder_that_does_not_exist_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="no such folder"):
        load(tmp_path / "nothing")


def test_a_hub_that_cannot_be_reached_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match="latentguard-tests/no-such-encoder") as caught:
        HuggingFaceEncoder("latentguard-tests/no-such-encoder", device=CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_gives_the_states_of_the_cpu(clip: HuggingFaceEncoder, clip_folder: Path, precision: str) -> None:
    encoder = HuggingFaceEncoder(str(clip_folder), device=torch.device("cuda"), precision=precision)
    ours, theirs = encoder.encode(TEXTS), clip.encode(TEXTS)
    assert ours.hidden.is_cuda
    assert ours.hidden.dtype == torch.float32
    assert torch.cosine_similarity(ours.pooled.cpu(), theirs.pooled, dim=-1).min() > 0.99
