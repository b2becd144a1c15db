"""How fast sealing is: `python -m privacy.sealing_benchmark [--megabytes N]`.

Each figure is a ratio to ChaCha20-Poly1305 of the same library over the same bytes in one call, in the same process,
where 1 means as fast as the cipher itself. Raw and measured runs alternate, and medians are compared, so that a busy
machine slows both alike. Exit status 1 if sealing or opening an unsigned content in memory takes longer than a ratio
of 0.8 allows.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from privacy.keys import PrivateKey, SigningKey
from privacy.sealing import open_file, open_sealed, seal, seal_file

WANTED = 0.8


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the figures; 1 if those wanted are not reached."""
    parser = argparse.ArgumentParser(prog="python -m privacy.sealing_benchmark", description="How fast sealing is.")
    parser.add_argument("--megabytes", type=int, default=100, metavar="N", help="size of the content (default: 100)")
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="runs of each (default: 9)")
    arguments = parser.parse_args(argv)
    data = os.urandom(arguments.megabytes * 10**6)
    key, server = PrivateKey.generate(), SigningKey.generate()
    public_key = key.public_key()
    cipher = ChaCha20Poly1305(ChaCha20Poly1305.generate_key())

    def raw() -> None:
        cipher.encrypt(bytes(12), data, None)

    reached = True
    print(f"{arguments.megabytes} MB, median of {arguments.repeats}  raw       measured  ratio")
    sealed, signed = seal(data, public_key), seal(data, public_key, signing_key=server)
    for name, run, counts in (
        ("seal", lambda: seal(data, public_key), True),
        ("open", lambda: open_sealed(sealed, key), True),
        ("seal and sign", lambda: seal(data, public_key, signing_key=server), False),
        ("open and verify", lambda: open_sealed(signed, key), False),
    ):
        reached &= _print(name, raw, run, arguments.repeats) >= WANTED or not counts
    with tempfile.TemporaryDirectory() as folder:
        plain, target, out = Path(folder, "plain"), Path(folder, "sealed"), Path(folder, "out")
        plain.write_bytes(data)

        def raw_file() -> None:
            with open(out, "wb") as file:
                file.write(cipher.encrypt(bytes(12), plain.read_bytes(), None))
                file.flush()
                os.fsync(file.fileno())

        _print("seal a file", raw_file, lambda: seal_file(plain, target, public_key), arguments.repeats)
        _print("open a file", raw_file, lambda: open_file(target, out, key), arguments.repeats)
    return 0 if reached else 1


def _print(name: str, raw: Callable[[], object], run: Callable[[], object], repeats: int) -> float:
    times = [(_seconds(raw), _seconds(run)) for _ in range(repeats)]
    before, after = median(time for time, _ in times), median(time for _, time in times)
    print(f"{name:<22}  {before * 1e3:6.1f} ms  {after * 1e3:6.1f} ms  {before / after:5.2f}", flush=True)
    return before / after


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
