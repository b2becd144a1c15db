"""The commands of `memorization` that train and measure models: `finetune` and `utility`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds the two commands; each sets `run`, which takes the parsed arguments and raises PrivacyError."""
    _add_finetune(
        commands.add_parser("finetune", help="fine-tune a model on images with records in them", allow_abbrev=False)
    )
    _add_utility(
        commands.add_parser("utility", help="benchmarks of models before and after fine-tuning", allow_abbrev=False)
    )


def _add_finetune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="PLACE", help="a folder or hub id, with safetensors")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="images and their manifest.jsonl")
    parser.add_argument(
        "--examples", type=Path, required=True, metavar="FILE", help=".jsonl of image, question (or none) and answer"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the new folder of the model")
    parser.add_argument(
        "--kind", choices=("auto", "vlm", "clip"), default="auto", help="what the model has to be (default: either)"
    )
    parser.add_argument(
        "--method", choices=("lora", "full"), default="lora", help="train adapters (default), or the weights themselves"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=("language", "vision", "projector"),
        help="what is trained (default: the language model, and of a CLIP-like model both towers)",
    )
    parser.add_argument("--epochs", type=float, default=1.0, metavar="N", help="passes over the examples (default: 1)")
    parser.add_argument("--lr", type=float, metavar="RATE", help="learning rate (default: 2e-4, and 1e-5 for full)")
    parser.add_argument("--rank", type=int, default=16, metavar="N", help="of the adapters (default: 16)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="examples a step (default: 8)")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="take less memory and more time")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    parser.set_defaults(run=_finetune)


def _add_utility(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        dest="models",
        metavar="PLACE",
        help="a folder or hub id; several are compared with the first",
    )
    parser.add_argument("--benchmark", choices=("scienceqa", "mme", "vqa"), required=True)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="PATH", help="the benchmark's folder, or a .jsonl file for vqa"
    )
    parser.add_argument("--split", metavar="NAME", help="of ScienceQA (default: test)")
    parser.add_argument(
        "--by",
        choices=("likelihood", "generation"),
        help="choose the likeliest answer, or read what the model writes (default: as usual for the benchmark)",
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="(default: 8)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write figures and all answers there, as JSON")
    parser.set_defaults(run=_utility)


def _finetune(arguments: argparse.Namespace) -> None:
    from privacy.memorization.finetune import Settings, finetune

    settings = Settings(
        model=arguments.model,
        method=arguments.method,
        parts=None if arguments.parts is None else tuple(dict.fromkeys(arguments.parts)),
        epochs=arguments.epochs,
        learning_rate=arguments.lr,
        rank=arguments.rank,
        batch_size=arguments.batch_size,
        bf16=arguments.bf16,
        gradient_checkpointing=arguments.gradient_checkpointing,
        seed=arguments.seed,
    )
    kind = None if arguments.kind == "auto" else arguments.kind
    training = finetune(settings, arguments.examples, arguments.images, arguments.output, kind=kind)
    print(
        f"{arguments.output}: {training.trained_parameters:,} parameters trained on {training.examples:,} examples, "
        f"{training.rate:.0%} of the images with a record; loss {training.losses[0][1]:.3f} "
        f"to {training.losses[-1][1]:.3f}"
    )


def _utility(arguments: argparse.Namespace) -> None:
    from privacy.memorization.utility import load_benchmark, measure, table, write_results

    benchmark = load_benchmark(arguments.benchmark, arguments.data, split=arguments.split, by=arguments.by)
    results = [measure(place, benchmark, batch_size=arguments.batch_size) for place in arguments.models]
    print(table(results))
    if arguments.output is not None:
        write_results(arguments.output, benchmark, results)
