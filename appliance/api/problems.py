"""Every error the API gives: one table, from which the responses and the OpenAPI document are made."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from flask import Response

if TYPE_CHECKING:
    from collections.abc import Mapping

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:testudo:problem:"


@dataclass(frozen=True)
class ProblemType:
    """One kind of error. `detail` is its text unless the place that raises it knows better.

    `error_type` is the `type` in OpenAI's error object. `retry` False makes OpenAI's client give up at once
    where it would else try twice more in vain; None leaves it to its rules (408, 409, 429 and 5xx).
    """

    status: int
    title: str
    detail: str
    error_type: str = "invalid_request_error"
    retry: bool | None = None


# OpenAI's word for what no retry helps with before the month is over.
QUOTA = ("insufficient_quota", False)

PROBLEMS: Mapping[str, ProblemType] = {
    "invalid_request": ProblemType(400, "Malformed request", "The request is not well-formed HTTP."),
    "invalid_json": ProblemType(400, "Malformed JSON", "The body is not a JSON object in UTF-8."),
    "missing_field": ProblemType(400, "Missing field", "A required field is missing."),
    "unknown_field": ProblemType(400, "Unknown field", "The body has a field that this API doesn't know."),
    "invalid_field": ProblemType(400, "Invalid field", "A field has a value of the wrong type or size."),
    "input_empty": ProblemType(400, "Empty input", "The input holds no text."),
    "input_too_long": ProblemType(400, "Input too long", "The input has too many characters."),
    "input_not_speakable": ProblemType(
        400, "Input not speakable", "The input holds nothing the model can say."
    ),
    "unsupported_format": ProblemType(400, "Unsupported format", "The response_format is not supported."),
    "unsupported_option": ProblemType(400, "Unsupported option", "An option asks for what isn't supported."),
    "unsupported_language": ProblemType(
        400, "Unsupported language", "There is no consent statement in this language."
    ),
    "recording_refused": ProblemType(
        400, "Recording refused", "A recording cannot be used; `faults` says which, and why.", retry=False
    ),
    "too_many_samples": ProblemType(400, "Too many samples", "A voice has no or too many samples."),
    "samples_too_long": ProblemType(400, "Samples too long", "The samples of a voice are too long together."),
    "speaker_mismatch": ProblemType(
        400, "Speaker mismatch", "The samples do not sound like the speaker of the consent.", retry=False
    ),
    "confirmation_required": ProblemType(
        400, "Confirmation required", "To erase the tenant, `confirm` must repeat its name."
    ),
    "missing_api_key": ProblemType(401, "API key required", "Send `Authorization: Bearer <API key>`."),
    "invalid_api_key": ProblemType(401, "Invalid API key", "The API key is unknown, expired or revoked."),
    "invalid_token": ProblemType(
        401, "Invalid token", "The bearer token is no API key, or a token that is not accepted here."
    ),
    "insufficient_scope": ProblemType(403, "Insufficient scope", "The API key does not allow this."),
    "consent_ended": ProblemType(
        403, "Consent ended", "The speaker's consent was revoked, or its term is over.", retry=False
    ),
    "tenant_not_served": ProblemType(
        403, "Tenant not served", "The caller's tenant does not exist or is suspended.", retry=False
    ),
    "not_found": ProblemType(404, "Not found", "There is nothing at this path."),
    "unknown_model": ProblemType(
        404, "Unknown model", "No model has this id; GET /v1/models lists the models."
    ),
    "unknown_voice": ProblemType(
        404, "Unknown voice", "No voice has this id; GET /v1/models lists the voices."
    ),
    "job_not_found": ProblemType(404, "Unknown job", "No job has this id; list them to see which there are."),
    "unknown_consent": ProblemType(
        404, "Unknown consent", "No consent has this id; GET /v1/audio/voice_consents lists them."
    ),
    "voice_changed": ProblemType(
        409, "Voice changed", "The voice was changed in the meantime; look at it and try again.", retry=False
    ),
    "legal_hold": ProblemType(409, "Legal hold", "A legal hold keeps this.", retry=False),
    "job_not_finished": ProblemType(
        409, "Job not finished", "The job has no audio yet; ask for its status first.", retry=False
    ),
    "job_has_no_audio": ProblemType(
        409, "Job without audio", "The job failed, was cancelled, or its audio is erased.", retry=False
    ),
    "job_finished": ProblemType(
        409, "Job finished", "The job has ended and cannot be cancelled.", retry=False
    ),
    "unknown_target": ProblemType(404, "Unknown target", "The tenant has nothing with this id."),
    "unknown_erasure": ProblemType(404, "Unknown erasure", "No erasure has this id."),
    "unknown_hold": ProblemType(404, "Unknown hold", "No legal hold has this id."),
    "method_not_allowed": ProblemType(405, "Method not allowed", "This path does not support this method."),
    "receipt_not_ready": ProblemType(
        409, "Receipt not ready", "The erasure is not done yet; its status says how far it is.", retry=False
    ),
    "tenant_erased": ProblemType(
        409, "Tenant erased", "The tenant's erasure has begun; nothing of it can be held.", retry=False
    ),
    "body_too_large": ProblemType(413, "Body too large", "The request body is too large."),
    "unsupported_media_type": ProblemType(
        415, "Unsupported media type", "Send the body in the content type of the route, not compressed."
    ),
    "idempotency_key_reused": ProblemType(
        422, "Idempotency key reused", "This Idempotency-Key came with another request before.", retry=False
    ),
    "too_many_jobs": ProblemType(
        429, "Too many jobs", "The tenant's unfinished jobs are as many as may be.", "rate_limit_error"
    ),
    "too_many_streams": ProblemType(
        429, "Too many streams", "All streams are in use; try again later.", "rate_limit_error", retry=True
    ),
    "rate_limited": ProblemType(
        429,
        "Too many requests",
        "The tenant's requests of this minute are used up.",
        "rate_limit_error",
        True,
    ),
    "quota_characters": ProblemType(
        429, "Characters used up", "The tenant's characters of this month do not suffice.", *QUOTA
    ),
    "quota_accelerator": ProblemType(
        429, "Accelerator time used up", "The tenant's accelerator time of this month is used up.", *QUOTA
    ),
    "engine_busy": ProblemType(
        429, "Engine busy", "The engine's queue is full; try again later.", "rate_limit_error"
    ),
    "too_many_uploads": ProblemType(
        429, "Too many uploads", "As many uploads as are taken at once are under way.", "rate_limit_error"
    ),
    "client_closed": ProblemType(
        499, "Client closed request", "The caller hung up before the speech began.", retry=False
    ),
    "internal_error": ProblemType(
        500, "Internal error", "The API failed; its log has the request id.", "server_error"
    ),
    "content_unreadable": ProblemType(
        500,
        "Content unreadable",
        "What is kept of this does not open: it was changed, or its key is gone. Tell the operator.",
        "server_error",
        retry=False,
    ),
    "engine_failed": ProblemType(
        500, "Engine failed", "The engine could not speak this; its log has the request id.", "server_error"
    ),
    "decoder_unavailable": ProblemType(
        503, "Decoder unavailable", "No recording can be decoded now; try again later.", "server_error"
    ),
    "engine_unavailable": ProblemType(
        503, "Engine unavailable", "The engine is not ready; try again later.", "server_error"
    ),
    "state_unavailable": ProblemType(
        503,
        "State unavailable",
        "The database or the keys cannot be reached now; try again later.",
        "server_error",
        retry=True,
    ),
    "identity_provider_unavailable": ProblemType(
        503,
        "Identity provider unavailable",
        "The caller's identity provider does not answer.",
        "server_error",
    ),
    "deadline_exceeded": ProblemType(
        504, "Deadline exceeded", "The speech did not begin in time.", "server_error", retry=False
    ),
    "http_version_not_supported": ProblemType(
        505, "HTTP version not supported", "Use HTTP/1.1 or HTTP/2.", "server_error", retry=False
    ),
}


class Problem(Exception):  # noqa: N818 - the term of RFC 9457
    """An error to answer with. `param` names the field at fault, `retry_after` is in seconds.

    `more` are members of its own (RFC 9457, 3.2).
    """

    def __init__(
        self,
        code: str,
        detail: str | None = None,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(code)
        self.code = code
        self.type = PROBLEMS[code]
        self.detail = detail or self.type.detail
        self.param = param
        self.retry_after = retry_after
        self.headers = dict(headers or {})
        self.more = dict(more or {})

    def response(self, request_id: str) -> Response:
        """RFC 9457 members plus OpenAI's `error` object, without which its client loses code and param."""
        body = {
            "type": TYPE_PREFIX + self.code,
            "title": self.type.title,
            "status": self.type.status,
            "detail": self.detail,
            "instance": f"urn:uuid:{request_id}",
            "code": self.code,
            "request_id": request_id,
            "error": {
                "message": self.detail,
                "type": self.type.error_type,
                "param": self.param,
                "code": self.code,
            },
            **self.more,
        }
        response = Response(
            json.dumps(body), self.type.status, mimetype=MEDIA_TYPE, headers=list(self.headers.items())
        )
        if self.retry_after is not None:
            response.headers["Retry-After"] = str(max(1, round(self.retry_after)))
        if self.type.retry is not None:
            response.headers["x-should-retry"] = str(self.type.retry).lower()
        return response


def documented(*codes: str) -> dict[str | int | HTTPStatus, Any]:
    """OpenAPI response objects for these codes, one per status."""
    by_status = defaultdict(list)
    for code in codes:
        by_status[PROBLEMS[code].status].append(code)
    return {
        str(status): _documented("\n".join(f"- `{code}`: {PROBLEMS[code].detail}" for code in names), status)
        for status, names in sorted(by_status.items())
    }


def _documented(description: str, status: int) -> dict[str, Any]:
    headers = HEADERS_OF_STATUS.get(status, {})
    return {
        "description": description,
        "headers": {"x-request-id": {"schema": {"type": "string", "format": "uuid"}}, **headers},
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
    }


RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
SHOULD_RETRY = {"x-should-retry": {"schema": {"type": "string", "enum": ["true", "false"]}}}
RATE_LIMIT = {
    name: {"schema": {"type": "string"}, "description": "Where the plan limits requests per minute."}
    for name in ("RateLimit", "RateLimit-Policy")
}
CHALLENGE = {"WWW-Authenticate": {"schema": {"type": "string"}}}
HEADERS_OF_STATUS: Mapping[int, Any] = {
    401: CHALLENGE,
    403: CHALLENGE,
    429: RETRY_AFTER | SHOULD_RETRY | RATE_LIMIT,
    500: SHOULD_RETRY,
    503: RETRY_AFTER | SHOULD_RETRY,
}
ANY_OTHER: dict[str | int | HTTPStatus, Any] = {"default": _documented("Any other problem.", 0)}
