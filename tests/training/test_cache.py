"""The token state cache: what goes in comes out, and no accident makes it unusable.

Run as a script, this file fills a cache slowly, so that a test can kill it half-way:
`python test_cache.py FOLDER COUNT SECONDS_PER_BATCH`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from latentguard.encoders.base import TokenStates, Window, mean_pool, pad_windows, split_windows
from latentguard.errors import DataError, EncoderError
from latentguard.training.cache import TokenStateCache

REPOSITORY = Path(__file__).resolve().parents[2]


class TinyEncoder:
    """A real encoder in small: words hashed into an embedding, one dense layer, mean pooling. The same in every run."""

    pooling = "mean"
    device = torch.device("cpu")
    depth = 1

    def __init__(
        self,
        name: str = "tiny",
        width: int = 8,
        window: int = 12,
        scale: float = 1.0,
        pause: float = 0.0,
        layers: tuple[int, ...] = (1,),
    ):
        generator = torch.Generator().manual_seed(7)
        self.layers = layers
        self.name, self.width, self.window, self.pause = name, width, window, pause
        self.encoded = 0
        self._table = torch.randn(101, width, generator=generator) * scale
        self._dense = nn.Linear(width, width, bias=False).requires_grad_(False)
        self._dense.weight.copy_(torch.randn(width, width, generator=generator))

    def windows(self, text: str) -> list[Window]:
        ids = [3 + zlib.crc32(word.encode()) % 98 for word in text.split()]
        offsets = [(0, 1)] * len(ids)
        return split_windows(ids, offsets, window=self.window, prefix=[1], suffix=[2])

    def encode_windows(self, windows: Sequence[Window]) -> TokenStates:
        time.sleep(self.pause)
        self.encoded += len(windows)
        ids, mask = pad_windows(windows, 0)
        # One text at a time: no result depends on what else is in the batch.
        hidden = torch.stack([torch.stack([self._dense(self._table[token]) for token in row]) for row in ids])
        return TokenStates(hidden, mask, mean_pool(hidden, mask))

    def encode(self, texts: Sequence[str]) -> TokenStates:
        return self.encode_windows([self.windows(text)[0] for text in texts])


def sentences(count: int) -> list[str]:
    return [" ".join([f"text{number}", *["and"] * (number % 9)]) for number in range(count)]


def states_of(cache: TokenStateCache, texts: Sequence[str]) -> list[torch.Tensor]:
    """What the cache holds of each text, without padding."""
    states, mask = cache.gather(cache.positions(texts))
    return [row[real] for row, real in zip(states, mask, strict=True)]


def same(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def test_gather_gives_the_pooled_state_then_the_tokens(tmp_path: Path) -> None:
    encoder, text = TinyEncoder(), "a red fox jumps"
    cache = TokenStateCache(tmp_path, encoder)
    cache.fill([text])
    states, mask = cache.gather(cache.positions([text]))
    expected = encoder.encode([text])
    assert states.shape == (1, 1 + 6, 8)
    assert mask.all()
    torch.testing.assert_close(states[0, 0], expected.pooled[0], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(states[0, 1:], expected.hidden[0], atol=2e-3, rtol=2e-3)


def test_gather_pads_with_zeros_to_the_longest_entry(tmp_path: Path) -> None:
    cache = TokenStateCache(tmp_path, TinyEncoder())
    cache.fill(["one", "one two three"])
    states, mask = cache.gather(cache.positions(["one", "one two three"]))
    assert mask.sum(dim=1).tolist() == [4, 6]
    assert states.shape == (2, 6, 8)
    assert not states[~mask].any()


def test_gather_follows_the_order_asked_for_and_repeats(tmp_path: Path) -> None:
    texts = sentences(20)
    cache = TokenStateCache(tmp_path, TinyEncoder())
    cache.fill(texts, batch_size=3)
    asked = [texts[5], texts[0], texts[5]]
    alone = [states_of(cache, [text])[0] for text in asked]
    assert same(states_of(cache, asked), alone)


def test_gather_of_half_precision_is_what_the_file_holds(tmp_path: Path) -> None:
    cache = TokenStateCache(tmp_path, TinyEncoder())
    cache.fill(["one two"])
    states, _ = cache.gather([0], dtype=torch.float16)
    assert states.dtype == torch.float16
    assert states.numpy().tobytes() == (tmp_path / "states.f16").read_bytes()


@pytest.mark.parametrize("number", [-1, 1])
def test_gather_refuses_a_number_that_is_no_entry(tmp_path: Path, number: int) -> None:
    cache = TokenStateCache(tmp_path, TinyEncoder())
    cache.fill(["one"])
    with pytest.raises(IndexError, match="0 to 0"):
        cache.gather([number])


def test_a_text_is_encoded_once(tmp_path: Path) -> None:
    encoder = TinyEncoder()
    cache = TokenStateCache(tmp_path, encoder)
    first = cache.fill(["one", "two", "one"])
    again = cache.fill(["two", "three"])
    assert (first.texts, first.encoded) == (2, 2)
    assert (again.texts, again.encoded) == (2, 1)
    assert encoder.encoded == 3


def test_entries_keep_their_numbers_as_the_cache_grows(tmp_path: Path) -> None:
    cache = TokenStateCache(tmp_path, TinyEncoder())
    cache.fill(sentences(5))
    before = cache.positions(sentences(5)).tolist()
    cache.fill(sentences(30))
    assert cache.positions(sentences(5)).tolist() == before


def test_a_cache_outlives_its_process(tmp_path: Path) -> None:
    texts, encoder = sentences(10), TinyEncoder()
    first = TokenStateCache(tmp_path, TinyEncoder())
    first.fill(texts)
    second = TokenStateCache(tmp_path, encoder)
    assert len(second) == 10
    assert same(states_of(second, texts), states_of(first, texts))
    assert encoder.encoded == 0


def test_a_text_longer_than_the_window_is_counted_and_keeps_its_first_window(tmp_path: Path) -> None:
    encoder = TinyEncoder(window=6)
    long = "a b c d e f g h"
    cache = TokenStateCache(tmp_path, encoder)
    report = cache.fill([long, "a b"])
    assert report.shortened == 1
    assert same(states_of(cache, [long]), [torch.cat([*_first_window(encoder, long)]).half().float()])


def _first_window(encoder: TinyEncoder, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    states = encoder.encode([text])
    return states.pooled, states.hidden[0]


def test_positions_of_a_missing_text_is_an_error_that_does_not_show_it(tmp_path: Path) -> None:
    cache = TokenStateCache(tmp_path, TinyEncoder())
    with pytest.raises(DataError, match="1 of 1 texts") as error:
        cache.positions(["secret words"])
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "other",
    [TinyEncoder(name="another"), TinyEncoder(width=4), TinyEncoder(window=9), TinyEncoder(layers=(0,))],
)
def test_the_cache_of_another_encoder_is_refused(tmp_path: Path, other: TinyEncoder) -> None:
    TokenStateCache(tmp_path, TinyEncoder()).fill(["one"])
    with pytest.raises(EncoderError, match="another encoder"):
        TokenStateCache(tmp_path, other)


@pytest.mark.parametrize("meta", ["{", "[]", '{"format": 99}'])
def test_a_damaged_description_is_refused(tmp_path: Path, meta: str) -> None:
    TokenStateCache(tmp_path, TinyEncoder()).fill(["one"])
    (tmp_path / "meta.json").write_text(meta)
    with pytest.raises(DataError, match=r"meta\.json"):
        TokenStateCache(tmp_path, TinyEncoder())


def test_states_without_a_description_are_refused(tmp_path: Path) -> None:
    TokenStateCache(tmp_path, TinyEncoder()).fill(["one"])
    (tmp_path / "meta.json").unlink()
    with pytest.raises(DataError, match="missing"):
        TokenStateCache(tmp_path, TinyEncoder())


def test_a_state_that_float16_cannot_hold_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    cache = TokenStateCache(tmp_path, TinyEncoder(scale=1e6))
    with pytest.raises(EncoderError, match="float16"):
        cache.fill(["one"])
    assert len(cache) == 0


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(min_value=0, max_value=400), index_cut=st.integers(min_value=0, max_value=40))
def test_whatever_the_end_of_the_files_lost_filling_again_restores_it(
    tmp_path_factory: pytest.TempPathFactory, cut: int, index_cut: int
) -> None:
    folder, texts = tmp_path_factory.mktemp("cache"), sentences(12)
    cache = TokenStateCache(folder, TinyEncoder())
    cache.fill(texts, batch_size=4)
    whole = states_of(cache, texts)
    for name, lost in (("states.f16", cut), ("index.bin", index_cut)):
        os.truncate(folder / name, max(0, (folder / name).stat().st_size - lost))
    resumed = TokenStateCache(folder, TinyEncoder())
    resumed.fill(texts, batch_size=4)
    assert same(states_of(resumed, texts), whole)


def test_opening_cuts_off_what_no_index_record_points_at(tmp_path: Path) -> None:
    cache = TokenStateCache(tmp_path, TinyEncoder())
    cache.fill(["one"])
    sizes = [(tmp_path / name).stat().st_size for name in ("states.f16", "index.bin")]
    for name in ("states.f16", "index.bin"):
        with (tmp_path / name).open("ab") as file:
            file.write(b"half a record")
    assert len(TokenStateCache(tmp_path, TinyEncoder())) == 1
    assert [(tmp_path / name).stat().st_size for name in ("states.f16", "index.bin")] == sizes


def test_an_interrupted_fill_keeps_what_was_finished(tmp_path: Path) -> None:
    class Interrupted(TinyEncoder):
        def encode_windows(self, windows: Sequence[Window]) -> TokenStates:
            if self.encoded >= 8:
                raise KeyboardInterrupt
            return super().encode_windows(windows)

    cache = TokenStateCache(tmp_path, Interrupted())
    with pytest.raises(KeyboardInterrupt):
        cache.fill(sentences(20), batch_size=4)
    assert len(cache) == 8
    cache.gather(range(8))


def _start_filling(folder: Path, count: int, pause: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, str(folder), str(count), str(pause)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, stderr=subprocess.PIPE)


def _wait_for_entries(process: subprocess.Popen[bytes], folder: Path, entries: int) -> None:
    index = folder / "index.bin"
    until = time.monotonic() + 60
    while not index.exists() or index.stat().st_size < entries * 28:
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_fill_is_resumed_to_the_same_states(tmp_path: Path) -> None:
    killed, whole, texts = tmp_path / "killed", tmp_path / "whole", sentences(200)
    process = _start_filling(killed, 200, 0.02)
    _wait_for_entries(process, killed, 30)
    process.kill()
    process.communicate()
    encoder = TinyEncoder()
    resumed, uninterrupted = TokenStateCache(killed, encoder), TokenStateCache(whole, TinyEncoder())
    assert 0 < len(resumed) < 200
    already = len(resumed)
    resumed.fill(texts, batch_size=4)
    uninterrupted.fill(texts, batch_size=4)
    assert encoder.encoded == 200 - already
    assert same(states_of(resumed, texts), states_of(uninterrupted, texts))


def test_a_cache_can_be_read_while_another_process_fills_it(tmp_path: Path) -> None:
    process = _start_filling(tmp_path, 200, 0.02)
    _wait_for_entries(process, tmp_path, 12)
    reader = TokenStateCache(tmp_path, TinyEncoder())
    assert 0 < len(reader) < 200
    reader.gather(range(len(reader)))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    assert len(TokenStateCache(tmp_path, TinyEncoder())) == 200


def test_two_processes_that_fill_one_cache_share_the_work(tmp_path: Path) -> None:
    process = _start_filling(tmp_path, 60, 0.02)
    _wait_for_entries(process, tmp_path, 4)
    encoder = TinyEncoder()
    cache = TokenStateCache(tmp_path, encoder)
    cache.fill(sentences(60))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    assert encoder.encoded == 0
    assert len(cache) == 60


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_a_disk_that_fills_is_a_data_error_and_the_cache_stays_usable(tmp_path: Path) -> None:
    script = f"""
import resource, runpy, signal
module = runpy.run_path({__file__!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
cache = module["TokenStateCache"]({str(tmp_path)!r}, module["TinyEncoder"]())
try:
    cache.fill(module["sentences"](100), batch_size=4)
except module["DataError"] as error:
    print(len(cache), error)
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    kept, message = done.stdout.strip().split(" ", 1)
    assert "can't be written" in message
    cache = TokenStateCache(tmp_path, TinyEncoder())
    assert 0 < len(cache) == int(kept)
    cache.fill(sentences(100), batch_size=4)
    assert len(cache) == 100


def test_nothing_is_shown_where_no_terminal_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    TokenStateCache(tmp_path, TinyEncoder()).fill(sentences(3))
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "")


if __name__ == "__main__":
    TokenStateCache(sys.argv[1], TinyEncoder(pause=float(sys.argv[3]))).fill(sentences(int(sys.argv[2])), batch_size=4)
