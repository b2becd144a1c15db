"""Windows, padding and pooling, which every encoder shares."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentguard.encoders.base import OVERLAP, Window, last_state, mean_pool, pad_windows, split_windows

START, END = 901, 902


def split(tokens: int, window: int) -> list[Window]:
    return split_windows(
        range(tokens), [(i, i + 1) for i in range(tokens)], window=window, prefix=[START], suffix=[END]
    )


@given(tokens=st.integers(0, 300), window=st.integers(3, 40))
def test_every_token_is_in_a_window_in_order(tokens: int, window: int) -> None:
    windows = split(tokens, window)
    assert sorted({token for cut in windows for token in cut.ids[1:-1]}) == list(range(tokens))
    assert all(list(cut.ids[1:-1]) == sorted(cut.ids[1:-1]) for cut in windows)


@given(tokens=st.integers(1, 300), window=st.integers(6, 40))
def test_neighbours_share_a_quarter_of_their_content(tokens: int, window: int) -> None:
    windows = split(tokens, window)
    least = int((window - 2) * OVERLAP)
    assert all(len(set(a.ids[1:-1]) & set(b.ids[1:-1])) >= least for a, b in itertools.pairwise(windows))


@given(tokens=st.integers(0, 300), window=st.integers(3, 40))
def test_windows_are_wrapped_in_special_tokens_and_never_too_long(tokens: int, window: int) -> None:
    for cut in split(tokens, window):
        assert (cut.ids[0], cut.ids[-1]) == (START, END)
        assert len(cut.ids) == len(cut.offsets) <= window


def test_offsets_follow_their_tokens_and_special_tokens_have_none() -> None:
    last = split(30, 10)[-1]
    assert last.offsets == ((0, 0), *[(i, i + 1) for i in range(22, 30)], (0, 0))


def test_the_last_window_of_a_long_text_is_full() -> None:
    assert len(split(31, 10)[-1].ids) == 10


def test_an_empty_text_gives_one_window_of_special_tokens() -> None:
    assert split(0, 10) == [Window((START, END), ((0, 0), (0, 0)))]


def test_a_window_without_room_for_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="no room"):
        split(5, 2)


def test_padding_fills_the_right_and_the_mask_leaves_it_out() -> None:
    ids, mask = pad_windows(split(1, 9) + split(3, 9), pad_id=7)
    assert ids.tolist() == [[START, 0, END, 7, 7], [START, 0, 1, 2, END]]
    assert mask.tolist() == [[True, True, True, False, False], [True] * 5]


def test_padding_goes_to_the_length_asked_for() -> None:
    ids, mask = pad_windows(split(1, 9), pad_id=7, length=6)
    assert ids.shape == mask.shape == (1, 6)


def test_a_length_that_would_cut_a_window_is_an_error() -> None:
    with pytest.raises(ValueError, match="doesn't fit"):
        pad_windows(split(3, 9), pad_id=7, length=4)


def test_no_window_is_an_error() -> None:
    with pytest.raises(ValueError, match="no window"):
        pad_windows([], pad_id=0)


def test_the_mean_leaves_padding_out() -> None:
    hidden = torch.tensor([[[1.0], [3.0], [100.0]]])
    assert mean_pool(hidden, torch.tensor([[True, True, False]])).tolist() == [[2.0]]


def test_the_last_state_is_that_before_the_padding() -> None:
    hidden = torch.tensor([[[1.0], [3.0], [100.0]], [[4.0], [5.0], [6.0]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert last_state(hidden, mask).tolist() == [[3.0], [6.0]]
