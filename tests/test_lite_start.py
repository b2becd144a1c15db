"""Where PyTorch is not installed: everything that a newcomer does works, quickly, and the rest says what it needs.

PyTorch is hidden from the processes that these tests start by a finder that refuses it, before any other is asked.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_runner import ROOT, environment
from tables import read_rows

from latentguard import LatentGuard
from latentguard.shipped import shipped_path

SAMPLE = shipped_path("datasets") / "sample_prompts.txt"
NOTE = "PyTorch is not installed: scoring without it\n"
# What a light install doesn't have.
HIDDEN = ("torch", "transformers", "sklearn", "scipy", "matplotlib", "diffusers")
HIDING = f"""
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HIDDEN}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""
# Modules that cost more than a tenth of the half second in which help has to be there.
HEAVY = {
    "fastapi",
    "pandas",
    "numpy",
    "onnx",
    "onnxruntime",
    "pyarrow",
    "tokenizers",
    "huggingface_hub",
    "safetensors",
    "tqdm",
    *HIDDEN,
}


def light(code: str, *arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process that has no PyTorch."""
    command = [sys.executable, "-c", HIDING + code, *map(str, arguments)]
    path = environment(PYTHONPATH=str(ROOT))
    return subprocess.run(command, cwd=cwd, env=path, capture_output=True, text=True, encoding="utf-8", timeout=120)


def light_command(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs `latentguard ...` in such a process."""
    return light("from latentguard.cli import main\nsys.exit(main(prog='latentguard'))", *arguments, cwd=cwd)


# --- screening


def test_a_file_is_screened_as_with_pytorch(tmp_path: Path, default_guard: LatentGuard) -> None:
    output = tmp_path / "verdicts.jsonl"
    done = light_command("screen", "--file_path", SAMPLE, "--output", output)
    assert (done.returncode, done.stderr) == (0, NOTE)
    expected = default_guard.check_batch(SAMPLE.read_text(encoding="utf-8").splitlines())
    for row, verdict in zip(read_rows(output), expected, strict=True):
        assert row["score"] == pytest.approx(verdict.score, abs=1e-3)
        assert (row["concept"], row["blocked"]) == (verdict.concept, verdict.blocked)


def test_inference_py_needs_no_pytorch() -> None:
    done = light(
        f"import runpy\nsys.argv[0] = {str(ROOT / 'inference.py')!r}\nrunpy.run_path(sys.argv[0], run_name='__main__')",
        "--file_path",
        SAMPLE,
    )
    assert (done.returncode, done.stderr) == (0, NOTE)
    assert "40 prompts: 22 blocked" in done.stdout


def test_the_readmes_example_needs_no_pytorch() -> None:
    done = light("""
from latentguard import LatentGuard
guard = LatentGuard.from_pretrained()
guard.concepts.add("golden retriever", category="house rules")
verdict = guard.check("a golden retriever on a beach")
print(verdict.blocked, verdict.concept, verdict.explain().top(1)[0].text)
print([guard.check("a red wine on a table").decision], guard.encoder.device)
""")
    assert (done.stdout, done.stderr) == ("True golden retriever retriever\n['allow'] numpy\n", "")


def test_a_threshold_is_calibrated_without_pytorch(tmp_path: Path) -> None:
    harmless = tmp_path / "harmless.txt"
    harmless.write_text("".join(f"a house by river number {i}\n" for i in range(40)))
    done = light_command("calibrate", "--data", harmless, "--rate", "0.1", "--output", tmp_path / "mine")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "mine" / "config.json").read_text())["threshold"] is not None


# --- speed


def test_the_first_verdict_takes_few_seconds() -> None:
    """Under 2 s on quiet cores, see docs/lite.md; a machine that runs other tests may take five times as long."""
    code = "from latentguard import LatentGuard\nguard = LatentGuard.from_pretrained()\n"
    light(code)  # makes the encoder's graph, once for all processes
    start = time.perf_counter()
    done = light(code + "print(guard.check('a photo of a beheading').blocked)")
    assert (done.stdout, done.stderr) == ("True\n", "")
    assert time.perf_counter() - start < 10


def test_scoring_imports_nothing_that_it_does_not_need() -> None:
    """The full install's way, with everything there to be imported."""
    code = (
        "import sys\nfrom latentguard import LatentGuard\n"
        "LatentGuard.from_pretrained(device='numpy').check('a house')\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert not {*HIDDEN, "pyarrow", "huggingface_hub", "tqdm"} & set(done.stdout.split())
    assert {"numpy", "onnxruntime", "tokenizers"} <= set(done.stdout.split())


@pytest.mark.parametrize("arguments", [[], ["screen"], ["train"], ["serve"]], ids=["all", "screen", "train", "serve"])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom latentguard.cli import main\n"
        "try: main([*sys.argv[1:], '--help'])\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "usage:" in done.stdout
    imported = done.stderr.split()
    assert not HEAVY & {name.partition(".")[0] for name in imported}
    assert len(imported) < 300


def test_the_guards_names_import_no_pytorch() -> None:
    code = (
        "import sys\nfrom latentguard import ConceptBank, LatentGuard, Policy, Verdict\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n"


# --- what does need PyTorch


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ("LatentGuard.from_pretrained(device='cuda')", "the device cuda: needs PyTorch"),
        ("load_encoder('hf:nobody/nothing')", "the encoder hf:nobody/nothing: needs PyTorch"),
        ("load_encoder('open_clip:ViT-B-32:')", "the encoder open_clip:ViT-B-32:: needs PyTorch"),
    ],
    ids=["a GPU", "a Hugging Face encoder", "an open_clip encoder"],
)
def test_what_needs_pytorch_says_so(asked: str, error: str) -> None:
    done = light(
        "from latentguard import LatentGuard, MissingDependencyError\n"
        "from latentguard.encoders import load_encoder\n"
        f"try: {asked}\nexcept MissingDependencyError as error: print(error)"
    )
    assert done.stdout == f"{error}; install it with: pip install 'latentguard[torch]'\n"


@pytest.mark.parametrize(
    ("arguments", "package"),
    [
        (["train", "--data", "labelled.csv", "--output", "weights"], "torch"),
        (["import-official", "labelled.csv", "--output", "weights", "--threshold", "0"], "torch"),
        (["evaluate", "--data", "labelled.csv"], "sklearn"),
    ],
    ids=["train", "import-official", "evaluate"],
)
def test_a_command_that_needs_more_says_so(tmp_path: Path, arguments: list[str], package: str) -> None:
    (tmp_path / "labelled.csv").write_text("prompt,unsafe\na house,0\na beheading,1\n")
    done = light_command(*arguments, cwd=tmp_path)
    line = f"latentguard: this needs {package}; install it with: pip install 'latentguard[training]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_the_service_is_there_to_be_imported() -> None:
    pytest.importorskip("fastapi", reason="the service is an extra")
    assert light("import latentguard.service.app, latentguard.integrations.tools.local").stderr == ""
