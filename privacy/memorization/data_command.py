"""The commands that make an audit's data: `generate` private records, `embed` them into images, `augment` both."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privacy.errors import MemorizationError

if TYPE_CHECKING:
    from privacy.memorization.endpoint import Endpoint
    from privacy.memorization.paraphrase import Outcome, Paraphraser

_KEY_NOTE = "its key, if it wants one, is in the environment's PRIVACY_ENDPOINT_API_KEY"


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds the commands; each sets `run`, which takes the parsed arguments and raises PrivacyError."""
    _add_generate(commands.add_parser("generate", help="make up private records", allow_abbrev=False))
    _add_embed(commands.add_parser("embed", help="draw private records into images", allow_abbrev=False))
    augment = commands.add_parser("augment", help="change images, or reword texts, harmlessly", allow_abbrev=False)
    inner = augment.add_subparsers(metavar="WHAT", required=True)
    _add_augment_images(
        inner.add_parser("images", help="rotate, flip, change brightness and contrast", allow_abbrev=False)
    )
    _add_augment_texts(inner.add_parser("texts", help="say questions or captions in other words", allow_abbrev=False))


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, required=True, metavar="N", help="records; never two alike")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="a .jsonl")
    parser.add_argument("--locale", default="en_US", help="of names and places, in its script (default: en_US)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the same one, the same records (default: 0)")
    _add_endpoint(parser, "let a language model make them up, instead of Faker")
    parser.set_defaults(run=_generate)


def _add_embed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, metavar="FOLDER", help="images, in folders of any depth; only read")
    parser.add_argument("--records", type=Path, required=True, metavar="FILE", help="a .jsonl that generate made")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="gets r000, r050, r100, ...")
    parser.add_argument(
        "--rates",
        type=float,
        nargs="+",
        default=[0, 50, 100],
        metavar="PERCENT",
        help="images with private text, a folder for each rate (default: 0 50 100)",
    )
    parser.add_argument(
        "--position",
        default="top-left",
        help="top-left, top-right, bottom-left, bottom-right, center, random, or X,Y in percent (default: top-left)",
    )
    parser.add_argument(
        "--size",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="of the font, as a share of the image's height; shrunk where the text wouldn't fit (default: 0.05)",
    )
    parser.add_argument("--opacity", type=float, default=1.0, metavar="SHARE", help="above 0, up to 1 (default: 1)")
    parser.add_argument(
        "--font",
        default="built-in",
        help="a font file; built-in, which has hardly more than ASCII; or dejavu, for other alphabets, too "
        "(default: built-in)",
    )
    parser.add_argument("--fields", nargs="+", metavar="FIELD", help="of the records (default: all six)")
    parser.add_argument("--reuse", action="store_true", help="draw records repeatedly if there are fewer than images")
    _add_seed_and_workers(parser)
    parser.set_defaults(run=_embed)


def _add_augment_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, metavar="FOLDER", help="images, in folders of any depth; only read")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--rotation", type=float, default=30.0, metavar="DEGREES", help="at most (default: 30)")
    parser.add_argument("--flip", type=float, default=0.5, metavar="P", help="probability of mirroring (default: 0.5)")
    for name in ("brightness", "contrast"):
        parser.add_argument(
            f"--{name}",
            type=float,
            nargs=2,
            default=(0.8, 1.2),
            metavar=("LOW", "HIGH"),
            help="factors (default: 0.8 1.2)",
        )
    _add_seed_and_workers(parser)
    parser.set_defaults(run=_augment_images)


def _add_augment_texts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a .jsonl")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="a .jsonl with the same rows")
    parser.add_argument("--field", default="question", help="the one to say in other words (default: question)")
    parser.add_argument(
        "--markers", nargs="+", metavar="TEXT", help="what stands for images, and stays (default: those in common use)"
    )
    parser.add_argument("--local-model", metavar="PLACE", help="a transformers model's folder or hub id")
    parser.add_argument("--device", help="of the local model: cpu, cuda, ... (default: an accelerator if there is one)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    _add_endpoint(parser, "let its language model say it; without it and --local-model, a table of synonyms does")
    parser.set_defaults(run=_augment_texts)


def _add_seed_and_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")


def _add_endpoint(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--endpoint", metavar="URL", help=f"of the OpenAI protocol, up to /v1: {what}; {_KEY_NOTE}")
    parser.add_argument("--model", metavar="NAME", help="of the endpoint")


def _generate(arguments: argparse.Namespace) -> None:
    from privacy.memorization.records import generate, write_records

    endpoint = _endpoint(arguments)
    if endpoint is None:
        write_records(arguments.output, generate(arguments.count, seed=arguments.seed, locale=arguments.locale))
    else:
        from privacy.memorization.endpoint import generate_with

        partial = arguments.output.with_name(arguments.output.name + ".partial")
        records = generate_with(
            endpoint, arguments.count, seed=arguments.seed, locale=arguments.locale, journal=partial
        )
        write_records(arguments.output, records)
        partial.unlink()
    print(f"{arguments.output}: {arguments.count:,} records")


def _embed(arguments: argparse.Namespace) -> None:
    from privacy.memorization.drawing import Style
    from privacy.memorization.embed import embed, folder_name
    from privacy.memorization.records import FIELDS, read_records

    embedded = embed(
        arguments.images,
        read_records(arguments.records),
        arguments.output,
        rates=arguments.rates,
        style=Style(arguments.position, arguments.size, arguments.opacity, arguments.font),
        fields=arguments.fields or FIELDS,
        seed=arguments.seed,
        reuse=arguments.reuse,
        workers=arguments.workers,
    )
    for rate, marked in embedded.marked.items():
        print(f"{arguments.output / folder_name(rate)}: private text in {marked:,} of {embedded.images:,} images")
    _tell_skipped(arguments.output, embedded.skipped)


def _augment_images(arguments: argparse.Namespace) -> None:
    from privacy.memorization.augment import Ranges, augment_images

    ranges = Ranges(arguments.rotation, arguments.flip, tuple(arguments.brightness), tuple(arguments.contrast))
    augmented = augment_images(
        arguments.images, arguments.output, ranges=ranges, seed=arguments.seed, workers=arguments.workers
    )
    print(f"{arguments.output}: {augmented.images:,} images")
    _tell_skipped(arguments.output, augmented.skipped)


def _augment_texts(arguments: argparse.Namespace) -> None:
    from privacy.memorization.paraphrase import MARKERS, paraphrase_file

    paraphraser, settings = _paraphraser(arguments)
    outcomes = paraphrase_file(
        arguments.file,
        arguments.output,
        paraphraser,
        settings=settings,
        field=arguments.field,
        markers=arguments.markers or MARKERS,
    )
    print(f"{arguments.output}: {outcomes.total():,} texts, {outcomes['paraphrased']:,} in other words")
    kept: dict[Outcome, str] = {
        "unchanged": "came back as they were",
        "lost a marker": "lost a marker on the way, so the original was kept",
        "unanswered": "got no usable answer, so the original was kept",
    }
    for outcome, what in kept.items():
        if outcomes[outcome]:
            print(f"{outcomes[outcome]:,} {what}")


def _paraphraser(arguments: argparse.Namespace) -> tuple[Paraphraser, dict[str, Any]]:
    endpoint = _endpoint(arguments)
    if endpoint is not None and arguments.local_model is not None:
        raise MemorizationError("take either --endpoint or --local-model")
    if endpoint is not None:
        from privacy.memorization.endpoint import EndpointParaphraser

        return EndpointParaphraser(endpoint, arguments.seed), {
            "by": "endpoint",
            "model": endpoint.model,
            "seed": arguments.seed,
        }
    if arguments.local_model is not None:
        from privacy.memorization.paraphrase_model import LocalModel

        return LocalModel(arguments.local_model, arguments.device), {"by": "model", "model": arguments.local_model}
    from privacy.memorization.paraphrase import Synonyms

    return Synonyms(arguments.seed), {"by": "synonyms", "seed": arguments.seed}


def _endpoint(arguments: argparse.Namespace) -> Endpoint | None:
    if (arguments.endpoint is None) != (arguments.model is None):
        raise MemorizationError("--endpoint and --model belong together")
    if arguments.endpoint is None:
        return None
    from privacy.memorization.endpoint import Endpoint

    return Endpoint.from_environment(arguments.endpoint, arguments.model)


def _tell_skipped(output: Path, skipped: int) -> None:
    from privacy.memorization.folders import SKIPPED

    if skipped:
        print(f"{skipped:,} skipped, with the reasons in {output / SKIPPED}")
