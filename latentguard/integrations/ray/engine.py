"""Screening into a folder on Ray Data: parts are read here, screened by a pool of workers, and written here.

No file system has to be shared: inputs and output are those of the machine that runs this, and the weights have to be
there by their name on every machine. A worker that is killed is started again, and its part is screened again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from latentguard.encoders.base import available_cores
from latentguard.errors import DataError
from latentguard.integrations.ray.session import connected
from latentguard.screening.folder import PartFolder, check_folder, opened_folder
from latentguard.screening.inputs import find_inputs
from latentguard.screening.manifest import GuardIdentity, Plan
from latentguard.screening.options import ScreeningOptions
from latentguard.screening.recipe import GuardRecipe
from latentguard.screening.summary import ScreeningSummary

_CORES_A_WORKER = 1


def screen_on_ray(
    recipe: GuardRecipe,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    options: ScreeningOptions | None = None,
    address: str | None = None,
    workers: int | None = None,
    num_gpus: float = 0.0,
) -> ScreeningSummary:
    """As :func:`latentguard.screening.folder.screen_folder`, with the guards of ``recipe`` in workers of Ray.

    A run that was begun with or without Ray may be gone on with either way.

    Args:
        address: a cluster that is running, as for ``ray.init``; without it, a Ray on this machine for this run.
        workers: how many guards at a time, each with a core; by default as many as there are cores, or as
            ``num_gpus`` fit on the GPUs.
        num_gpus: the share of a GPU for each worker; 0 for none.

    Raises:
        MissingDependencyError: Ray isn't installed.
        DataError: as `screen_folder`; there is no such cluster; or a worker's guard is not this process's.
        LatentGuardError: as :meth:`LatentGuard.check`.
    """
    if workers is not None and workers < 1:
        raise DataError(f"the number of workers is {workers}, which is below 1")
    if not 0 <= num_gpus < float("inf"):
        raise DataError(f"the share of a GPU for a worker is {num_gpus}, which is no share")
    options = options or ScreeningOptions()
    paths = find_inputs([inputs] if isinstance(inputs, (str, Path)) else inputs)
    check_folder(output, paths)
    guard = recipe.guard(device="cpu", threads=_CORES_A_WORKER)
    identity = GuardIdentity.of(guard)
    if num_gpus:
        identity = identity.on("cuda")
    plan = Plan.of(paths, options, identity, flags=guard.policy.flag_margin > 0)
    del guard
    with (
        connected(address, workers or available_cores()),
        opened_folder(output, plan) as folder,
        closing(folder.progress()) as bar,
    ):
        for record, content in _screened(plan, recipe.elsewhere(), folder, workers, num_gpus):
            folder.add(record, content)
            bar.advance(record.rows, record.bytes_read)
        return folder.finish()


def _screened(
    plan: Plan, recipe: GuardRecipe, folder: PartFolder, workers: int | None, num_gpus: float
) -> Iterator[Any]:
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from latentguard.integrations.ray.workers import Job, PartScreener, PartSource, finished_part

    job = Job(
        sources=plan.sources,
        options=plan.options,
        layout=plan.layout,
        recipe=recipe,
        identity=plan.guard,
        device="cuda" if num_gpus else "cpu",
        threads=_CORES_A_WORKER,
        run=folder.run,
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a part is a block, so that it can be screened as soon as it is read
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    parts = ray.data.read_datasource(
        PartSource(job, folder.done),
        num_cpus=0,  # a worker's share of reading is small, and a core it would have to itself is a worker less
        override_num_blocks=len(plan.sources),
        concurrency=min(len(plan.sources), available_cores()),
        scheduling_strategy=here,
    )
    finished = parts.map_batches(
        PartScreener,
        fn_constructor_args=(job,),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=_CORES_A_WORKER,
        num_gpus=num_gpus or None,
        compute=ray.data.ActorPoolStrategy(size=workers or _fitting(num_gpus)),
    )
    try:
        for batch in finished.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from map(finished_part, batch.to_pylist())
    except RayError as error:
        raise DataError(f"Ray gave up: {_first_line(error)}") from error


def _fitting(num_gpus: float) -> int:
    """How many workers the cluster has room for."""
    import ray

    resources = ray.cluster_resources()
    cores = int(resources.get("CPU", 0) // _CORES_A_WORKER)
    fitting = min(cores, int(resources.get("GPU", 0) // num_gpus)) if num_gpus else cores
    if not fitting:
        raise DataError("the Ray cluster has no room for a worker")
    return fitting


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
