"""A server refuses an unsafe prompt that it cannot read, and lets a harmless one pass.

python examples/blind_screening.py
python examples/blind_screening.py "a beheading in the square" "a red fox in the snow"

The key holder, who owns the policy, gives the server a blind folder. The client encrypts prompts with the same passkey.
The server runs in a process of its own, which is never given the passkey. docs/blind-screening.md says what it learns
all the same.
"""

from __future__ import annotations

import argparse
import json
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from latentguard import PromptError

PROMPTS = ("a beheading in the town square, blood everywhere", "a red fox in the snow, soft morning light")


def main(arguments: Sequence[str] | None = None) -> int:
    """Screens the prompts blindly and prints what each side saw; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="*", default=PROMPTS)
    parser.add_argument("--serve", type=Path, metavar="FOLDER", help="be the server: messages in, verdicts out")
    given = parser.parse_args(arguments)
    if given.serve is not None:
        serve(given.serve)
        return 0
    with tempfile.TemporaryDirectory() as place:
        passkey_file, folder = Path(place) / "passkey", Path(place) / "blind"
        key_holder(passkey_file, folder)
        with server(folder) as process:
            client(passkey_file, folder, process, given.prompts)
    return 0


def key_holder(passkey_file: Path, folder: Path) -> None:
    """Makes a passkey, and the folder for the server: `python -m latentguard blind` does the same."""
    from latentguard.integrations.passkey import blind
    from privacy.files import write_secret
    from privacy.passkey import PassKey

    write_secret(passkey_file, secrets.token_urlsafe(32).encode())
    blind(None, folder, PassKey.from_file(passkey_file))


def client(passkey_file: Path, folder: Path, process: subprocess.Popen[str], prompts: Sequence[str]) -> None:
    """Encrypts prompts, sends them, and reads the verdicts. Of the folder it needs two small files alone."""
    from latentguard.integrations.passkey import BlindClient
    from latentguard.weights import find_weights, load_weights
    from privacy.passkey import PassKey

    concepts = load_weights(find_weights()).concepts
    blind_client = BlindClient(folder, PassKey.from_file(passkey_file), concepts=concepts)
    for prompt in prompts:
        message = blind_client.encrypt(prompt).as_json()
        answer = exchange(process, message)
        verdict = json.loads(answer)
        print(f"the client has:   {prompt}")
        print(f"the server sees:  {message[message.index('ids') - 1 :][:180]}...")
        print(f"the server says:  {answer}")
        reason = f", for {blind_client.reveal(verdict['concept'])!r}" if verdict["decision"] == "block" else ""
        print(f"the client reads: {verdict['decision']}{reason}\n")


def exchange(process: subprocess.Popen[str], message: str) -> str:
    """Sends one message to the server and returns its answer."""
    if process.stdin is None or process.stdout is None:
        raise ValueError("the server was started without pipes")
    process.stdin.write(message + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


@contextmanager
def server(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The server, in a process of its own."""
    command = [sys.executable, __file__, "--serve", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        if process.stdin is not None:
            process.stdin.close()  # the server reads to the end and stops


def serve(folder: Path) -> None:
    """The server's whole program: it has a folder, and neither a passkey nor the original tokenizer."""
    from latentguard.integrations.passkey import BlindGuard

    guard = BlindGuard.from_pretrained(folder)
    for message in sys.stdin:
        try:
            verdict = guard.check(message.strip())
        except PromptError as error:  # what can't be screened is refused
            answer: dict[str, object] = {"decision": "block", "error": str(error)}
        else:
            answer = {"decision": verdict.decision, "score": round(verdict.score, 3), "concept": verdict.concept}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
