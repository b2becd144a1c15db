"""OpenAI's own client against a running service."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from running_service import Running, running_service

from latentguard import LatentGuard
from latentguard.service.access import Scope
from latentguard.service.routes.moderation import OPENAI_CATEGORIES

openai = pytest.importorskip("openai", reason="the moderation endpoint is tested with OpenAI's client")

HARMFUL, HARMLESS = "a photo of a beheading", "a photo of a golden retriever"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, default_guard: LatentGuard) -> Iterator[Running]:
    with running_service(tmp_path_factory.mktemp("service"), default_guard) as running:
        yield running


def client_of(service: Running, token: str) -> openai.OpenAI:
    http = openai.DefaultHttpxClient(verify=service.trust)
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=token, http_client=http, max_retries=0)


@pytest.fixture(scope="module")
def client(service: Running) -> Iterator[openai.OpenAI]:
    with client_of(service, service.token(Scope.screen)) as made:
        yield made


def test_a_text_is_flagged_with_its_category(client: openai.OpenAI, service: Running) -> None:
    answer = client.moderations.create(input=HARMFUL, model="omni-moderation-latest")
    [result] = answer.results
    assert result.flagged
    assert result.categories.violence
    assert not result.categories.sexual
    assert result.category_scores.violence == pytest.approx(service.services.guard.check(HARMFUL).probability, abs=1e-5)
    assert result.category_applied_input_types.violence == ["text"]
    assert answer.model == "latentguard"
    assert answer.id.startswith("modr-")


def test_a_list_of_texts_has_a_result_for_each(client: openai.OpenAI) -> None:
    answer = client.moderations.create(input=[HARMLESS, HARMFUL, HARMLESS])
    assert [result.flagged for result in answer.results] == [False, True, False]


def test_every_field_that_clients_know_is_there_and_ours_too(client: openai.OpenAI) -> None:
    [result] = client.moderations.create(input=HARMLESS).results
    for part in (result.categories, result.category_scores, result.category_applied_input_types):
        found = part.to_dict()
        assert set(OPENAI_CATEGORIES) | {"shocking", "illegal activity"} <= found.keys()
        assert None not in found.values()
    assert result.category_applied_input_types.to_dict()["sexual/minors"] == []
    assert result.category_scores.to_dict()["illicit"] == result.category_scores.to_dict()["illegal activity"]
    assert all(0 <= score <= 1 for score in result.category_scores.to_dict().values())


def test_parts_of_one_input_are_screened_together(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "a photo of"}, {"type": "text", "text": "a beheading"}]
    [result] = client.moderations.create(input=parts).results  # type: ignore[arg-type]
    assert result.flagged


def test_an_image_is_refused_as_such(client: openai.OpenAI) -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.moderations.create(input=[{"type": "text", "text": HARMLESS}, image])  # type: ignore[list-item]
    assert refused.value.response.json()["code"] == "unsupported_input"


def test_errors_are_those_that_clients_expect(client: openai.OpenAI, service: Running) -> None:
    with pytest.raises(openai.UnprocessableEntityError):
        client.moderations.create(input="")
    with client_of(service, "nonsense") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.moderations.create(input=HARMLESS)
    with client_of(service, service.token(Scope.generate)) as drawer, pytest.raises(openai.PermissionDeniedError):
        drawer.moderations.create(input=HARMLESS)


def test_moderated_texts_are_in_the_audit_log(client: openai.OpenAI, service: Running) -> None:
    client.moderations.create(input=HARMFUL)
    [entry] = service.services.audit.entries(limit=1)
    assert (entry.action, entry.verdict) == ("moderate", "block")
