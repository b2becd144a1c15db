"""Private images and encrypted classification over HTTPS, with a small random pipeline and the shipped classifier."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from running_service import Running, codes, running_service

pytest.importorskip("diffusers", reason="private images need diffusers, of the extra of that name")
pytest.importorskip("open_clip", reason="the small pipeline's tokenizer is made of open_clip's vocabulary")
pytest.importorskip("presidio_analyzer", reason="personal data is found by Presidio, of the extra privacy")
pytest.importorskip("tenseal", reason="encrypted inference needs TenSEAL, of the extra privacy")

from PIL import Image

from examples import tiny
from latentguard import LatentGuard
from latentguard.service.access import Scope
from privacy.encrypted_inference import Client, load_architecture, shipped_folder
from privacy.keys import PrivateKey
from privacy.sealing import open_sealed

KEY = PrivateKey.generate()
LINE = str(KEY.public_key())
ASKED = {"prompt": "a nurse called anna.schmidt@example.org by a lake", "recipients": [LINE], "steps": 2, "seed": 1}
BLOCKED = "a photo of a beheading"


class Slow:
    """A pipeline that waits for permission, between its steps too."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.gate = threading.Event()
        self.gate.set()
        self.drawn: list[list[str]] = []

    def __call__(self, prompt: list[str], callback_on_step_end: Any = None, **given: Any) -> Any:
        def after_step(pipe: Any, step: int, timestep: Any, tensors: Any) -> Any:
            tensors = callback_on_step_end(pipe, step, timestep, tensors)
            self.gate.wait(20)
            return tensors

        self.drawn.append(prompt)
        return self.pipe(prompt=prompt, callback_on_step_end=after_step, **given)


@pytest.fixture(scope="module")
def pipe() -> Slow:
    tiny.quiet()
    return Slow(tiny.stable_diffusion())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, default_guard: LatentGuard, pipe: Slow) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("service")
    with running_service(folder, default_guard, pipeline=pipe, classifiers=("mnist",)) as running:
        yield running


@pytest.fixture(scope="module")
def client(service: Running) -> Iterator[httpx.Client]:
    with service.client(Scope.generate) as made:
        yield made


def picture(sealed: bytes) -> Image.Image:
    return Image.open(io.BytesIO(open_sealed(sealed, KEY).data))


def test_an_image_comes_sealed_and_only_its_owner_opens_it(client: httpx.Client, pipe: Slow) -> None:
    answer = client.post("/v1/generate", json=ASKED)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream")
    assert picture(answer.content).size == (64, 64)
    assert b"PNG" not in answer.content[:2000]
    assert "schmidt" not in str(pipe.drawn[-1]).lower()


def test_several_images_come_in_json(client: httpx.Client) -> None:
    answer = client.post("/v1/generate", json=ASKED | {"images": 2, "format": "json"}).json()
    assert [picture(base64.b64decode(image)).size for image in answer["images"]] == [(64, 64)] * 2
    assert sum(answer["personal_data"].values()) >= 1
    assert client.post("/v1/generate", json=ASKED | {"images": 2}).json()["code"] == "invalid_request"


def test_what_was_written_and_what_is_drawn_are_both_in_the_audit_log(client: httpx.Client, service: Running) -> None:
    client.post("/v1/generate", json=ASKED)
    drawn, written = service.services.audit.entries(limit=2, action="generate")
    assert (written.details["stage"], drawn.details["stage"]) == ("written", "drawn")
    assert written.details["request"] == drawn.details["request"]
    assert written.prompt_hash == service.services.audit.prompt_hash(ASKED["prompt"])  # type: ignore[arg-type]
    assert drawn.prompt_hash != written.prompt_hash


def test_a_blocked_prompt_is_never_drawn(client: httpx.Client, service: Running, pipe: Slow) -> None:
    before = len(pipe.drawn)
    answer = client.post("/v1/generate", json=ASKED | {"prompt": BLOCKED})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "prompt_blocked")
    assert problem["verdicts"][0]["concept"] == "beheading"
    assert problem["policy"] == service.services.policies.fingerprint
    assert len(pipe.drawn) == before
    [entry] = service.services.audit.entries(limit=1, action="generate")
    assert (entry.verdict, entry.details["stage"]) == ("block", "written")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"recipients": ["x25519:nonsense"]}, "invalid_public_key"),
        ({"recipients": []}, "invalid_request"),
        ({"recipients": [LINE[:-1] + "\u00e9"]}, "invalid_public_key"),
        ({"prompt": "\u200b"}, "invalid_prompt"),
        ({"width": 65}, "invalid_request"),
        ({"steps": 100_000}, "invalid_request"),
        ({"negative_prompt": "a"}, "invalid_request"),
    ],
    ids=["key", "nobody", "accent", "empty", "width", "steps", "unscreened"],
)
def test_what_cannot_be_drawn(client: httpx.Client, change: dict[str, Any], code: str) -> None:
    answer = client.post("/v1/generate", json=ASKED | change)
    assert (answer.status_code, answer.json()["code"]) == (422, code)


def test_a_job_tells_its_steps_and_hands_the_images_out(client: httpx.Client, pipe: Slow) -> None:
    pipe.gate.clear()
    place = client.post("/v1/generate", json=ASKED | {"wait": False}).headers["location"]
    for _ in range(200):
        job = client.get(place).json()
        if job["done"]:
            break
        time.sleep(0.05)
    assert (job["state"], job["done"], job["total"]) == ("running", 1, 2)
    pipe.gate.set()
    for _ in range(200):
        if client.get(place).json()["state"] == "done":
            break
        time.sleep(0.05)
    [image] = client.get(f"{place}/result").json()["images"]
    assert picture(base64.b64decode(image)).size == (64, 64)


def test_one_drawing_at_a_time_and_a_queue_that_ends(client: httpx.Client, service: Running, pipe: Slow) -> None:
    pipe.gate.clear()
    answers: list[httpx.Response] = []
    with service.client(Scope.generate) as other:
        threads = [
            threading.Thread(target=lambda: answers.append(other.post("/v1/generate", json=ASKED))) for _ in range(9)
        ]
        for thread in threads:
            thread.start()
        for _ in range(200):
            if service.services.pipeline is not None and service.services.pipeline.full:
                break
            time.sleep(0.05)
        refused = client.post("/v1/generate", json=ASKED)
        pipe.gate.set()
        for thread in threads:
            thread.join(60)
    assert (refused.status_code, refused.json()["code"]) == (429, "busy")
    assert int(refused.headers["retry-after"]) >= 1
    assert codes(answers) == [200] * 9


def test_a_drawing_that_takes_too_long_is_given_up(
    tmp_path_factory: pytest.TempPathFactory, default_guard: LatentGuard, pipe: Slow
) -> None:
    folder = tmp_path_factory.mktemp("slow")
    pipe.gate.clear()
    with (
        running_service(folder, default_guard, pipeline=pipe, generate_timeout_s=0.5) as running,
        running.client(Scope.generate) as client,
    ):
        late = client.post("/v1/generate", json=ASKED)
        pipe.gate.set()
        assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")


def test_without_a_pipeline_or_classifiers_it_says_so(
    tmp_path_factory: pytest.TempPathFactory, default_guard: LatentGuard
) -> None:
    with (
        running_service(tmp_path_factory.mktemp("bare"), default_guard) as running,
        running.client(Scope.generate) as client,
    ):
        drawn = client.post("/v1/generate", json=ASKED)
        classified = client.post(
            "/v1/classify-encrypted", content=b"x", headers={"content-type": "application/octet-stream"}
        )
    assert (drawn.status_code, drawn.json()["code"]) == (501, "no_pipeline")
    assert (classified.status_code, classified.json()["code"]) == (501, "no_classifier")


# --- encrypted classification

STREAM = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def owner() -> tuple[Client, bytes]:
    return Client.generate(load_architecture(shipped_folder("mnist")), "mnist")


def test_an_image_is_classified_without_being_seen(client: httpx.Client, owner: tuple[Client, bytes]) -> None:
    secret, keys = owner
    query = secret.encrypt(np.zeros((1, 28, 28)))
    unknown = client.post("/v1/classify-encrypted", content=query, headers=STREAM)
    assert (unknown.status_code, unknown.json()["code"]) == (409, "session_expired")
    session = client.put("/v1/classify-encrypted/keys", content=keys, headers=STREAM)
    assert session.json() == {"fingerprint": secret.fingerprint.hex(), "seconds": 3600}
    answer = client.post("/v1/classify-encrypted", content=query, headers=STREAM)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert secret.decrypt(answer.content).labels[0] in {str(digit) for digit in range(10)}


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"nonsense", STREAM, 422, "invalid_message"),
        (b"", STREAM, 422, "invalid_message"),
        (b"{}", {"content-type": "application/json"}, 415, "unsupported_media_type"),
    ],
    ids=["nonsense", "empty", "json"],
)
def test_what_is_no_query(
    client: httpx.Client, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    for place, method in (("", "POST"), ("/keys", "PUT")):
        answer = client.request(method, f"/v1/classify-encrypted{place}", content=content, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_uploads_have_a_limit_of_their_own(
    tmp_path_factory: pytest.TempPathFactory, default_guard: LatentGuard
) -> None:
    settings = {"classifiers": ("mnist",), "body_limit_bytes": 2048, "ciphertext_limit_bytes": 100_000}

    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 10_000

    with (
        running_service(tmp_path_factory.mktemp("limits"), default_guard, **settings) as running,
        running.client(Scope.generate) as client,
    ):
        announced = client.post("/v1/classify-encrypted", content=b"x" * 100_001, headers=STREAM)
        streamed = client.post("/v1/classify-encrypted", content=chunks(), headers=STREAM)
        within = client.post("/v1/classify-encrypted", content=b"x" * 100_000, headers=STREAM)
        of_json = client.post("/v1/generate", json=ASKED | {"prompt": "a" * 3000})
    assert codes([announced, streamed, within, of_json]) == [413, 413, 422, 413]
