"""Fast tokenizers made fit for a guard: nothing truncated, nothing forged, nothing hidden in an unknown word."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import FixedLength, PreTokenizer
from tokenizers.pre_tokenizers import Sequence as PreTokenizerSequence

from latentguard.encoders.base import Window, split_windows
from latentguard.errors import EncoderError


class WindowTokenizer:
    """Turns a text into windows of token ids with character offsets.

    prefix, suffix: the special tokens' ids that begin and end each window.

    It owns the tokenizer it is given and changes three things in it:

    * truncation and padding are switched off;
    * the text of a special token inside a prompt ("[SEP]", "<|endoftext|>") is read as plain text, so that a prompt
      can't end itself early;
    * WordPiece, which reads a word beyond its limit (100 characters) as one unknown token, gets such a word in pieces
      of that limit instead. Words within the limit are read as before.
    """

    def __init__(self, tokenizer: Tokenizer, *, window: int) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        if isinstance(tokenizer.model, WordPiece):
            pieces = FixedLength(length=tokenizer.model.max_input_chars_per_word)
            words: list[PreTokenizer] = [] if tokenizer.pre_tokenizer is None else [tokenizer.pre_tokenizer]
            tokenizer.pre_tokenizer = PreTokenizerSequence([*words, pieces])
        self._tokenizer = tokenizer
        self.prefix, self.suffix = _special_tokens(tokenizer)
        self.window = window
        if window <= len(self.prefix) + len(self.suffix):
            raise EncoderError(f"the encoder's window of {window} tokens has no room for text")

    def ends_with(self, token: int | None) -> bool:
        """Whether every window ends with this token."""
        return self.suffix[-1:] == [token]

    def tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The token ids of a text, without special tokens, and for each its span of characters in the text."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def windows(self, text: str) -> list[Window]:
        """The windows of a text of any length; a text without tokens gives one window of special tokens."""
        return self._cut(*self.tokens(text))

    def windows_of_each(self, texts: Sequence[str]) -> list[list[Window]]:
        """As :meth:`windows`, of many texts at once, on all cores unless TOKENIZERS_PARALLELISM says otherwise."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [self._cut(encoding.ids, encoding.offsets) for encoding in encodings]

    def _cut(self, ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> list[Window]:
        return split_windows(ids, offsets, window=self.window, prefix=self.prefix, suffix=self.suffix)


def _special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after a text."""
    encoding = tokenizer.encode("a", add_special_tokens=True)
    real = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
    if not real:
        raise EncoderError("the encoder's tokenizer gives no token for a letter")
    return encoding.ids[: real[0]], encoding.ids[real[-1] + 1 :]
