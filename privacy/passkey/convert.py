"""Converts a text model to a passkey: its vocabulary, the order of its ids, and its embeddings.

    convert("all-MiniLM-L6-v2", "encrypted", PassKey.from_file("passkey.txt"))

gives a folder that `AutoModel` and `AutoTokenizer` load with nothing of this library, and a server that has it reads
encrypted ids alone. The idea is that of SentinelLMs (Mishra et al., AAAI 2024, arXiv 2312.17342).
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from privacy.errors import ConversionError, DataError
from privacy.files import write_error

if TYPE_CHECKING:
    from privacy.passkey.keys import Kdf, PassKey, Stretching
    from privacy.passkey.record import Record
    from privacy.passkey.transforms import Kind


@dataclass(frozen=True)
class Converted:
    """What `convert` wrote.

    folder: the new one. record: its passkey.json. plain_rows: whether output rows that were the embeddings themselves
    lie in it unmapped; see `convert` for what that gives away.
    """

    folder: Path
    record: Record
    plain_rows: bool


def convert(
    source: str | Path,
    target: str | Path,
    passkey: PassKey,
    *,
    tokenizer: str | Path | None = None,
    transform: Kind = "glide",
    factor: int = 1,
    noise: float = 0.0,
    carry: bool = True,
    kdf: Kdf | Stretching = "argon2id",
) -> Converted:
    """Writes the model of folder `source` for encrypted ids to the new folder `target`.

    source: a Hugging Face folder, or a hub name that is in the cache, of an encoder or encoder-decoder; heads stay.
    tokenizer: where its tokenizer is, if not with the model, as in a diffusers pipeline. transform, factor, noise: see
    `Transform`. carry: whether the rest of the model is made to follow the map, where its architecture is one that
    `privacy.passkey.carrying` knows; the record's `transform.carried` tells. An orthogonal map is followed exactly by
    T5 and CLIP, nearly by BERT and its relatives, whom `privacy.passkey.adapting` brings nearer still, and the states
    that come out are mapped as well. Of a glide reflection the translation is taken back. What doesn't follow has to be
    trained anew. kdf: how to stretch the passkey; a `Stretching` repeats an earlier one, so that the same passkey gives
    the same encrypted vocabulary.

    The row of id i becomes E'[perm[i]] = T(E[i]) for all ids, special and padding ones too. Padding doesn't count
    anyway, and a decoder that starts with it reads it like any other. Output rows and biases are permuted with the ids.
    Output rows that are tied to the embeddings stay so under the transform "none". Under another they can't, as the
    states that they are compared with aren't mapped like them: they become a tensor of their own. Unless the map was
    carried into them too (T5), the plain rows then lie permuted in the server's folder, and such a model's transform is
    of no use against somebody who compares rows.

    The folder holds model.safetensors, config.json, for models that generate generation_config.json, tokenizer.json,
    tokenizer_config.json and passkey.json. It is complete or not there.

    Raises:
        ConversionError: the model can't be read or converted, or is a converted one already; the message says why.
        DataError: `target` is there already or can't be written.
    """
    from privacy.passkey.keys import Stretching, subkeys
    from privacy.passkey.record import Record, write_record
    from privacy.passkey.transforms import Transform
    from privacy.passkey.vocabulary import EncryptedVocabulary, PlainVocabulary

    # Whatever can be wrong is said before the seconds that transformers takes to load.
    chosen = Transform(transform, factor, noise)
    stretching = kdf if isinstance(kdf, Stretching) else Stretching.new(kdf)
    _check_places(source, target)
    from privacy.passkey.carrying import can_carry, maps_output_rows
    from privacy.passkey.model_files import TextModel
    from privacy.passkey.tokenizer_files import load_tokenizer, save_tokenizer

    original = load_tokenizer(source if tokenizer is None else tokenizer)
    model = TextModel.load(source)
    plain = PlainVocabulary.of(original, model.rows)
    chosen = replace(chosen, carried=carry and can_carry(model.model, transform))
    keys = subkeys(passkey, stretching)
    encrypted = EncryptedVocabulary.of(plain, keys)
    untied = chosen.changes_rows and model.untie()
    plain_rows = untied and not (chosen.maps_states and maps_output_rows(model.model))
    model.encrypt(encrypted.new, chosen, keys)
    record = Record(stretching, chosen, model.rows, tuple(sorted(plain.special)), plain.digest(keys.words))
    with new_folder(Path(target)) as folder:
        model.save(folder, encrypted.new)
        save_tokenizer(folder, original, plain, encrypted)
        record = write_record(folder, record.with_check(keys))
    return Converted(Path(target), record, plain_rows)


def _check_places(source: str | Path, target: str | Path) -> None:
    from privacy.passkey.record import FILE_NAME

    if (Path(source) / FILE_NAME).exists():
        raise ConversionError(f"{source}: is a converted model already")
    if Path(target).exists() or Path(target).is_symlink():
        raise DataError(f"{target}: exists already; it is not overwritten")
    if not Path(target).absolute().parent.is_dir():
        raise DataError(f"{target}: the folder {Path(target).absolute().parent} does not exist")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its name once it was filled, and is removed if that failed."""
    temporary = target.absolute().with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        temporary.mkdir()
        yield temporary
        os.rename(temporary, target)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
