from __future__ import annotations

import threading

import pytest

from latentguard.errors import ServiceError
from latentguard.service.limits import RateLimitedError, RateLimiter


class Ticks:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_as_many_prompts_pass_in_a_minute_as_were_set() -> None:
    ticks = Ticks()
    limiter = RateLimiter(60, clock=ticks)
    for _ in range(60):
        limiter.take("key")
    with pytest.raises(RateLimitedError) as error:
        limiter.take("key")
    assert error.value.retry_after == 1
    ticks.now += 30
    limiter.take("key", 30)
    with pytest.raises(RateLimitedError):
        limiter.take("key")


def test_the_wait_is_as_long_as_it_takes() -> None:
    ticks = Ticks()
    limiter = RateLimiter(60, clock=ticks)
    limiter.take("key", 50)
    with pytest.raises(RateLimitedError) as error:
        limiter.take("key", 40)
    assert error.value.retry_after == 30
    ticks.now += error.value.retry_after
    limiter.take("key", 40)


def test_a_refused_request_costs_nothing() -> None:
    limiter = RateLimiter(10, clock=Ticks())
    limiter.take("key", 5)
    with pytest.raises(RateLimitedError):
        limiter.take("key", 6)
    limiter.take("key", 5)


def test_each_key_has_its_own() -> None:
    limiter = RateLimiter(5, clock=Ticks())
    limiter.take("one", 5)
    limiter.take("other", 5)


def test_more_than_a_minutes_worth_passes_after_quiet_and_is_paid_off() -> None:
    ticks = Ticks()
    limiter = RateLimiter(60, clock=ticks)
    limiter.take("key", 180)
    ticks.now += 100
    with pytest.raises(RateLimitedError) as error:
        limiter.take("key")
    assert error.value.retry_after == 21
    ticks.now += 21
    limiter.take("key")


def test_threads_together_get_no_more_than_one_would() -> None:
    limiter, passed = RateLimiter(100, clock=Ticks()), []

    def ask() -> None:
        for _ in range(50):
            try:
                limiter.take("key")
            except RateLimitedError:
                continue
            passed.append(1)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(passed) == 100


def test_no_rate_at_all_is_no_limit() -> None:
    with pytest.raises(ServiceError):
        RateLimiter(0)
