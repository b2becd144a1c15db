"""The command line: every command, no logic."""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from latentguard.errors import LatentGuardError
from latentguard.integrations.agent.commands import add_agent
from latentguard.integrations.mcp.commands import add_mcp
from latentguard.integrations.passkey.commands import add_blind, add_blind_evaluate, add_passkey_file
from latentguard.service.commands import register as register_service
from latentguard.service.serve_command import add_serve
from latentguard.synthesis.command import add_attack, add_synthesize
from privacy.errors import PrivacyError

if TYPE_CHECKING:
    from latentguard.screening import ScreeningOptions
    from latentguard.screening.recipe import GuardRecipe

# What a light install lacks and the extra "training" brings.
_FOR_TRAINING = frozenset({"accelerate", "matplotlib", "sklearn", "torch"})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (try --help)\n")


def main(argv: Sequence[str] | None = None, *, prog: str = "latentguard") -> int:
    """Run one command and return the exit status: 0, 2 after a mistake in the input, 130 after an interruption."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a prompt may hold what the terminal's encoding lacks
    arguments = _parser(prog).parse_args(argv)
    command: Callable[[argparse.Namespace], None] = arguments.run
    try:
        command(arguments)
        sys.stdout.flush()
    except (LatentGuardError, PrivacyError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("latentguard", "privacy"):
            raise
        package = error.name.partition(".")[0]
        extra = "training" if package in _FOR_TRAINING else "all"
        print(f"{prog}: this needs {package}; install it with: pip install 'latentguard[{extra}]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; nothing was left half-written", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_output()  # its reader, say `head`, has gone: nothing is left to tell it
        return 141
    except OSError as error:  # most likely standard output, on a full disk
        _drop_output()
        print(f"{prog}: {error.filename or 'standard output'}: {error.strerror or error}", file=sys.stderr)
        return 2
    return 0


def _drop_output() -> None:
    """Keeps the interpreter from trying once more, at its end, to write what can't be written."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _screen(arguments: argparse.Namespace) -> None:
    from latentguard.errors import DataError
    from latentguard.records import check_output, read_concepts
    from latentguard.screening import ScreeningOptions
    from latentguard.screening.inputs import find_inputs
    from latentguard.screening.recipe import GuardRecipe

    # Whatever can be wrong is said before the seconds that PyTorch and a model take to load.
    inputs, output = find_inputs(arguments.file_path), arguments.output
    into_folder = output is not None and (output.is_dir() or not output.suffix)
    if into_folder:
        from latentguard.screening.folder import check_folder

        check_folder(output, inputs)
    elif output is not None:
        check_output(output)
    elif arguments.keep:
        raise DataError("--keep carries columns into a file: give it one with --output")
    options = ScreeningOptions(
        column=arguments.column,
        keep="all" if arguments.keep == ["all"] else tuple(arguments.keep),
        only=arguments.only,
        cache=arguments.cache,
        near_duplicates=arguments.near_duplicates,
        unusable=arguments.unusable,
        part_rows=arguments.part_rows,
    )
    concepts = None if arguments.concepts is None else tuple(read_concepts(arguments.concepts))
    recipe = GuardRecipe(
        arguments.model,
        concepts,
        arguments.threshold,
        arguments.flag_margin,
        arguments.precision,
        arguments.compile,
        arguments.search,
    )
    if arguments.engine == "ray":
        _screen_on_ray(arguments, recipe, inputs, options, into_folder=into_folder)
        return
    if (arguments.address, arguments.workers, arguments.num_gpus) != (None, None, 0.0):
        raise DataError("--address, --workers and --num-gpus are for --engine ray")

    from latentguard.screening import print_verdicts, screen_file

    _say_if_light()
    guard = recipe.guard(device=arguments.device)
    if output is None:
        print_verdicts(guard, inputs, options=options)
        return
    if into_folder:
        from latentguard.screening.folder import screen_folder

        summary = screen_folder(guard, inputs, output, options=options)
    else:
        summary = screen_file(guard, inputs, output, options=options)
    print(f"{output}: {summary}")


def _screen_on_ray(
    arguments: argparse.Namespace,
    recipe: GuardRecipe,
    inputs: list[Path],
    options: ScreeningOptions,
    *,
    into_folder: bool,
) -> None:
    from latentguard.errors import DataError
    from latentguard.integrations.ray.engine import screen_on_ray

    if not into_folder:
        raise DataError("--engine ray writes parts: give it a folder with --output")
    if arguments.device != "auto":
        raise DataError(
            "--engine ray computes on GPUs if --num-gpus is given, otherwise on processors: leave --device out"
        )
    summary = screen_on_ray(
        recipe,
        inputs,
        arguments.output,
        options=options,
        address=arguments.address,
        workers=arguments.workers,
        num_gpus=arguments.num_gpus,
    )
    print(f"{arguments.output}: {summary}")


def _say_if_light() -> None:
    """Tells, on standard error, that the scores are numpy's, where PyTorch is not installed."""
    from latentguard.arrays import torch_is_installed

    if not torch_is_installed():
        print("PyTorch is not installed: scoring without it", file=sys.stderr)


def _train(arguments: argparse.Namespace) -> None:
    from latentguard.training.processes import local_device
    from latentguard.training.run import TrainingRun
    from latentguard.training.trainer import TrainingArguments

    recipe = {f.name: getattr(arguments, f.name) for f in fields(TrainingArguments) if hasattr(arguments, f.name)}
    paths = {
        name: getattr(arguments, name)
        for name in ("data", "output", "calibrate", "negatives", "concept_names", "exclude_prompts", "exclude_concepts")
    }
    encoder = arguments.encoder
    if arguments.converted is not None:
        from latentguard.encoders import load_encoder
        from latentguard.integrations.passkey.keyholder import PasskeyEncoder
        from privacy.passkey.keys import PassKey

        passkey = PassKey.obtain(arguments.passkey_file)
        plain = load_encoder(encoder, device=local_device(arguments.device), layers=arguments.layers)
        encoder = PasskeyEncoder(plain, arguments.converted, passkey)
    run = TrainingRun(
        **paths,
        bank=arguments.bank,
        false_positive_rate=arguments.false_positive_rate,
        encoder=encoder,
        device=arguments.device,
        precision=arguments.precision,
        compiler=arguments.compile,
        layers=arguments.layers,
        grammar=arguments.grammar,
        replacements=arguments.replacements,
        cache=arguments.cache,
        resume=arguments.resume,
        arguments=TrainingArguments(**recipe),
        command=arguments.command_line,
    )
    finished = run.execute()
    if finished is None:  # one of several processes, and not the one that tells how it went
        return
    folder, report, result = finished
    print("\n".join(report.lines()))
    print(f"held-out concepts: AUC {result.best['auc']:.4f} at step {result.best['step']:.0f}")
    print(f"wrote {folder}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from latentguard.errors import DataError
    from latentguard.evaluation import draw, evaluate, markdown_table, named_concepts, read_evaluation_set
    from latentguard.files import atomic_path, check_target
    from latentguard.guard import LatentGuard
    from latentguard.records import read_concepts

    sets = [
        read_evaluation_set(path, column=arguments.column, reference=arguments.reference) for path in arguments.data
    ]
    if arguments.reference is not None and all(data.reference is None for data in sets):
        raise DataError(f"no file of --data has the column {arguments.reference!r} that --reference asks for")
    if arguments.output is not None:
        check_target(arguments.output)
    guard = LatentGuard.from_pretrained(
        arguments.model,
        concepts=None if arguments.concepts is None else read_concepts(arguments.concepts),
        threshold=arguments.threshold,
        device=arguments.device,
        precision=arguments.precision,
    )
    added = [] if arguments.add_concepts is None else read_concepts(arguments.add_concepts)
    guard.concepts.extend(added)
    results = [evaluate(guard, data) for data in sets]
    reports = [report for report, _ in results]
    print(markdown_table(reports), end="")
    for data in sets if added else ():
        print(named_concepts(guard, data, [concept.name for concept in added]))
    for report in reports:
        for category, (count, share) in report.categories.items():
            print(f"{report.file}: {category}: {share:.1%} of {count} blocked")
        if report.calibration_error is not None:
            print(
                f"{report.file}: expected calibration error {report.calibration_error:.3f} "
                "(harmful and harmless prompts weighted as if equally many, as probabilities presume)"
            )
    if arguments.output is not None:
        with atomic_path(arguments.output) as temporary:
            temporary.write_text(json.dumps([report.as_dict() for report in reports], indent=1) + "\n")
    if arguments.plots is not None:
        for path in draw(guard, sets, [scores for _, scores in results], arguments.plots):
            print(f"drew {path}")


def _robustness(arguments: argparse.Namespace) -> None:
    from latentguard.errors import DataError
    from latentguard.files import atomic_path, check_target
    from latentguard.guard import LatentGuard
    from latentguard.records import read_concepts
    from latentguard.robustness import draw, markdown, measure, read_robustness_data

    if arguments.concepts is not None and arguments.labelled is None:
        raise DataError("--concepts is the bank for the file of --labelled, which is missing")
    data = read_robustness_data(
        fairness=arguments.fairness,
        harmless_uses=arguments.harmless_uses,
        artist_styles=arguments.artist_styles,
        evasions=arguments.evasions,
        labelled=arguments.labelled,
        explain=arguments.explain,
        column=arguments.column,
    )
    concepts = None if arguments.concepts is None else read_concepts(arguments.concepts)
    if arguments.output is not None:
        check_target(arguments.output)
    guard = LatentGuard.from_pretrained(arguments.model, device=arguments.device)
    of_labelled = None
    if concepts is not None:
        of_labelled = LatentGuard.from_pretrained(arguments.model, concepts=concepts, encoder=guard.encoder)
    report, curves = measure(guard, data, labelled_guard=of_labelled)
    print(markdown(report), end="")
    if arguments.output is not None:
        with atomic_path(arguments.output) as temporary:
            temporary.write_text(json.dumps(report.as_dict(), indent=1) + "\n")
    if arguments.plots is not None:
        for path in draw(report, curves, arguments.plots):
            print(f"drew {path}")


def _calibrate(arguments: argparse.Namespace) -> None:
    from latentguard.calibration import (
        calibrate,
        conformal_rank,
        harmless_prompts,
        shown_threshold,
        target_folder,
    )
    from latentguard.evaluation import read_evaluation_set
    from latentguard.guard import LatentGuard
    from latentguard.records import read_concepts
    from latentguard.weights import find_weights, with_threshold

    harmless = harmless_prompts([read_evaluation_set(path, column=arguments.column) for path in arguments.data])
    conformal_rank(len(harmless.prompts), arguments.rate)
    concepts = None if arguments.concepts is None else read_concepts(arguments.concepts)
    target = None
    if arguments.output is not None or arguments.in_place:
        target = target_folder(arguments.model, arguments.output)
    folder = find_weights(arguments.model)
    guard = LatentGuard.from_pretrained(folder, concepts=concepts, device=arguments.device)
    found = calibrate(guard, harmless.prompts, arguments.rate)
    print(f"threshold {shown_threshold(found.threshold)} (before: {shown_threshold(guard.policy.threshold)})")
    print(f"{found.prompts:,} harmless prompts, {found.blocked:,} of them blocked")
    if harmless.repeated:
        print(f"left out as repetitions, since each prompt counts once: {harmless.repeated:,}")
    if harmless.unsafe:
        print(f"left out as labelled unsafe: {harmless.unsafe:,}")
    print(f"guarantee: {found.guarantee()}")
    print(f"beyond it: {found.confidence()}")
    if target is not None:
        with_threshold(
            folder,
            target,
            found.threshold,
            calibration=found.note(harmless),
            note=found.card(harmless),
            concepts=concepts,
        )
        print(f"wrote {target}")


def _join(arguments: argparse.Namespace) -> None:
    from latentguard.joining import join

    folder = join(
        arguments.mapping,
        arguments.prompt_head,
        arguments.output,
        threshold=arguments.threshold,
        command="python -m latentguard " + shlex.join(sys.argv[1:]),
    )
    print(f"wrote {folder}")


def _encoder(arguments: argparse.Namespace) -> None:
    from latentguard.encoders.export import export_embedded

    print(f"wrote {export_embedded(arguments.output)}")


def _import_official(arguments: argparse.Namespace) -> None:
    from latentguard.records import read_concepts
    from latentguard.shipped import shipped_path
    from latentguard.weights import import_official

    concepts = arguments.concepts or shipped_path("datasets") / "concepts.json"
    folder = import_official(
        arguments.checkpoint,
        arguments.output,
        threshold=arguments.threshold,
        concepts=read_concepts(concepts),
        encoder=arguments.encoder,
    )
    print(f"wrote {folder}")


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=prog, description="Safe text-to-image generation: screens prompts before any diffusion step.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    add_screen(commands.add_parser("screen", help="screen a file of prompts"))
    add_train(commands.add_parser("train", help="train a mapping layer"))
    add_evaluate(commands.add_parser("evaluate", help="measure a guard on labelled prompts"))
    add_robustness(commands.add_parser("robustness", help="measure fairness, evasions, attacks and explanations"))
    add_calibrate(commands.add_parser("calibrate", help="set the threshold on harmless prompts of your own"))
    add_join(commands.add_parser("join", help="the mapping layer of one weights folder and the prompt head of another"))
    add_import_official(commands.add_parser("import-official", help="read the published Latent Guard checkpoint"))
    add_blind(commands.add_parser("blind", help="write a guard that reads encrypted prompts, for a server without key"))
    add_blind_evaluate(commands.add_parser("blind-evaluate", help="measure such a guard beside the plain one"))
    add_encoder(commands.add_parser("encoder", help="write the embedded encoder to a folder for transformers"))
    add_synthesize(commands.add_parser("synthesize", help="write a data set from a list of concepts"))
    add_attack(commands.add_parser("attack", help="rewrite labelled prompts as an attacker would"))
    add_serve(commands.add_parser("serve", help="screening and private generation over HTTPS, with a console"))
    register_service(commands)
    add_mcp(commands.add_parser("mcp", help="offer screening and private generation to agents (MCP)"))
    add_agent(commands.add_parser("agent", help="do what a request asks, as privately as it can be done"))
    return parser


def _add_where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="NAME_OR_DIR", help="shipped weights, a folder or a hub id (default: embedded)"
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1, ..., or numpy: no PyTorch (default: auto)"
    )
    parser.add_argument("--column", default="prompt", help="the column that holds the prompts (default: prompt)")


def _add_compile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compile",
        nargs="?",
        const="inductor",
        metavar="BACKEND",
        help="run what torch.compile makes of the model, with this backend (default: inductor)",
    )


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    _add_where(parser)
    parser.add_argument("--concepts", type=Path, metavar="FILE", help="the bank: .txt, one a line, or .json, a list")
    parser.add_argument(
        "--threshold", type=_finite, metavar="T", help="block from this score on (default: the model's)"
    )


def add_screen(parser: argparse.ArgumentParser) -> None:
    """The options of ``screen``."""
    parser.add_argument(
        "--file_path",
        "--file-path",
        nargs="+",
        action="extend",
        type=Path,
        required=True,
        metavar="FILE",
        help="prompts: .txt (one a line), .csv, .tsv, .jsonl or .parquet, each also .gz or .zst; folders; patterns",
    )
    _add_model_options(parser)
    parser.add_argument(
        "--flag-margin",
        type=_finite,
        default=0.0,
        metavar="M",
        help="flag what comes within M below its threshold (default: 0, nothing)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="OUT",
        help=".csv, .jsonl or .parquet; or a folder, for parts, where an interrupted run is gone on with when the same "
        "command is given again; printed if left out",
    )
    parser.add_argument(
        "--keep", nargs="+", action="extend", default=[], metavar="COLUMN", help="other columns to carry over, or: all"
    )
    parser.add_argument("--only", choices=("blocked", "flagged", "allowed"), help="write these rows alone")
    parser.add_argument(
        "--cache",
        type=int,
        default=262_144,
        metavar="N",
        help="remember N prompts' verdicts (default: 262144; 0.3 KB each)",
    )
    parser.add_argument(
        "--near-duplicates",
        type=_finite,
        nargs="?",
        const=0.9,
        metavar="JACCARD",
        help="approximate: prompts that are nearly a clearly harmless one get its verdict (0.5 to 1, or 0.9)",
    )
    parser.add_argument(
        "--unusable",
        choices=("stop", "block"),
        default="stop",
        help="rows without a prompt that can be scored: end with an error, or write them as blocked (default: stop)",
    )
    parser.add_argument(
        "--part-rows",
        type=int,
        default=32_768,
        metavar="N",
        help="input rows for each part of a folder (default: 32768)",
    )
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="ray: with workers, on this machine or a cluster"
    )
    parser.add_argument("--address", metavar="ADDR", help="the Ray cluster (default: a Ray of this run's own)")
    parser.add_argument("--workers", type=int, metavar="N", help="guards at a time on Ray (default: one for each core)")
    parser.add_argument(
        "--num-gpus",
        type=float,
        default=0.0,
        metavar="X",
        help="the share of a GPU for each worker on Ray (default: 0)",
    )
    parser.add_argument(
        "--precision",
        help="of the encoder: int8 or fp32; in PyTorch, as on a GPU, fp32, bf16 or fp16 (default: its own)",
    )
    parser.add_argument(
        "--search",
        type=int,
        metavar="N",
        help="search a bank of N concepts or more instead of scoring all of them (docs/large-banks.md)",
    )
    _add_compile(parser)
    parser.set_defaults(run=_screen)


def add_train(parser: argparse.ArgumentParser) -> None:
    """The options of ``train``; those of the recipe have the defaults of ``TrainingArguments``."""
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=(),
        metavar="PATH",
        help="CoPro_v1.0.json, CoProV2 csv, or csv of concept, unsafe_prompt, safe_prompt; not needed with --grammar",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the weights folder to write")
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="FILE",
        help="harmless prompts, not in training, that the threshold is set on (default: those held out)",
    )
    parser.add_argument(
        "--false-positive-rate",
        type=_finite,
        default=0.01,
        metavar="R",
        help="the share of them that may be blocked (default: 0.01)",
    )
    parser.add_argument("--negatives", type=Path, nargs="+", default=(), metavar="FILE", help="harmless prompts")
    parser.add_argument(
        "--concept-names",
        type=Path,
        nargs="+",
        default=(),
        metavar="FILE",
        help="names by which to find the concept of CoProV2's rows",
    )
    parser.add_argument(
        "--exclude-prompts",
        type=Path,
        nargs="+",
        default=(),
        metavar="FILE",
        help="prompts that must not enter training",
    )
    parser.add_argument(
        "--exclude-concepts",
        type=Path,
        nargs="+",
        default=(),
        metavar="FILE",
        help="concepts that must not enter training",
    )
    parser.add_argument(
        "--bank", type=Path, metavar="FILE", help="the guard's default concepts (default: the project's)"
    )
    parser.add_argument(
        "--encoder",
        default="minilm-l6",
        metavar="NAME",
        help="minilm-l6, hf:HUB_ID_OR_FOLDER or open_clip:ARCH:PRETRAINED (default: minilm-l6)",
    )
    parser.add_argument(
        "--converted",
        type=Path,
        metavar="FOLDER",
        help="train over this conversion of the encoder (`python -m privacy passkey convert`), with its passkey",
    )
    add_passkey_file(parser)
    parser.add_argument(
        "--layers",
        nargs="+",
        type=int,
        metavar="N",
        help="the encoder's layers whose states are used, side by side; 0 is the embeddings (default: the last alone)",
    )
    parser.add_argument(
        "--grammar",
        type=int,
        default=0,
        metavar="N",
        help="pairs, and as many harmless prompts, that the built-in grammar adds to the data (default: 0)",
    )
    parser.add_argument(
        "--replacements",
        type=Path,
        metavar="FILE",
        help="other texts for concepts, as synthesize writes them: one half to train with, one to measure with",
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where token states are kept")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        help="of the layer's training; the encoder keeps its own (default: fp32 on a processor, bf16 on a GPU)",
    )
    _add_compile(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in DIR")
    for name, kind in (
        ("epochs", int),
        ("concepts-per-batch", int),
        ("negatives-per-batch", int),
        ("learning-rate", float),
        ("weight-decay", float),
        ("mentions", int),
        ("replaced", int),
        ("padded", float),
        ("token-dropout", float),
        ("hidden", int),
        ("head-dropout", float),
        ("averaging", float),
        ("held-out", float),
        ("held-out-pairs", float),
        ("evaluate-every", int),
        ("patience", int),
        ("seed", int),
    ):
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS, metavar=name[0].upper())
    parser.set_defaults(run=_train, command_line="python train.py " + shlex.join(sys.argv[1:]))


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """The options of ``evaluate``."""
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="prompt files, with a column 'unsafe' (0 or 1) where labels are known",
    )
    _add_model_options(parser)
    parser.add_argument(
        "--add-concepts",
        type=Path,
        metavar="FILE",
        help="concepts to add to the bank, as at run time; tells how many of the prompts that name one are blocked",
    )
    parser.add_argument("--reference", metavar="COLUMN", help="a column with another model's scores, to compare with")
    parser.add_argument("--precision", help="the embedded encoder's arithmetic: int8 or fp32 (default: its fastest)")
    parser.add_argument("--output", type=Path, metavar="OUT", help="write the figures to this .json file as well")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw ROC, histograms, reliability and t-SNE here")
    parser.set_defaults(run=_evaluate)


def add_robustness(parser: argparse.ArgumentParser) -> None:
    """The options of ``robustness``."""
    _add_where(parser)
    for name, columns in (
        ("fairness", "prompt, neutral, attribute, group"),
        ("harmless-uses", "prompt, word"),
        ("artist-styles", "prompt, artist"),
        ("evasions", "prompt, kind, category"),
    ):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"{columns} (default: the project's)")
    parser.add_argument("--labelled", type=Path, metavar="FILE", help="prompts with a column 'unsafe', to be attacked")
    parser.add_argument("--concepts", type=Path, metavar="FILE", help="the bank for --labelled (default: the model's)")
    parser.add_argument(
        "--explain", type=Path, nargs="+", default=(), metavar="FILE", help="prompts whose explanations are put to test"
    )
    parser.add_argument("--output", type=Path, metavar="OUT", help="write the figures to this .json file as well")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw gaps, evasions and ROC into this folder")
    parser.set_defaults(run=_robustness)


def add_calibrate(parser: argparse.ArgumentParser) -> None:
    """The options of ``calibrate``."""
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="FILE", help="harmless prompts as your users write them"
    )
    parser.add_argument(
        "--rate", type=_finite, default=0.01, metavar="R", help="the share of them that may be blocked (default: 0.01)"
    )
    _add_where(parser)
    parser.add_argument("--concepts", type=Path, metavar="FILE", help="the bank: .txt, one a line, or .json, a list")
    written = parser.add_mutually_exclusive_group()
    written.add_argument("--output", type=Path, metavar="DIR", help="a new weights folder, with that threshold")
    written.add_argument("--in-place", action="store_true", help="change the folder of --model itself")
    parser.set_defaults(run=_calibrate)


def add_join(parser: argparse.ArgumentParser) -> None:
    """The options of ``join``."""
    parser.add_argument("--mapping", type=Path, required=True, metavar="DIR", help="the mapping layer's weights folder")
    parser.add_argument("--prompt-head", type=Path, required=True, metavar="DIR", help="the prompt head's")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the weights folder to write")
    parser.add_argument("--threshold", type=_finite, required=True, metavar="T", help="block from this score on")
    parser.set_defaults(run=_join)


def add_import_official(parser: argparse.ArgumentParser) -> None:
    """The options of ``import-official``."""
    parser.add_argument("checkpoint", type=Path, help="the published model_parameters.pth")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the weights folder to write")
    parser.add_argument("--threshold", type=_finite, required=True, metavar="T", help="block from this score on")
    parser.add_argument("--concepts", type=Path, metavar="FILE", help="the default bank (default: the project's)")
    parser.add_argument(
        "--encoder",
        default="hf:openai/clip-vit-large-patch14",
        metavar="NAME",
        help="where to find CLIP ViT-L/14 (default: %(default)s)",
    )
    parser.set_defaults(run=_import_official)


def add_encoder(parser: argparse.ArgumentParser) -> None:
    """The options of ``encoder``."""
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.set_defaults(run=_encoder)


def _finite(text: str) -> float:
    from latentguard.errors import PolicyError
    from latentguard.policy import checked_threshold

    try:
        return checked_threshold(text)
    except PolicyError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
