"""Watching, fetching and cancelling jobs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path, Response
from fastapi.responses import JSONResponse

from latentguard.service.errors import JobNotDoneError, JobNotFoundError
from latentguard.service.jobs import Job
from latentguard.service.routes.keyed import KeyOf, ServicesOf, errors, keyed_router
from latentguard.service.schemas import JobBody, JobList

router = keyed_router(None, tag="jobs")

JobId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]


def accepted(job: Job) -> Response:
    """The answer to a request that was handed in as a job."""
    return JSONResponse(body_of(job).model_dump(), 202, {"location": f"/v1/jobs/{job.id}"})


def body_of(job: Job) -> JobBody:
    """A job as a client sees it."""
    return JobBody(**{name: getattr(job, name) for name in JobBody.model_fields})


@router.get("/v1/jobs", response_model=JobList, responses=errors())
async def list_jobs(services: ServicesOf, key: KeyOf) -> Any:
    """The jobs of this key."""
    return JobList(jobs=[body_of(job) for job in await services.jobs.list(key.id)])


@router.get("/v1/jobs/{job_id}", response_model=JobBody, responses=errors(JobNotFoundError))
async def get_job(job_id: JobId, services: ServicesOf, key: KeyOf) -> Any:
    """How far a job is."""
    return body_of(await services.jobs.get(key.id, job_id))


@router.get(
    "/v1/jobs/{job_id}/result",
    response_class=Response,
    responses={
        **errors(JobNotFoundError, JobNotDoneError),
        200: {
            "description": "What the job made, as the endpoint that took it answers",
            "content": {"application/json": {}},
        },
    },
)
async def get_result(job_id: JobId, services: ServicesOf, key: KeyOf) -> Response:
    """What a job made."""
    result = await services.jobs.result(key.id, job_id)
    return Response(result.content, media_type=result.media_type)


@router.delete("/v1/jobs/{job_id}", response_model=JobBody, responses=errors(JobNotFoundError))
async def cancel_job(job_id: JobId, services: ServicesOf, key: KeyOf) -> Any:
    """Ends a job, if it isn't over."""
    return body_of(await services.jobs.cancel(key.id, job_id))
