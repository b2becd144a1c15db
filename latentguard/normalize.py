"""Undoing Unicode and spelling tricks before a prompt is scored.

`normalize` turns what a person would read into plain letters: "n4k3d", "n a k e d", fullwidth, Cyrillic-for-Latin,
zero-width-split and struck-through spellings all come out as "naked". Its result is for scoring only; whoever shows
a prompt shows the original.

Six steps, each one pass over the text:

1. Characters nobody sees are dropped: controls, format and bidi characters, tags, variation selectors, the other
   default-ignorable code points of Unicode's DerivedCoreProperties, lone surrogates, noncharacters.
2. NFKC, which undoes fullwidth forms, mathematical alphanumerics, circled letters and ligatures; a small table does
   the same for the enclosed letters it leaves alone.
3. Combining marks that did not compose are dropped ("é" stays "é", zalgo goes), save those of scripts that need
   them, such as Devanagari or Thai.
4. Look-alikes of Latin letters are mapped by two tables drawn from Unicode TR39's confusables, word by word and only
   where the whole word becomes Latin. The first table holds letters that can't be told apart and serves any word; the
   second, mere resemblances, serves words that hold a Latin letter already. A word without any Latin letter
   stays where its script outweighs Latin in the text, so a Russian or Greek prompt is left as it is.
5. Three or more single letters with the same separator between them are joined; runs of whitespace become one space.
6. Leetspeak is read in words where a sign stands between two letters (and "$" at either end of a word). E-mail
   addresses, names such as "c4d", and words with digits that are no leet signs there ("r2d2") stay.

Plain ASCII text without any of these signs is returned after three regular-expression searches. No step looks back
over what it has passed, so the time is linear in the length; and the steps are made so that normalizing twice gives
what normalizing once gave.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache


def normalize(text: str) -> str:
    """Returns `text` as a reader would take it, in plain letters, on one line, without outer whitespace.

    Idempotent, linear in the length, and defined for every str. Ordinary ASCII prompts change in whitespace only.
    """
    if text.isascii():
        if not _is_suspicious(text):
            return text
        text = text.translate(_ASCII_CONTROLS)
    else:
        text = _fold_lookalikes(_compose(_drop_unseen(text)))
    # Twice: once while wide gaps still tell words of spaced-out letters apart, once for letters with only wide gaps.
    text = _join_spaced_letters(text)
    text = _join_spaced_letters(" ".join(text.split()))
    return _WORD_OR_EMAIL.sub(_read_leet, text) if _LEET_SIGN.search(text) else text


# Character classes, to be put between brackets in the patterns below.
_LATIN = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff"
_LEET = {"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t", "@": "a", "$": "s", "!": "i"} | {
    "\u20ac": "e",  # euro
    "\u212e": "e",  # estimated sign
    "\u00a3": "l",  # pound
    "\u00a5": "y",  # yen
    "\u00a2": "c",  # cent
    "\u00a1": "i",  # inverted exclamation mark
    "\u237a": "a",  # APL alpha
}
_SIGN = "".join(_LEET)
_SYMBOL = "".join(sign for sign in _LEET if not sign.isalnum())

# --- the quick way out for ordinary text

# Each of these begins with one class of characters, which `re` skips to.
_ASCII_LEET = re.compile(r"[013457@$!](?:(?<=[A-Za-z].)[013457@$!]*[A-Za-z]|(?<=[A-Za-z]\$)|(?<=\$)(?=[A-Za-z]))")
# The second and third of three single letters: "a k", "a . k" and "a.k".
_ASCII_SPACED_OUT = re.compile(
    r" (?<![A-Za-z0-9]{2}.)[A-Za-z013457@$!] (?:[!-/:-@\[-`{-~] )?[A-Za-z013457@$!](?![A-Za-z0-9])"
)
_ASCII_SEPARATED = re.compile(r"([!-/:-@\[-`{-~])[A-Za-z013457@$!]\1[A-Za-z013457@$!](?![A-Za-z0-9])")


def _is_suspicious(text: str) -> bool:
    """Whether a step might change this ASCII text. It errs on the side of True."""
    return (
        not text.isprintable()
        or "  " in text
        or text[:1] == " "
        or text[-1:] == " "
        or _ASCII_LEET.search(text) is not None
        or _ASCII_SPACED_OUT.search(text) is not None
        or _ASCII_SEPARATED.search(text) is not None
    )


# --- 1. what nobody sees

_WHITESPACE_CONTROLS = "\t\n\v\f\r\x85"
_ASCII_CONTROLS = {code: None for code in (*range(0x20), 0x7F) if chr(code) not in _WHITESPACE_CONTROLS}
# Default-ignorable code points (DerivedCoreProperties.txt) outside the categories Cf and Cc.
_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
# What NFKC leaves as it is although it stands for something plainer.
_ENCLOSED_LETTERS = {
    0x249C: "a",  # parenthesized small letters, which NFKC would make "(a)"
    0x1F110: "A",  # parenthesized capitals
    0x1F150: "A",  # negative circled
    0x1F170: "A",  # negative squared
    0x1F1E6: "A",  # regional indicators
}
_PLAINER = {chr(first + n): chr(ord(letter) + n) for first, letter in _ENCLOSED_LETTERS.items() for n in range(26)} | {
    "\u2800": " ",  # braille blank
    "\uff9e": "\u3099",  # halfwidth voiced mark: a letter by category, a combining mark after NFKC
    "\uff9f": "\u309a",
}


def _is_unseen(char: str) -> bool:
    category = unicodedata.category(char)
    if category == "Cc":
        return char not in _WHITESPACE_CONTROLS
    if category == "Cn" and (ord(char) & 0xFFFE == 0xFFFE or "\ufdd0" <= char <= "\ufdef"):
        return True  # a noncharacter
    if category == "Cf" or _IGNORABLE.match(char) is not None:
        return True
    # A spacing accent: NFKC makes it a space and a mark, which would split the word it stands in.
    compatible = unicodedata.decomposition(char).split()
    return len(compatible) > 2 and compatible[0].startswith("<") and compatible[1] == "0020"


def _drop_unseen(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # surrogates: pairs are the character they stand for, lone ones are nothing
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    odd = {ord(char): None if _is_unseen(char) else _PLAINER.get(char, char) for char in _unusual(text)}
    return text.translate(odd) if any(chr(code) != to for code, to in odd.items()) else text


def _unusual(text: str) -> set[str]:
    """The characters of a text but for printable ASCII, which most steps need not look at."""
    return {char for char in set(text) if not " " <= char <= "~"}


# --- 2 and 3. compatibility forms and combining marks

# As in the Stream-Safe Text Format of UAX #15: sorting marks takes time quadratic in the length of their run.
_MOST_MARKS = 30
# Marks of no script in particular; those a living language uses compose with their letter.
_COMMON_MARK = re.compile("[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]")
_SCRIPTS_WITHOUT_MARKS = {"LATIN", "GREEK", "CYRILLIC", "ARMENIAN"}


def _compose(text: str) -> str:
    if not any(map(_is_mark, _unusual(text))):
        text = unicodedata.normalize("NFKC", text)
        if not any(map(_is_mark, _unusual(text))):
            return text
    text = unicodedata.normalize("NFKC", _limit_marks(text))
    # Again, because letters that a dropped mark kept apart may now compose.
    return unicodedata.normalize("NFKC", _drop_foreign_marks(text))


def _is_mark(char: str) -> bool:
    return unicodedata.category(char)[0] == "M"


def _limit_marks(text: str) -> str:
    marks = set(filter(_is_mark, _unusual(text)))
    kept, run = [], 0
    for char in text:
        run = run + 1 if char in marks else 0
        if run <= _MOST_MARKS:
            kept.append(char)
    return "".join(kept)


def _drop_foreign_marks(text: str) -> str:
    """Drops marks that belong to no script or stand on a letter of a script that has none of its own.

    Two or more such marks on one letter are zalgo, so the accent that did compose is dropped as well.
    """
    characters = _unusual(text)
    marks = set(filter(_is_mark, characters))
    enclosing_or_common = {m for m in marks if _COMMON_MARK.match(m) or unicodedata.category(m) == "Me"}
    letters_with_marks = {char for char in characters - marks if _takes_marks(char)}
    kept: list[str] = []
    run = dropped = 0
    takes_marks = False
    for char in text:
        if char not in marks:
            takes_marks, run, dropped = char in letters_with_marks, 0, 0
            kept.append(char)
        elif takes_marks and char not in enclosing_or_common:
            run += 1
            if run <= _MOST_MARKS:
                kept.append(char)
        else:
            dropped += 1
            if dropped == 2 and kept and not takes_marks:
                kept[-1] = unicodedata.normalize("NFD", kept[-1])[0]
    return "".join(kept)


def _takes_marks(char: str) -> bool:
    return (
        char.isalpha()
        and _script(char) not in _SCRIPTS_WITHOUT_MARKS
        and char not in _LOOKALIKES
        and char not in _RESEMBLANCES
    )


@lru_cache(maxsize=4096)
def _script(char: str) -> str:
    """The first word of the character's name, which is its script where it is a letter."""
    return unicodedata.name(char, "").partition(" ")[0]


# --- 4. look-alikes


def _table(letters: Mapping[str, str]) -> dict[str, str]:
    return {lookalike: letter for letter, lookalikes in letters.items() for lookalike in lookalikes}


# Unicode TR39 (confusables.txt), the letters whose prototype is a Latin one, with Latin small capitals and the
# syllabics of "fancy text" generators. Escapes, since the characters themselves can't be told from the keys.
_LOOKALIKES = _table(
    {
        "a": "\u0430\u03b1\u0251\u1d00",
        "b": "\u0299\u13cf\u0185\u1472",
        "c": "\u0441\u1d04\u2ca5\uabaf",
        "d": "\u0501\u1d05\ua4d2\u146f",
        "e": "\u0435\u1d07\uab32",
        "f": "\ua730\uab35\ua799",
        "g": "\u0261\u0262\u0581",
        "h": "\u04bb\u029c\u0570\u13c2",
        "i": "\u0456\u03b9\u0131\u0269\u026a\ua647\uab75",
        "j": "\u0458\u03f3\u1d0a",
        "k": "\u1d0b",
        "l": "\u04cf\u029f\u01c0",
        "m": "\u1d0d",
        "n": "\u0274\u0578",
        "o": "\u043e\u03bf\u1d0f\u0585\u2c9f",
        "p": "\u0440\u03c1\u1d18\u2ca3",
        "q": "\u051b",
        "r": "\u0280\uab47\uab48\uab81",
        "s": "\u0455\ua731\uabaa",
        "t": "\u1d1b",
        "u": "\u03c5\u1d1c\u057d\uab4e",
        "v": "\u03bd\u0475\u1d20\uaba9",
        "w": "\u051d\u0461\u1d21\uab83",
        "x": "\u0445",
        "y": "\u0443\u04af\u03b3\u028f\uab5a",
        "z": "\u1d22\uab93",
        "A": "\u0410\u0391\u13aa\ua4ee\u15c5\u15e9",
        "B": "\u0412\u0392\u13f4\ua4d0\u15f7",
        "C": "\u0421\u13df\ua4da\u2ca4\u1455",
        "D": "\u13a0\ua4d3\u15de\u15ea",
        "E": "\u0415\u0395\u13ac\ua4f0\u2d39",
        "F": "\u03dc\ua4dd\u15b4\ua798",
        "G": "\u050c\u13c0\u13f3\ua4d6",
        "H": "\u041d\u0397\u13bb\ua4e7\u2c8e\u157c",
        "I": "\u0406\u04c0\u0399\ua4f2\u2c92",
        "J": "\u0408\u037f\u13ab\ua4d9\u148d",
        "K": "\u041a\u039a\u13e6\ua4d7\u2c94",
        "L": "\u13de\ua4e1\u2cd0\u14aa",
        "M": "\u041c\u039c\u13b7\ua4df\u2c98\u15f0",
        "N": "\u039d\ua4e0\u2c9a\u144e",
        "O": "\u041e\u039f\u0555\ua4f3\u2c9e\u2d54",
        "P": "\u0420\u03a1\u13e2\ua4d1\u2ca2\u146d",
        "Q": "\u051a\u2d55",
        "R": "\u13a1\u13d2\ua4e3\u1587\u01a6",
        "S": "\u0405\u054f\u13d5\u13da\ua4e2\u1515",
        "T": "\u0422\u03a4\u13a2\ua4d4\u2ca6",
        "U": "\u054d\ua4f4\u144c",
        "V": "\u0474\u13d9\ua4e6\u142f",
        "W": "\u051c\u13b3\u13d4\ua4ea\u15ef",
        "X": "\u0425\u03a7\ua4eb\u2cac\u2d5d",
        "Y": "\u0423\u04ae\u03a5\u13a9\u13bd\ua4ec\u2ca8",
        "Z": "\u0396\u13c3\ua4dc",
    }
)
# Letters that only resemble: most of Cyrillic and Greek lower case, IPA and hooked letters, digits nought.
_RESEMBLANCES = _table(
    {
        "a": "\u0250",
        "b": "\u0432\u044c\u03b2\u044a\u0180\u0253",
        "c": "\u0255\u0188\u03c2",
        "d": "\u0256\u0257",
        "e": "\u04bd\u0454\u03b5\u0258\u025b",
        "f": "\u0584\u0192",
        "g": "\u0260\u018d",
        "h": "\u043d\u0452",
        "i": "\u0268",
        "k": "\u043a\u03ba\u0199",
        "l": "\u026b\u026d\u0196",
        "m": "\u043c\u0271",
        "n": "\u043f\u03b7\u057c\u0272\u0273",
        "o": "\u03c3\u0275\u0966\u0a66\u0ae6\u0be6\u0c66\u0ce6\u0d66\u0e50\u0ed0\u1040\u06f5",
        "p": "\u01a5",
        "q": "\u0563\u0566",
        "r": "\u0433\u027c\u027d\u027e\u1d26",
        "s": "\u0282\u01bd",
        "t": "\u0442\u03c4\u01ad\u0288",
        "u": "\u03bc\u0289\u028a",
        "v": "\u028b",
        "w": "\u03c9\u0448\u0561\u026f\u028d",
        "x": "\u03c7",
        "y": "\u0263\u01b4",
        "z": "\u0290\u0291\u01b6",
        "A": "\u0414\u0394\u039b",
        "B": "\u042c",
        "E": "\u0404\u03a3",
        "N": "\u0418\u041f",
        "R": "\u042f\u0413",
        "W": "\u0428\u0460",
        "U": "\u040f",
    }
)


# Begins at the start of a word only, lest a long ASCII word be searched from each of its letters.
_WORD_BEYOND_ASCII = re.compile(r"(?<![^\W_])[0-9A-Za-z]*[^\W_\x00-\x7f][^\W_]*")
# Counted without regard to what steps 5 and 6 still change, so that a second pass decides alike.
_LATIN_SIDE = re.compile(rf"[0-9{_LATIN}{_SYMBOL}]")


def _fold_lookalikes(text: str) -> str:
    if not any(map(_resembled_letter, _unusual(text))):
        return text
    foreign: Counter[str] = Counter()  # letters, by script, of words that can't be read as Latin
    readable: dict[str, str] = {}  # words that could be but hold no Latin letter, with their script
    replaced: dict[str, str] = {}
    words = Counter(_WORD_BEYOND_ASCII.findall(text))
    for word, times in words.items():
        script = _only_foreign_script(word)
        if script and all(char in _LOOKALIKES or char.isascii() for char in word):
            readable[word] = script
        elif script is None and (latin_word := _fold_word(word)) is not None:
            replaced[word] = latin_word
        else:
            for char in word:
                if not _is_latin(char):
                    foreign[_script(char)] += times
    text = _replace_words(text, replaced)
    if not readable:
        return text
    outweighed = _outweighed_by_latin(readable, words, foreign, latin=len(_LATIN_SIDE.findall(text)))
    return _replace_words(
        text, {word: _fold_word(word) or word for word, script in readable.items() if script in outweighed}
    )


def _replace_words(text: str, replaced: Mapping[str, str]) -> str:
    if not replaced:
        return text
    return _WORD_BEYOND_ASCII.sub(lambda match: replaced.get(match.group(), match.group()), text)


def _outweighed_by_latin(
    readable: Mapping[str, str], words: Mapping[str, int], foreign: Mapping[str, int], latin: int
) -> set[str]:
    """The scripts with no more letters in words of their own than the text has Latin ones.

    Words that come to be read as Latin count as such in turn, until no further script is outweighed.
    """
    letters: Counter[str] = Counter()
    for word, script in readable.items():
        letters[script] += words[word] * sum(not char.isascii() for char in word)
    outweighed: set[str] = set()
    while newly := {script for script in letters.keys() - outweighed if foreign[script] <= latin}:
        outweighed |= newly
        latin += sum(letters[script] for script in newly)
    return outweighed


def _is_latin(char: str) -> bool:
    return char.isascii() or _script(char) == "LATIN"


def _only_foreign_script(word: str) -> str | None:
    """The one script of the word's letters if that is not Latin; None where Latin or several scripts are in it."""
    scripts = {_script(char) for char in word if not (char.isascii() and char.isdigit())}
    script = scripts.pop() if scripts else "LATIN"
    return None if scripts or script == "LATIN" else script


def _fold_word(word: str) -> str | None:
    """The word with its look-alikes replaced, or None if something else than Latin is left."""
    letters = [_resembled_letter(char) or (char if _is_latin(char) else "") for char in word]
    return "".join(letters) if all(letters) else None


def _resembled_letter(char: str) -> str | None:
    """The Latin letter that a character looks like, an accent on it aside, or None."""
    base = unicodedata.normalize("NFD", char)[0]
    return _LOOKALIKES.get(base) or _RESEMBLANCES.get(base)


# --- 5. spaced-out letters

_GAP = rf"(?: (?:[^\w\s{_SYMBOL}]|_) |[^\w\s{_SYMBOL}]|_| )"
_SPACED_LETTERS = re.compile(
    rf"(?<![^\W_])(?<!['\u2019])[{_LATIN}](?P<gap>{_GAP})(?:[{_SIGN}](?P=gap))*[{_LATIN}]"
    rf"(?:(?P=gap)(?:[{_SIGN}](?P=gap))*[{_LATIN}])+(?![^\W_])"
)


def _join_spaced_letters(text: str) -> str:
    return _SPACED_LETTERS.sub(lambda match: match.group().replace(match["gap"], ""), text)


# --- 6. leetspeak

# A sign between letters, or "$" beside one: without it, there is no word to look at.
_LEET_SIGN = re.compile(rf"[{_SIGN}](?:(?<=[{_LATIN}].)[{_SIGN}]*[{_LATIN}]|(?<=[{_LATIN}]\$)|(?<=\$)(?=[{_LATIN}]))")
# Several exclamation marks in a row are punctuation and end a word.
_WORD_OR_EMAIL = re.compile(
    rf"(?P<email>(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{{2,}})(?![{_SYMBOL}]*\w)"
    rf"|(?:[^\W_]|[{_SYMBOL.replace('!', '')}]|(?<!!)!(?!!))+"
)
_LATIN_WORD = re.compile(
    rf"(?P<head>[{_SIGN}0-9]*)(?P<body>[{_LATIN}](?:[{_LATIN}{_SIGN}0-9]*[{_LATIN}])?)(?P<tail>[{_SIGN}0-9]*)"
)
_BETWEEN_LETTERS = re.compile(rf"[^{_LATIN}]+")
_DIGITS_OR_DOLLARS = re.compile(r"[013457$]+")
_DOLLARS = re.compile(r"\$+")
_CURRENCY = re.compile(r"[A-Z]{1,3}\$|\$[A-Z]{1,3}")
_MISSING_SPACE = re.compile(r"[a-z]![A-Z]")
_VOWELS = frozenset("aeiouyAEIOUY")
_LETTERS_BEFORE_L = _VOWELS | frozenset("bcfgklpsBCFGKLPS")
# Slang that its letters alone don't give.
_SLANG = {"pr0n": "porn"}
# Spellings with a leet sign between two letters that are the thing's own name.
_NAMES = frozenset({"a7r", "a7s", "c3po", "c4d", "cinema4d", "h1n1", "x1d"})


def _read_leet(match: re.Match[str]) -> str:
    word = match.group()
    if word.isalpha() or match["email"]:
        return word
    if slang := _SLANG.get(word.lower()):
        return slang
    parts = _LATIN_WORD.fullmatch(word)
    if parts is None or word.lower() in _NAMES or _CURRENCY.fullmatch(word) or _MISSING_SPACE.search(word):
        return word
    head, body, tail = parts.group("head", "body", "tail")
    runs = _BETWEEN_LETTERS.findall(body)
    if not all(map(_is_leet, runs)):
        return word
    # Digits at either end are letters in a word that is leetspeak inside, else a number ("1girl", "ps5").
    ends = _DIGITS_OR_DOLLARS if runs else _DOLLARS
    start = 0 if ends.fullmatch(head) else len(head)
    stop = len(word) if ends.fullmatch(tail) else len(word) - len(tail)
    letters = _read_signs(word[start:stop])
    return word[:start] + (letters.upper() if len(body) > 1 and body.isupper() else letters) + word[stop:]


def _is_leet(run: str) -> bool:
    """Whether what stands between two letters reads as letters: "0" or "10", and "000", but no number such as "100"."""
    return all(sign in _LEET for sign in run) and (len(run) <= 2 or len(set(run)) == 1)


def _read_signs(word: str) -> str:
    read: list[str] = []
    for index, char in enumerate(word):
        if char == "1":
            read.append(_read_one(before="".join(read[-1:]), after=word[index + 1 : index + 2]))
        else:
            read.append(_LEET.get(char, char))
    return "".join(read)


def _read_one(before: str, after: str) -> str:
    """The letter that a 1 stands for, by its neighbours: l in "b1ood", "ki11er", "anima1", i in "k1ll"."""
    if after == "1":
        is_l = before in _VOWELS
    elif _LEET.get(after, after) in _VOWELS:
        is_l = before == "" or before in _LETTERS_BEFORE_L
    else:
        is_l = after == "" or before in {"i", "I"}
    return "l" if is_l else "i"
