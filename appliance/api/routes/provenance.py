"""Where a recording comes from."""

# Annotations are read at run time by flask-openapi, so they are not postponed here.

from typing import Literal

import numpy as np
from flask import Response
from flask_openapi.models.file import FileStorage
from flask_openapi.models.tag import Tag
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from appliance.api.answers import json_of
from appliance.api.blueprint import (
    BEARER,
    ENGINE_PROBLEMS,
    KEY_PROBLEMS,
    QUOTA_PROBLEMS,
    UPLOAD_PROBLEMS,
    api,
    needs,
    uploads,
)
from appliance.api.context import caller, record, services
from appliance.api.problems import documented
from appliance.api.voice_schemas import RECORDING, Form
from appliance.identity.principal import Scope
from appliance.provenance.verify import Report, examine
from appliance.tenancy.intake import RATE

NO_PROOF = (
    "No verdict is proof: a watermark can be removed or imitated, and a manifest cut off. What is not found "
    "may have been there."
)


class ProvenanceForm(Form):
    """What `POST /v1/audio/provenance/verify` takes."""

    file: FileStorage = Field(description=f"The recording: {RECORDING}")


class WatermarkVerdict(BaseModel):
    """What the watermark's score means: `found` from `found_from` on, `not_found` up to `not_found_to`."""

    verdict: Literal["found", "not_found", "inconclusive"]
    score: float | None = Field(description="0 to 1; null where the recording is too short or too quiet.")
    found_from: float
    not_found_to: float


class ManifestVerdict(BaseModel):
    """What a C2PA manifest says, where it is valid under this appliance's certificate."""

    verdict: Literal["valid", "invalid", "absent"]
    output_id: str | None
    model: str | None
    consent_id_sha256: str | None
    spoken_disclosure: bool | None = Field(description="null where no manifest is valid.")
    faults: list[str]


class Provenance(BaseModel):
    """What was found of a recording's origin."""

    object: Literal["audio.provenance"] = "audio.provenance"
    watermark: WatermarkVerdict
    c2pa: ManifestVerdict
    notice: str

    @classmethod
    def of(cls, report: Report) -> "Provenance":
        """A report as it is shown."""
        return cls(
            watermark=WatermarkVerdict(
                verdict=report.watermark.value,
                score=None if report.score is None else round(report.score, 4),
                found_from=report.found,
                not_found_to=report.not_found,
            ),
            c2pa=ManifestVerdict(
                verdict=report.manifest.value,
                output_id=report.output_id,
                model=report.model,
                consent_id_sha256=report.consent_sha256,
                spoken_disclosure=report.disclosed,
                faults=list(report.faults),
            ),
            notice=NO_PROOF,
        )


@api.post(
    "/v1/audio/provenance/verify",
    tags=[Tag(name="Provenance")],
    operation_id="verifyProvenance",
    security=BEARER,
    responses={
        "200": Provenance,
        **documented(*(*KEY_PROBLEMS, *UPLOAD_PROBLEMS, *QUOTA_PROBLEMS, *ENGINE_PROBLEMS, "internal_error")),
    },
)
@needs(Scope.PROVENANCE_VERIFY)
@uploads
def verify_provenance(form: ProvenanceForm) -> Response:
    """Look for this appliance's watermark and manifest in a recording, which is not kept."""
    at, tenant = services(), caller().tenant
    content = form.file.read()
    clip = at.studio.decoded(content)
    with at.quotas.begin(tenant, 0) as account:

        def detect(samples: NDArray[np.float32], _rate: int) -> float:
            found = at.engine.detect(
                request_id=record().id,
                tenant=tenant,
                samples=samples.astype("<f4").tobytes(),
                deadline=at.settings.synthesis_deadline_seconds,
            )
            account.charge(found.accelerator_seconds)
            return found.score

        report = examine(content, clip.samples, RATE, detect, at.origin.roots)
    return json_of(Provenance.of(report))
