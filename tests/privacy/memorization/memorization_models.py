"""Builds the small models of these tests: random, the same in every run, each with a real processor of its family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

IMAGE_SIZE, PATCH = 32, 8
WIDTH, LAYERS, WINDOW = 32, 2, 512

LINES = (
    "What shape is drawn in the image? Answer with one word.",
    "a red circle, a green square and a blue triangle on a white ground",
    "Is there a circle in this image? Please answer yes or no. Yes No",
    "USER: ASSISTANT: system user assistant You are a helpful assistant.",
    "User name: alice0 User id: 483920 Gender: female Age: 34 Captured: 2019-04-07 12:30 Place: Lisbon",
    "Answer with the option's letter from the given choices directly. (A) (B) (C) (D) Question: Context: Options:",
)

# As the published processors of LLaVA 1.5 and Qwen2.5-VL have them, without what concerns videos.
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_TOWER = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}
_QWEN_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def save_llava(folder: Path) -> Path:
    """A LLaVA of a CLIP vision tower and a Llama, two layers each."""
    vocabulary, merges = _byte_level(["<unk>", "<s>", "</s>", "<pad>"])
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=WINDOW,
        additional_special_tokens=["<image>"],
    )
    processor = transformers.LlavaProcessor(
        image_processor=_clip_images(),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=LLAVA_TEMPLATE,
        num_additional_image_tokens=1,
    )
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_TOWER, image_size=IMAGE_SIZE, patch_size=PATCH),
        text_config=transformers.LlamaConfig(
            **_TOWER,
            vocab_size=len(tokenizer),
            max_position_embeddings=WINDOW,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
    )
    return _save(folder, transformers.LlavaForConditionalGeneration, config, processor)


def save_qwen(folder: Path) -> Path:
    """A Qwen2.5-VL, two layers in each part."""
    vocabulary, merges = _byte_level(["<|endoftext|>", *_QWEN_TOKENS])
    tokenizer = transformers.Qwen2Tokenizer(vocabulary, merges, eos_token="<|im_end|>", model_max_length=WINDOW)
    tokenizer.add_special_tokens({"additional_special_tokens": list(_QWEN_TOKENS)})
    sizes = {"shortest_edge": IMAGE_SIZE**2, "longest_edge": (2 * IMAGE_SIZE) ** 2}
    images = {"patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2, "size": sizes}
    processor = transformers.Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(**images),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(**images),
        chat_template=QWEN_TEMPLATE,
    )
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in _QWEN_TOKENS}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **_TOWER,
            "num_key_value_heads": 1,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": WINDOW,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]},
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": LAYERS,
            "hidden_size": WIDTH,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 4 * PATCH,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,  # as in the smaller published ones
    )
    return _save(folder, transformers.Qwen2_5_VLForConditionalGeneration, config, processor)


def save_clip(folder: Path) -> Path:
    """A CLIP, two layers in each tower."""
    tokenizer = _clip_tokenizer()
    processor = transformers.CLIPProcessor(image_processor=_clip_images(), tokenizer=tokenizer)
    config = transformers.CLIPConfig(
        text_config={
            **_TOWER,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 77,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**_TOWER, "image_size": IMAGE_SIZE, "patch_size": PATCH},
        projection_dim=16,
    )
    return _save(folder, transformers.CLIPModel, config, processor)


def save_siglip(folder: Path) -> Path:
    """A SigLIP, two layers in each tower."""
    vocabulary, merges = _byte_level(["<pad>", "</s>", "<unk>"])
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=16,
        model_input_names=["input_ids"],
    )
    images = transformers.SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    processor = transformers.SiglipProcessor(image_processor=images, tokenizer=tokenizer)
    tower = {name: value for name, value in _TOWER.items() if name != "initializer_range"}
    config = transformers.SiglipConfig(
        text_config={
            **tower,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 16,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**tower, "image_size": IMAGE_SIZE, "patch_size": PATCH},
    )
    return _save(folder, transformers.SiglipModel, config, processor)


def save_git(folder: Path) -> Path:
    """A GIT, which captions images: two layers in each part, and no chat template."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *[f"##{letter}" for letter in letters]]
    tokenizer = transformers.BertTokenizer(vocab={word: place for place, word in enumerate(words)}, model_max_length=64)
    config = transformers.GitConfig(
        **_TOWER,
        vision_config={**_TOWER, "image_size": IMAGE_SIZE, "patch_size": PATCH},
        vocab_size=len(words),
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    processor = transformers.GitProcessor(image_processor=_clip_images(), tokenizer=tokenizer)
    return _save(folder, transformers.GitForCausalLM, config, processor)


def _clip_images() -> Any:
    return transformers.CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )


def _byte_level(special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _trained(trained, trainers.BpeTrainer(special_tokens=special, **_training()))


def _clip_tokenizer() -> Any:
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # Words as that tokenizer cuts them: in small letters, and a space belongs to none.
    words = [word for line in LINES for word in line.lower().split()]
    vocabulary, merges = _trained(trained, trainers.BpeTrainer(end_of_word_suffix="</w>", **_training()), words)
    # As in the published vocabulary, the special tokens are its last two.
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[token] = len(vocabulary)
    return transformers.CLIPTokenizer(vocabulary, merges, model_max_length=77)


def _training() -> dict[str, Any]:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return {"vocab_size": 600, "initial_alphabet": alphabet, "show_progress": False}


def _trained(
    tokenizer: Any, trainer: Any, lines: tuple[str, ...] | list[str] = LINES
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer.train_from_iterator(lines, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]


def _save(folder: Path, kind: type[Any], config: Any, processor: Any) -> Path:
    torch.manual_seed(7)
    kind(config).eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def probe_inputs(loaded: Any, image: Path) -> dict[str, Any]:
    """A batch of one image and a text, as the model takes it."""
    text = "What shape is drawn in the image?"
    if loaded.kind == "vlm":
        content = [{"type": "image"}, {"type": "text", "text": text}]
        text = loaded.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    with Image.open(image) as opened:
        return dict(loaded.processor(images=[opened.convert("RGB")], text=[text], return_tensors="pt"))
