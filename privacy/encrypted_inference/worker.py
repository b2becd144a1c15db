"""The process that reads and evaluates what strangers send: ``python -m privacy.encrypted_inference.worker``.

SEAL is C++ and may end the process on garbage that passes its checks; then only this process ends. It gets requests and
gives replies through pipes, each a length (eight bytes) and a msgpack map. It holds no secret key, only the model, the
evaluation keys that it was handed, and ciphertexts; its memory is limited where the system can.
"""

from __future__ import annotations

import os
import selectors
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import msgpack

from privacy.encrypted_inference.parameters import DEFAULT
from privacy.encrypted_inference.wire import BATCHED, PACKED, Failure
from privacy.errors import (
    CiphertextError,
    DepthError,
    ImageSizeError,
    InferenceError,
    KeyMismatchError,
    ModelError,
    SessionExpiredError,
    WorkerError,
)

_LENGTH = struct.Struct(">Q")
_MOST_BYTES = 1 << 32
_CHUNK = 1 << 20


class Worker:
    """A worker process, started when it is first needed and again after it died.

    ``timeout`` is in seconds for one request, ``memory`` in bytes beyond what the process has when it is ready.
    """

    def __init__(self, models: Mapping[str, Path], timeout: float = 120.0, memory: int = 3 << 30) -> None:
        self._models = dict(models)
        self._timeout = timeout
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """The process's id, or None while there is none that runs."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def request(self, operation: str, **content: Any) -> dict[str, Any]:
        """The worker's reply.

        Raises:
            WorkerError: it died, or took longer than the timeout and was ended; the next request starts another.
            InferenceError: what it says is wrong with the request.
        """
        with self._lock:
            process = self._running()
            try:
                deadline = time.monotonic() + self._timeout
                _write(process, _framed({"operation": operation, **content}), deadline)
                reply = _unpacked(_read(process, deadline))
            except (OSError, EOFError, TimeoutError) as error:
                self._end()
                said = "took too long" if isinstance(error, TimeoutError) else "died"
                raise WorkerError(f"worker: {said} over a request; it is started anew") from error
        if "error" in reply:
            raise Failure(reply["error"], reply["message"]).exception()
        return reply

    def close(self) -> None:
        """Ends the process, if there is one."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            command = [sys.executable, "-m", "privacy.encrypted_inference.worker", str(self._memory)]
            command += [f"{name}={folder}" for name, folder in self._models.items()]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None and os.name == "posix":
                    os.set_blocking(pipe.fileno(), False)
            self.starts += 1
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
            self._process = None


class _Evaluations:
    """What the process does: keeps models and keys, checks and evaluates."""

    def __init__(self, models: Mapping[str, Path]) -> None:
        from privacy.encrypted_inference.evaluation import BatchEvaluator, PackedEvaluator
        from privacy.encrypted_inference.weights import load_weights

        self._weights = {name: load_weights(folder) for name, folder in models.items()}
        self._packed = {name: PackedEvaluator(weights) for name, weights in self._weights.items()}
        self._batched = {name: BatchEvaluator(weights) for name, weights in self._weights.items()}
        self._keys: dict[bytes, tuple[Any, Any]] = {}

    def keys(self, fingerprint: bytes, relin: bytes, rotations: bytes) -> dict[str, Any]:
        from privacy.encrypted_inference.seal import from_bytes, sealapi

        self._keys[fingerprint] = (
            from_bytes(sealapi.RelinKeys, relin, DEFAULT, "relinearisation keys"),
            from_bytes(sealapi.GaloisKeys, rotations, DEFAULT, "rotation keys"),
        )
        if self._keys[fingerprint][0].size() != 1:
            del self._keys[fingerprint]
            raise CiphertextError("relinearisation keys: not for products of two")
        return {}

    def forget(self, fingerprint: bytes) -> dict[str, Any]:
        self._keys.pop(fingerprint, None)
        return {}

    def check(self, layout: str, ciphertexts: list[bytes]) -> dict[str, Any]:
        self._read(layout, ciphertexts)
        return {}

    def classify(
        self, fingerprint: bytes, model: str, layout: str, count: int, ciphertexts: list[bytes]
    ) -> dict[str, Any]:
        from privacy.encrypted_inference.packing import Packing
        from privacy.encrypted_inference.seal import has_rotation, to_bytes

        packing = Packing(self._weights[model].architecture, DEFAULT.slots)

        if fingerprint not in self._keys:
            raise SessionExpiredError("query: the keys aren't loaded; send the query again")
        relin, galois = self._keys[fingerprint]
        awaited = count * packing.copies if layout == PACKED else packing.architecture.side**2
        if len(ciphertexts) != awaited:
            raise ImageSizeError(f"query: {len(ciphertexts)} ciphertexts, where {awaited} are awaited")
        values = self._read(layout, ciphertexts)
        if layout == BATCHED:
            answers = self._batched[model](values, relin)
        else:
            if not all(has_rotation(galois, DEFAULT, step) for step in packing.keys):
                raise KeyMismatchError(f"rotation keys: some are missing that the model {model} needs")
            images = [values[start : start + packing.copies] for start in range(0, len(values), packing.copies)]
            answers = [self._packed[model](image, relin, galois) for image in images]
        return {"ciphertexts": [to_bytes(answer) for answer in answers]}

    def _read(self, layout: str, ciphertexts: list[bytes]) -> list[Any]:
        from privacy.encrypted_inference.seal import from_bytes, sealapi

        primes, bits = (4, DEFAULT.image_scale) if layout == PACKED else (2, DEFAULT.batch_scale)
        values = []
        for place, content in enumerate(ciphertexts):
            what = f"ciphertext {place + 1}"
            value = from_bytes(sealapi.Ciphertext, content, DEFAULT, what)
            if value.coeff_modulus_size() < primes:
                raise DepthError(f"{what}: {value.coeff_modulus_size()} levels left, where {primes} are needed")
            if (
                value.coeff_modulus_size() != primes
                or value.size() != 2
                or value.scale != 2.0**bits
                or not value.is_ntt_form()
                or value.is_transparent()
            ):
                raise CiphertextError(f"{what}: not a fresh one in the {layout} layout")
            values.append(value)
        return values


def main(arguments: list[str]) -> int:
    """Serves requests from standard input until it ends."""
    memory, models = int(arguments[0]), dict(argument.split("=", 1) for argument in arguments[1:])
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints must not come between the replies
    refusal: InferenceError | None = None
    evaluations: _Evaluations | None = None
    try:
        evaluations = _Evaluations({name: Path(folder) for name, folder in models.items()})
    except ModelError as error:
        refusal = error
    _limit_memory(memory)
    while True:
        try:
            size = _LENGTH.unpack(_exactly(sys.stdin.buffer, _LENGTH.size))[0]
            request = _unpacked(_exactly(sys.stdin.buffer, size))
        except (EOFError, OSError):
            return 0
        try:
            if evaluations is None:
                raise refusal or ModelError("models: none")
            operations: dict[str, Callable[..., dict[str, Any]]] = {
                "keys": evaluations.keys,
                "forget": evaluations.forget,
                "check": evaluations.check,
                "classify": evaluations.classify,
            }
            reply = operations[request.pop("operation")](**request)
        except InferenceError as error:
            failure = Failure.of(error)
            reply = {"error": failure.error, "message": failure.message}
        except (RuntimeError, ValueError, IndexError, MemoryError) as error:
            # SEAL's own refusals. Their text may describe what was sent, so it stays here.
            reply = {"error": "CiphertextError", "message": f"evaluation: refused ({type(error).__name__})"}
        replies.write(_framed(reply))


def _limit_memory(allowed: int) -> None:
    """Holds the process to `allowed` bytes more than it has now, and lets it leave no core file."""
    try:
        import resource
    except ImportError:  # a system without such limits; docs/encrypted-inference.md says so
        return
    pages = Path("/proc/self/statm")
    now = int(pages.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else 1 << 30
    resource.setrlimit(resource.RLIMIT_AS, (now + allowed, now + allowed))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _framed(content: Mapping[str, Any]) -> bytes:
    body: bytes = msgpack.packb(content)
    return _LENGTH.pack(len(body)) + body


def _unpacked(body: bytes) -> dict[str, Any]:
    content: dict[str, Any] = msgpack.unpackb(body, max_bin_len=_MOST_BYTES)
    return content


def _exactly(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content


def _write(process: subprocess.Popen[bytes], content: bytes, deadline: float) -> None:
    if process.stdin is None:
        raise EOFError
    view = memoryview(content)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE)
        while view:
            _wait(selector, deadline)
            view = view[os.write(process.stdin.fileno(), view[:_CHUNK]) :]


def _read(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    if process.stdout is None:
        raise EOFError
    content = bytearray()
    needed: int | None = None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while needed is None or len(content) < needed:
            _wait(selector, deadline)
            part = os.read(process.stdout.fileno(), _CHUNK)
            if not part:
                raise EOFError
            content += part
            if needed is None and len(content) >= _LENGTH.size:
                needed = _LENGTH.size + _LENGTH.unpack_from(content)[0]
    return bytes(content[_LENGTH.size :])


def _wait(selector: selectors.BaseSelector, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0 or not selector.select(left):
        raise TimeoutError


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
