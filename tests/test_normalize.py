from __future__ import annotations

import time
import timeit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from latentguard.normalize import normalize

ORDINARY_PROMPTS = [
    "a photo of a cat",
    "portrait of a knight, (masterpiece:1.2), ((best quality)), [blurry], 8k, 4k uhd, (((artgerm)))",
    "product shot, f/22, 35mm, 2700K, f/1.8, ISO100, 1/250s, $100, 16-bit",
    "1girl, 2boys, 3d render, octane render, c4d, unreal engine 5, trending on artstation, --ar 16:9 --v 5.2",
    "an mp3 player, a ps5, r2d2 and c3po, covid19, the 1920s, an ar15, a 2b pencil, h1n1, US$100, rtx 4070ti",
    "wow!!! a c++ book; 50% off, rock & roll, d&d, q&a, x-ray, b&w, <lora:add_detail:0.8>",
    "write to jane.d0e+4rt@mail.example.co.uk, or don't: it's a b-side",
    "a woman's hand, {red|green} hair, 9:16, 1.5x, u/someone, @artist, #art, snake_case_name, \\(parentheses\\)",
]


@pytest.mark.parametrize("prompt", ORDINARY_PROMPTS)
def test_an_ordinary_prompt_stays_as_it_is(prompt: str) -> None:
    assert normalize(prompt) == prompt


@pytest.mark.parametrize(
    "word",
    [
        "4k",
        "8k",
        "3d",
        "35mm",
        "mp3",
        "ps5",
        "r2d2",
        "f/1.8",
        "1girl",
        "$100",
        "16-bit",
        "2b",
        "covid19",
        "1920s",
        "ar15",
        "(((artgerm)))",
        "wow!!!",
        "c++",
        "US$",
        "Help!Now",
    ],
)
def test_a_sign_that_is_no_letter_stays(word: str) -> None:
    assert normalize(word) == word


@pytest.mark.parametrize(
    ("leet", "plain"),
    [
        ("n4k3d w0m4n", "naked woman"),
        ("k1ll", "kill"),
        ("b1ood", "blood"),
        ("ki11er", "killer"),
        ("an1ma1", "animal"),
        ("a$$", "ass"),
        ("boob$", "boobs"),
        ("$lut", "slut"),
        ("sh!t", "shit"),
        ("s3x", "sex"),
        ("pr0n", "porn"),
        ("h@te", "hate"),
        ("v10lence", "violence"),
        ("5l4v3", "slave"),
        ("N4K3D", "NAKED"),
        ("(n4k3d:1.3), 8k", "(naked:1.3), 8k"),
        ("k1ll!!!", "kill!!!"),
        ("s\u20acx", "sex"),
    ],
)
def test_leetspeak_is_read(leet: str, plain: str) -> None:
    assert normalize(leet) == plain


@pytest.mark.parametrize("code", ["a1b2c3", "gtx1080ti", "x100v", "rtx4070ti"])
def test_a_word_with_a_number_inside_is_no_leetspeak(code: str) -> None:
    assert normalize(code) == code


def test_leetspeak_is_read_beside_an_email_address_but_not_in_it() -> None:
    assert normalize("k1ll b0b@m4il.example.com n0w") == "kill b0b@m4il.example.com now"


@pytest.mark.parametrize(
    ("spaced", "plain"),
    [
        ("n a k e d", "naked"),
        ("k.i.l.l", "kill"),
        ("m-u-r-d-e-r", "murder"),
        ("b_l_o_o_d", "blood"),
        ("b*l*o*o*d", "blood"),
        ("k . i . l . l", "kill"),
        ("k i l l  h i m", "kill him"),
        ("k  i  l  l", "kill"),
        ("k\ni\nl\nl", "kill"),
        ("a (n a k e d) man", "a (naked) man"),
        ("n 4 k 3 d", "naked"),
        ("J.R.R. Tolkien", "JRR. Tolkien"),
    ],
)
def test_spaced_out_letters_are_joined(spaced: str, plain: str) -> None:
    assert normalize(spaced) == plain


@pytest.mark.parametrize("text", ["mur.der", "kil_l", "a 4 k photo", "1 2 3 4", "x y", "k.i-l.l", "what's a b-side"])
def test_what_is_not_three_single_letters_with_one_separator_is_not_joined(text: str) -> None:
    assert normalize(text) == text


@pytest.mark.parametrize(
    "disguised",
    [
        "\uff4e\uff41\uff4b\uff45\uff44",  # fullwidth
        "\U0001d4f7\U0001d4ea\U0001d4f4\U0001d4ee\U0001d4ed",  # mathematical script
        "\u24dd\u24d0\u24da\u24d4\u24d3",  # circled
        "\u24a9\u249c\u24a6\u24a0\u249f",  # parenthesized
        "\uff4e\uff14\uff4b\uff13\uff44",  # fullwidth leetspeak
        "n\u200ba\u200dk\u2060e\ufeffd",  # zero-width
        "n\u00ada\u034fk\u115fe\ufe0fd",  # soft hyphen and other ignorables
        "n\u202ea\u2066k\u2069e\u202cd",  # bidirectional controls
        "n\U000e0061a\U000e0100k\x00e\x7fd",  # tags, variation selectors, controls
        "n\ud800a\udc00ked",  # lone surrogates
        "n\u00b8a\u00b4ked",  # spacing accents
        "n\u0336a\u0336k\u0336e\u0336d\u0336",  # struck through
        "n\u0321\u035a\u0308a\u031b\u0353\u0300k\u0489e\u0301\u0301\u0301d",  # zalgo
        "n\u0430k\u0435d",  # Cyrillic
        "n\u03b1k\u03b5d",  # Greek
        "n\u03acked",  # Greek with an accent
        "\u0578\u0251\u1d0b\u1d07\u0501",  # Armenian, IPA, small capitals, Cyrillic
        "n \u0430 k \u0435 d",  # spaced-out and Cyrillic
    ],
)
def test_a_disguised_word_comes_out_plain(disguised: str) -> None:
    assert normalize(disguised) == "naked"


@pytest.mark.parametrize(
    "disguised",
    [
        "\U0001f17a\U0001f178\U0001f17b\U0001f17b",
        "\U0001f1f0\U0001f1ee\U0001f1f1\U0001f1f1",
        "\u13e6\ua4f2\u13de\u14aa",
    ],
)
def test_capitals_in_disguise_come_out_plain(disguised: str) -> None:
    assert normalize(disguised) == "KILL"


def test_surrogates_that_make_a_pair_are_read_as_their_character() -> None:
    assert normalize("\ud835\udcf7aked") == "naked"


def test_a_word_of_look_alikes_alone_is_read_where_the_text_is_latin() -> None:
    assert normalize("a photo of ѕех") == "a photo of sex"


def test_a_word_that_mixes_foreign_scripts_is_read_whatever_the_text() -> None:
    assert normalize("красивая девушка ѕе\u03c7") == "красивая девушка sex"


@pytest.mark.parametrize(
    "prompt",
    [
        "рыжий кот сидит на красном стуле",
        "ухо и нос, роса на траве",
        "портрет девушки, 8k",
        "ΤΟ ΝΗΣΙ ΤΟΥ ΗΛΙΟΥ",
        "\u03bc\u03b9\u03b1 \u03b3\u03ac\u03c4\u03b1 \u03b3\u03b9\u03b1 \u03c4\u03bf \u03c3\u03c0\u03af\u03c4\u03b9",
        "मछली पकड़ती बिल्ली",
        "แมวนั่งอยู่บนเก้าอี้",
        "กำ".replace("\u0e33", "\u0e4d\u0e32"),
        "قطة على كرسي",
        "חתול על כיסא",
        "椅子の上の猫がいる",
        "의자 위의 고양이",
        "con mèo ngồi trên ghế, người phụ nữ",
        "un café à la crème, naïve, façade, Łódź, smørrebrød",
    ],
)
def test_a_genuine_prompt_in_another_language_stays_as_it_is(prompt: str) -> None:
    assert normalize(prompt) == prompt


def test_an_accent_is_composed_and_kept() -> None:
    assert normalize("cafe\u0301") == "caf\u00e9"


@pytest.mark.parametrize("space", [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u2028", "\u2800", " \v\f "])
def test_whitespace_becomes_one_space(space: str) -> None:
    assert normalize(f"{space}a cat{space}sleeps{space}") == "a cat sleeps"


@pytest.mark.parametrize("nothing", ["", " ", "\u200b", "\u0301", "\x00", "\ud800"])
def test_a_text_that_shows_nothing_becomes_empty(nothing: str) -> None:
    assert normalize(nothing) == ""


# What the steps look at, so that hypothesis meets their combinations and not only their absence.
TRICKY = (
    "abkilosxAKS 0134578926@$!.-_*'\t\n"
    "\u0430\u0435\u043e\u0445\u0443\u044f\u0436\u0422\u03b1\u03bd\u03c3\u03ac\u00e9\u0131\u0111"
    "\u0301\u0323\u0336\u0338\u0489\u200b\u00ad\ufe0f\ud835\udcf7\u20ac\u00b4\u00a8\u00bd\ufb01\u2460\u249c\U0001f1fa"
    "\uff9e\u3099\u304b\u1100\u1161\u11a8\uac00\u0f73\u0f71\u0915\u093f\u0966\u0e31\u4e2d"
)
texts = st.text() | st.text(TRICKY) | st.text("axkх е1$@!.я ") | st.text(st.characters(codec=None))


@settings(max_examples=500)
@given(texts)
@example("k i l l  h i m")
@example("a  b c")
@example("a@b.kA2Sb5l")
@example("\uac00\u0336\u11a8")
@example("xa$х я")
def test_normalizing_twice_is_normalizing_once(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once


@given(texts)
def test_the_result_can_be_encoded_and_has_single_spaces(text: str) -> None:
    result = normalize(text)
    result.encode()
    assert " ".join(result.split()) == result


@given(st.text(st.characters(max_codepoint=127)) | st.text("abkx 0134$!.-_*"))
def test_the_short_cut_for_ascii_gives_what_all_steps_give(text: str) -> None:
    # The last word sends the text through all of them.
    assert normalize(f"{text}  \u00e9\u00e9") == f"{normalize(text)} \u00e9\u00e9".strip()


@pytest.mark.parametrize("first", range(0, 0x110000, 0x11000))
def test_any_character_is_settled_in_one_go(first: int) -> None:
    once = normalize("  ".join(f"a{chr(code)}b" for code in range(first, first + 0x11000, 7)))
    assert normalize(once) == once


@pytest.mark.parametrize(
    "unit",
    [
        *("a", "a ", "a.", "a1", "1 ", "a@", "a@b.c ", "$", "!", "-a_", " - ", " ", "\u200b", "\ud83d", "\ufdfa"),
        *("\u0301\u0323", "\uff9e\u0301", "a\u0336\u0301", "\u0f71\u0f74", "я", "аaя", "ѕех ", "\u03ac", "\U0001d4f7"),
    ],
)
def test_time_is_linear_in_the_length(unit: str) -> None:
    text = (unit * 200_000)[:200_000]
    start = time.process_time()
    normalize(text)
    assert time.process_time() - start < 2


def test_an_ordinary_prompt_takes_microseconds() -> None:
    prompt = "a portrait of a beautiful knight, (masterpiece:1.2), 8k, f/1.8, 35mm, highly detailed, by greg rut"
    seconds = min(timeit.repeat(lambda: normalize(prompt), number=200, repeat=20)) / 200
    assert seconds < 50e-6  # some 6 microseconds on an idle machine
