"""Jobs over HTTP: how they look, and their refusals as problems."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.api.problems import PROBLEMS, Problem
from appliance.api.schemas import JobFault, SpeechJob

if TYPE_CHECKING:
    from datetime import datetime

    from appliance.jobs import reading
    from appliance.jobs.errors import JobError, RefusedError

RETRY_SECONDS = 2
# A job that ends makes room for one; how soon depends on the text.
FULL_RETRY_SECONDS = 30.0
FIELDS = {"invalid_idempotency_key": "Idempotency-Key", "invalid_cursor": "after"}


def problem_of_job(error: JobError) -> Problem:
    """The problem that a refusal is to the caller."""
    if error.code in FIELDS:
        return Problem("invalid_field", error.message, param=FIELDS[error.code])
    retry_after = FULL_RETRY_SECONDS if error.code == "too_many_jobs" else None
    return Problem(error.code, error.message, retry_after=retry_after)


def problem_of_shut_gate(error: RefusedError) -> Problem:
    """The problem that a shut gate is to the caller."""
    return Problem(error.code if error.code in PROBLEMS else "unknown_voice", param="voice")


def shown(job: reading.SpeechJob) -> SpeechJob:
    """A job as the API shows it."""
    return SpeechJob(
        id=job.id,
        status=job.status.value,
        created_at=_seconds(job.created_at),
        finished_at=_seconds(job.finished_at),
        model=job.model,
        voice=job.voice,
        response_format=job.audio_format,
        characters=job.characters,
        attempts=job.attempts,
        output_id=job.output_id,
        consent_id=job.consent_id,
        error=JobFault(code=job.error_code) if job.error_code else None,
    )


def _seconds(moment: datetime | None) -> int | None:
    return int(moment.timestamp()) if moment else None
