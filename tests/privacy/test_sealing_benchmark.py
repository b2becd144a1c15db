from __future__ import annotations

import re

import pytest

from privacy import sealing_benchmark


def test_every_figure_is_a_ratio_to_the_raw_cipher(capsys: pytest.CaptureFixture[str]) -> None:
    sealing_benchmark.main(["--megabytes", "1", "--repeats", "1"])
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("1 MB, median of 1")
    assert len(rows) == 6
    for row in rows:
        raw, measured, ratio = map(float, re.findall(r"\d+\.\d+", row))
        assert ratio == pytest.approx(raw / measured, abs=0.02 + 0.1 * ratio)
