"""What can be wrong with a request about jobs. Messages name limits and fields, never a value."""

from __future__ import annotations


class JobError(Exception):
    """A refusal with a stable `code`, the name of the API's problem.

    | code | meaning |
    |---|---|
    | `job_not_found` | the tenant has no job of this id |
    | `job_not_finished` | there is no audio yet |
    | `job_has_no_audio` | the job failed or was cancelled, or its audio has been erased |
    | `job_finished` | it has ended and can be cancelled no more |
    | `too_many_jobs` | the tenant has as many unfinished jobs as it may |
    | `idempotency_key_reused` | the key came with another request before |
    | `invalid_idempotency_key` | the key is not 1 to 255 printable characters of ASCII |
    | `invalid_cursor` | `after` is not the id of a job of the tenant's |
    | `unknown_voice` | the voice went away while the job was made |
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class RefusedError(Exception):
    """A voice may not speak, by the gate's `code`, such as `consent_ended`: for a job this is the end."""

    def __init__(self, code: str) -> None:
        super().__init__(f"the gate refuses: {code}")
        self.code = code
