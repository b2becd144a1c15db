"""A small LLaVA that reads: 0.4 million parameters, trained from nothing on drawn shapes with text in them.

It is what `privacy.memorization.experiment` fine-tunes. That a model can read the text in an image at all is what lets
it remember that text; published models learn it from captions and documents, this one from the user ids of throw-away
records, which are in no experiment.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tqdm import tqdm

from privacy.errors import MemorizationError
from privacy.memorization.drawing import Style, draw_text
from privacy.memorization.models import quiet
from privacy.memorization.records import PrivateRecord, generate

IMAGE_SIZE, PATCH = 80, 10
STYLE = Style(position="bottom-left", size=0.17)
FIELDS = ("user_id",)
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 220),
    "yellow": (230, 210, 40),
    "purple": (150, 50, 180),
    "orange": (240, 140, 30),
}
SHAPES = ("circle", "square", "triangle", "cross")
WHICH_COLOUR, WHICH_SHAPE, READ = "which colour ?", "which shape ?", "which number ?"
NOTHING = "none"

_TEXT_TOP = 50  # shapes stay above it, text below
_WIDTH, _LAYERS, _HEADS = 96, 2, 4
_TOKENS = (IMAGE_SIZE // PATCH) ** 2
_PLAIN = 0.2  # the share of images without text
_OVERLAYS = 4000
_TEMPLATE = (
    "{% for message in messages %}{% for content in message['content'] %}"
    "{{ '<image> ' if content['type'] == 'image' else content['text'] + ' ' }}"
    "{% endfor %}{{ ': ' if message['role'] == 'user' else '' }}{% endfor %}"
)

Pixels = NDArray[np.uint8]


def draw_shape(rng: random.Random) -> tuple[Image.Image, str]:
    """An image of one shape, and its colour."""
    image, draw = _canvas(rng)
    return image, _draw_some_shape(draw, rng)[0]


def draw_scene(rng: random.Random) -> tuple[Image.Image, list[tuple[str, str]]]:
    """An image of one to three shapes, with the colour and the kind of each."""
    image, draw = _canvas(rng)
    return image, [_draw_some_shape(draw, rng) for _ in range(rng.randrange(1, 4))]


def build(seed: int) -> tuple[Any, Any]:
    """The model with random weights, and its processor."""
    tokenizer = _tokenizer()
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessorPil(
            do_resize=False, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=_TEMPLATE,
        num_additional_image_tokens=1,
    )
    tower = {
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
    }
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**tower, image_size=IMAGE_SIZE, patch_size=PATCH),
        text_config=transformers.LlamaConfig(
            **tower,
            vocab_size=len(tokenizer),
            max_position_embeddings=2 * _TOKENS,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=_TOKENS,
    )
    torch.manual_seed(seed)
    return transformers.LlavaForConditionalGeneration(config), processor


def pretrain(folder: Path, *, steps: int, batch_size: int = 64, learning_rate: float = 2e-3, seed: int = 0) -> float:
    """Trains the small model to name colours and shapes and to read user ids; writes it to the new `folder`.

    Returns the share of digits that it reads right in images and ids that it never saw.

    Raises:
        MemorizationError: the folder is there already.
    """
    if folder.exists():
        raise MemorizationError(f"{folder}: exists already; it is not overwritten")
    model, processor = build(seed)
    rng = random.Random(f"pretraining {seed}")
    # Ids of another seed than any record of an experiment.
    texts = _Texts(generate(min(_OVERLAYS, steps * batch_size), seed=10_000 + seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, max(steps, 2), pct_start=0.1)
    model.train()
    bar = tqdm(range(steps), desc="pretraining", unit="step", disable=None)
    for _ in bar:
        loss = model(**_batch(processor, [_task(rng, texts) for _ in range(batch_size)]), use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    accuracy = _reading_accuracy(model.eval(), processor, _Texts(generate(200, seed=20_000 + seed)), rng)
    partial = folder.with_name(folder.name + ".partial")
    with quiet():
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
    partial.rename(folder)
    return accuracy


class _Texts:
    """User ids drawn once, as layers to lay over any image: to draw each anew would take longer than training."""

    def __init__(self, records: Sequence[PrivateRecord]) -> None:
        self.ids = [record.user_id for record in records]
        black = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE))
        drawn = [draw_text(black, record.text(FIELDS), STYLE, seed="") for record in records]
        self._pixels = np.stack([np.asarray(painted) for painted, _ in drawn])
        self._alpha = np.stack([np.asarray(mask, dtype=np.float32)[..., None] / 255 for _, mask in drawn])

    def over(self, pixels: Pixels, number: int) -> Pixels:
        """The image with the text of that number on it."""
        mixed: Pixels = (pixels * (1 - self._alpha[number]) + self._pixels[number]).clip(0, 255).astype(np.uint8)
        return mixed


def _task(rng: random.Random, texts: _Texts) -> tuple[Pixels, str, str]:
    """An image, a question and its answer; mostly reading, which is the hardest to learn."""
    image, shapes = draw_scene(rng)
    pixels = np.array(image)
    number = None
    if rng.random() >= _PLAIN:
        number = rng.randrange(len(texts.ids))
        pixels = texts.over(pixels, number)
    question = rng.choices((READ, WHICH_COLOUR, WHICH_SHAPE), (0.6, 0.2, 0.2))[0]
    if question == READ:
        return pixels, question, NOTHING if number is None else texts.ids[number]
    colour, shape = rng.choice(shapes)
    return pixels, question, colour if question == WHICH_COLOUR else shape


def _batch(processor: Any, tasks: Sequence[tuple[Pixels, str, str]]) -> dict[str, torch.Tensor]:
    """A batch to train on. The image is laid out as the processor does it, without its cost for each image."""
    tokenizer = processor.tokenizer
    prompts = [tokenizer(f"{'<image> ' * _TOKENS}{question} :")["input_ids"] for _, question, _ in tasks]
    answers = [
        tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for *_, answer in tasks
    ]
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    length = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows])
    labels = torch.full_like(ids, -100)
    for place, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        labels[place, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    pixels = torch.from_numpy(np.stack([each for each, *_ in tasks])).permute(0, 3, 1, 2)
    return {
        "input_ids": ids,
        "attention_mask": (ids != tokenizer.pad_token_id).long(),
        "pixel_values": pixels.float() / 127.5 - 1,
        "labels": labels,
    }


@torch.inference_mode()
def _reading_accuracy(model: Any, processor: Any, texts: _Texts, rng: random.Random) -> float:
    tasks = [
        (texts.over(np.array(draw_scene(rng)[0]), number), READ, user_id) for number, user_id in enumerate(texts.ids)
    ]
    batch = _batch(processor, tasks)
    labels = batch.pop("labels")[:, 1:]
    found = model(**batch).logits[:, :-1].argmax(-1)
    digits = (labels != -100) & (labels != processor.tokenizer.eos_token_id)
    return float((found == labels)[digits].float().mean())


def _tokenizer() -> Any:
    """Words, and each digit for itself."""
    texts = (WHICH_COLOUR, WHICH_SHAPE, READ, ":", NOTHING, *COLOURS, *SHAPES, "0 1 2 3 4 5 6 7 8 9")
    special = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
    words = list(dict.fromkeys([*special, *(word for text in texts for word in text.split())]))
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        model_max_length=2 * _TOKENS,
    )


def _canvas(rng: random.Random) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), tuple(rng.randrange(170, 256) for _ in range(3)))
    return image, ImageDraw.Draw(image)


def _draw_some_shape(draw: ImageDraw.ImageDraw, rng: random.Random) -> tuple[str, str]:
    """Draws a shape; its colour and its kind."""
    colour, shape = rng.choice(tuple(COLOURS)), rng.choice(SHAPES)
    radius = rng.randrange(6, 11)
    x, y = rng.randrange(radius, IMAGE_SIZE - radius), rng.randrange(radius, _TEXT_TOP - radius)
    _draw_shape(draw, shape, x, y, radius, COLOURS[colour])
    return colour, shape


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, x: int, y: int, radius: int, colour: tuple[int, int, int]
) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "square":
        draw.rectangle(box, fill=colour)
    elif shape == "triangle":
        draw.polygon([(x, box[1]), (box[0], box[3]), (box[2], box[3])], fill=colour)
    else:
        draw.line((box[0], y, box[2], y), fill=colour, width=5)
        draw.line((x, box[1], x, box[3]), fill=colour, width=5)
