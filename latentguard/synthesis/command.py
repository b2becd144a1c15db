"""The commands `synthesize` and `attack`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .backends import Backend

_BACKENDS = ("grammar", "openai", "transformers")
_KINDS = ("synonym", "adversarial", "characters", "order", "padding", "halves")


def add_synthesize(parser: argparse.ArgumentParser) -> None:
    """The options of ``synthesize``."""
    parser.add_argument("--concepts", type=Path, required=True, metavar="FILE", help=".txt, one a line, or .json")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT", help="the .json data set to write")
    parser.add_argument(
        "--backend",
        choices=_BACKENDS,
        default="grammar",
        help="who writes: the built-in grammar, an OpenAI-compatible endpoint, or a local model (default: grammar)",
    )
    parser.add_argument("--per-concept", type=int, default=50, metavar="N", help="pairs for each concept (default: 50)")
    parser.add_argument("--synonyms", type=int, default=3, metavar="K", help="synonyms of each concept (default: 3)")
    parser.add_argument(
        "--adversarial", type=int, default=0, metavar="K", help="adversarial replacements of each (default: 0)"
    )
    parser.add_argument(
        "--encoder",
        default="minilm-l6",
        metavar="NAME",
        help="what they are searched against: minilm-l6 or hf:HUB_ID_OR_FOLDER (default: minilm-l6)",
    )
    parser.add_argument(
        "--base-url", metavar="URL", help="the endpoint, up to /v1 (default: $LATENTGUARD_SYNTHESIS_BASE_URL)"
    )
    parser.add_argument(
        "--model", help="the endpoint's model, or a hub id or folder (default: $LATENTGUARD_SYNTHESIS_MODEL)"
    )
    parser.add_argument("--parallel", type=int, default=4, metavar="N", help="requests at once (default: 4)")
    parser.add_argument("--device", default="auto", help="where a local model runs: auto, cpu, cuda, ...")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="(default: 0)")
    parser.add_argument("--resume", action="store_true", help="go on with the run that was cut off")
    parser.set_defaults(run=_synthesize)


def add_attack(parser: argparse.ArgumentParser) -> None:
    """The options of ``attack``."""
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        metavar="FILE",
        help="labelled prompts (columns prompt, unsafe, concept) or a file of pairs",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="OUT", help="prompt, concept, unsafe: .csv, .jsonl or .parquet"
    )
    parser.add_argument("--kind", choices=_KINDS, required=True, help="what is done to the prompts")
    parser.add_argument(
        "--replacements",
        type=Path,
        metavar="FILE",
        help="for synonym and adversarial: what synthesize wrote",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="(default: 0)")
    parser.set_defaults(run=_attack)


def _synthesize(arguments: argparse.Namespace) -> None:
    from latentguard.files import check_target
    from latentguard.records import read_concepts

    # Whatever can be wrong is said before a model is loaded or a request is paid for.
    concepts = read_concepts(arguments.concepts)
    check_target(arguments.output)

    from .generate import SynthesisSettings, synthesize

    settings = SynthesisSettings(arguments.per_concept, arguments.synonyms, arguments.adversarial, arguments.seed)
    search = None
    if settings.adversarial:
        from .attack import AdversarialSearch

        search = AdversarialSearch(arguments.encoder, seed=settings.seed)
    backend = _backend(arguments)
    report = synthesize(concepts, arguments.output, backend, settings, search=search, resume=arguments.resume)
    print("\n".join(report.lines()))
    print(f"wrote {arguments.output}")


def _backend(arguments: argparse.Namespace) -> Backend:
    from .backends import BackendError, GrammarBackend, LanguageModelBackend

    if arguments.backend == "grammar":
        from .grammar import Grammar

        return GrammarBackend(Grammar.load())
    if arguments.backend == "openai":
        from .endpoint import Endpoint, EndpointSettings

        settings = EndpointSettings.from_environment(arguments.base_url, arguments.model, parallel=arguments.parallel)
        return LanguageModelBackend(Endpoint(settings))
    from .local_model import LocalModel

    if not arguments.model:
        raise BackendError("no model: give --model")
    return LanguageModelBackend(LocalModel(arguments.model, device=arguments.device))


def _attack(arguments: argparse.Namespace) -> None:
    from latentguard.errors import DataError
    from latentguard.records import check_output

    from .splits import REPLACING, attack_prompts, read_labelled, read_replacements, write_labelled

    check_output(arguments.output)
    if arguments.kind in REPLACING and arguments.replacements is None:
        raise DataError(f"--kind {arguments.kind} needs --replacements")
    if arguments.kind not in REPLACING and arguments.replacements is not None:
        raise DataError(f"--kind {arguments.kind} takes no --replacements")
    prompts = read_labelled(arguments.input)
    replacements = None
    if arguments.replacements is not None:
        replacements = read_replacements(arguments.replacements, arguments.kind)
    attacked, report = attack_prompts(prompts, arguments.kind, seed=arguments.seed, replacements=replacements)
    if not attacked:
        raise DataError(f"{arguments.input}: no prompt is left to write: {'; '.join(report.lines())}")
    write_labelled(attacked, arguments.output)
    print("\n".join(report.lines()))
    print(f"wrote {arguments.output}")
