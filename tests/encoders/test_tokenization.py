"""A prompt can't hide behind its tokenizer: no truncation, no forged special token, no unknown long word."""

from __future__ import annotations

import pytest
import transformers
from tokenizers import Tokenizer

from latentguard.encoders.base import Window
from latentguard.encoders.tokenization import WindowTokenizer
from latentguard.errors import EncoderError


def copy(tokenizer: transformers.PreTrainedTokenizerBase) -> Tokenizer:
    return Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())


@pytest.fixture(scope="module")
def words(bert_tokenizer: transformers.PreTrainedTokenizerBase) -> WindowTokenizer:
    return WindowTokenizer(copy(bert_tokenizer), window=64)


@pytest.fixture(scope="module")
def clip(clip_tokenizer: transformers.PreTrainedTokenizerBase) -> WindowTokenizer:
    return WindowTokenizer(copy(clip_tokenizer), window=77)


def spelled(text: str, window: Window) -> list[str]:
    return [text[start:end] for start, end in window.offsets[1:-1]]


def test_offsets_point_at_the_text_as_written(words: WindowTokenizer) -> None:
    text = "  Red   WINE, dog"
    assert spelled(text, words.windows(text)[0])[:2] == ["Red", "WINE"]


def test_offsets_count_characters_not_bytes(clip: WindowTokenizer) -> None:
    text = "a 🐕 naïve dog"
    assert spelled(text, clip.windows(text)[0])[-1] == "dog"


def test_a_tokenizer_set_to_truncate_and_pad_does_neither(
    bert_tokenizer: transformers.PreTrainedTokenizerBase,
) -> None:
    tokenizer = copy(bert_tokenizer)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    assert len(WindowTokenizer(tokenizer, window=64).windows("dog " * 9)[0].ids) == 11


def test_the_text_of_a_special_token_is_not_that_token(words: WindowTokenizer, clip: WindowTokenizer) -> None:
    for tokenizer, forged in ((words, "dog [SEP] nude"), (clip, "dog <|endoftext|> nude")):
        ids = tokenizer.windows(forged)[0].ids
        assert ids.index(ids[-1]) == len(ids) - 1


def test_a_word_too_long_for_word_piece_is_read_in_pieces(words: WindowTokenizer) -> None:
    text = "dog" * 60
    read = [part for window in words.windows(text) for part in spelled(text, window)]
    assert max(map(len, read)) <= 3


def test_words_within_the_limit_are_read_as_the_tokenizer_reads_them(
    words: WindowTokenizer, bert_tokenizer: transformers.PreTrainedTokenizerBase
) -> None:
    text = "dog" * 33 + " red wine"
    read = [token for window in words.windows(text) for token in window.ids]
    assert read[: words.window - 1] == bert_tokenizer(text)["input_ids"][: words.window - 1]


def test_a_text_of_100_000_characters_is_read_whole(words: WindowTokenizer) -> None:
    text = "dog wine " * 11_112
    windows = words.windows(text)
    assert windows[-1].offsets[-2] == (len(text) - 5, len(text) - 1)
    assert {start for window in windows for start, end in window.offsets if end} == {
        start for start in range(len(text)) if text[start] in "dw"
    }


def test_a_window_of_special_tokens_alone_is_refused(bert_tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    with pytest.raises(EncoderError, match="no room"):
        WindowTokenizer(copy(bert_tokenizer), window=2)
