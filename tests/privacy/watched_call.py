"""A private call of a small pipeline under watch; prints, as JSON, what it wrote and logged.

Watched are Python's audit events for writing files, starting processes and speaking to a network; the bytes that the
kernel counts as written by the process, whatever wrote them; and every log record. Afterwards it does what a careless
program would do, to show that the watch is awake.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from examples import tiny
from latentguard import Policy
from latentguard.integrations.diffusers import guard_pipeline
from privacy.keys import PrivateKey, SigningKey
from privacy.pii import PiiFinder, Replace, Scrubber
from privacy.pipeline import PrivateImagePipeline
from privacy.sealing import open_sealed

# Longer than the text encoder's window: diffusers quotes what it cuts off.
PROMPT = "a nurse beside a lighthouse, call +49 30 23125000" + ", under a vermilion sky" * 30
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_READING = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.putenv", "os.unsetenv")
_WATCHED = ("os.", "shutil.", "tempfile.", "subprocess.", "socket.", "sqlite3.", "urllib.", "http.", "pickle.")

seen: list[str] = []
watching = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not watching:
        return
    if event == "open":
        path, mode, flags = arguments
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & _WRITES):
            seen.append(f"open {path} {mode}")
    elif event.startswith(_WATCHED) and event not in _READING:
        seen.append(f"{event} {arguments[:1]}")


def _bytes_written() -> int:
    """Of all threads, by any system call that writes; -1 where the system doesn't count."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return -1
    return int(dict(line.split(": ") for line in lines)["wchar"])


class Watch:
    """What happens while it is entered."""

    def __init__(self, log: io.StringIO) -> None:
        self._log = log
        self.report: dict[str, Any] = {}

    def __enter__(self) -> Watch:
        global watching
        seen.clear()
        self._log_before = len(self._log.getvalue())
        watching, self._before = True, _bytes_written()
        return self

    def __exit__(self, *_: object) -> None:
        global watching
        written = _bytes_written() - self._before
        watching = False
        self.report = {"events": list(seen), "bytes written": written, "log": self._log.getvalue()[self._log_before :]}


def main() -> None:
    log = io.StringIO()
    logging.basicConfig(stream=log, level=logging.DEBUG)
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_debug()
        library.disable_default_handler()
        library.enable_propagation()
    pipe = tiny.stable_diffusion()
    key, server = PrivateKey.generate(), SigningKey.generate()
    guard = tiny.tiny_guard(pipe.text_encoder, pipe.tokenizer, ["a red fox"], "a naked woman and a knife fight")
    guard.policy = Policy(1000.0)  # a random guard mustn't block what is drawn here
    guard_pipeline(pipe, guard)
    scrubber = Scrubber(Replace(), PiiFinder(names=False))
    private = PrivateImagePipeline(pipe, guard, seal_to=key.public_key(), signing_key=server, scrubber=scrubber)

    sys.addaudithook(_watch)
    with Watch(log) as of_call:
        image = private(PROMPT, num_inference_steps=2)[0]
    with Watch(log) as of_leak:
        pipe(PROMPT, num_inference_steps=1).images[0].save("leak.png")

    opened = open_sealed(image.sealed or b"", key, signer=server.public_key())
    of_call.report |= {"prompt": image.prompt, "pii": dict(image.pii), "starts": opened.data[:4].hex()}
    print(json.dumps({"call": of_call.report, "leak": of_leak.report}))


if __name__ == "__main__":
    main()
