"""The load generator, for a second: real services, and figures that fit what was sent."""

from __future__ import annotations

import pytest

for _package in ("argon2", "fastapi", "pydantic_settings", "sqlalchemy"):
    pytest.importorskip(_package)

from benchmarks.service import figures_of, main, measure, short_prompts  # noqa: E402


def test_all_services_answer_under_load() -> None:
    found = measure(seconds=1.0, round_seconds=0.5, clients=8)
    for measured in found.values():
        assert set(measured.load.statuses) == {200}
        assert measured.load.lost == 0
        assert measured.prompts >= len(measured.load.latencies) > 0
    assert found["batched"].prompts > found["batched"].passes
    assert found["unbatched"].prompts == found["unbatched"].passes
    assert [figure.unit for figure in figures_of(found)] == ["prompts/s", "prompts/s", "ms"]


def test_no_prompt_comes_twice() -> None:
    prompts = short_prompts()
    assert len(prompts) == len(set(prompts)) > 300


@pytest.mark.parametrize(
    "arguments", [["--seconds", "0"], ["--clients", "1000"], ["--round", "100"]], ids=["seconds", "clients", "round"]
)
def test_loads_without_bounds_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
