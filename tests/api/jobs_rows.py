"""A job that has been carried out, as `testudo-jobs` leaves it."""

from appliance.identity.principal import Principal, Scope
from appliance.jobs.payload import Payload, SpeechOrder
from appliance.store.ids import new_id
from appliance.store.tables import Job, JobState, Speech
from appliance.tenancy.house import Tenancy

ORDER = SpeechOrder(text="Hello.", model="fake", voice="demo", audio_format="wav")


def finished_job(tenancy: Tenancy, tenant: str) -> str:
    job, output, now = new_id("job"), new_id("out"), tenancy.now()
    caller = Principal(tenant, "tester", frozenset(Scope), "api_key", "k1")
    details = {"format": "wav", "model": "fake", "milliseconds": 500, "created_at": now.isoformat()}
    who = tenancy.principal_id(caller)
    with tenancy.store.session(tenant) as session:
        session.add_all(
            (
                Job(
                    id=job,
                    principal_id=who,
                    payload_sealed=Payload.of(ORDER, caller, now).seal(tenancy, tenant=tenant, job=job),
                    state=JobState.SUCCEEDED,
                    available_at=now,
                    finished_at=now,
                ),
                Speech(
                    id=output,
                    principal_id=who,
                    job_id=job,
                    object=tenancy.put_object(b"RIFF", tenant=tenant, kind="output", id=output),
                    details_sealed=tenancy.seal_json(
                        details, tenant=tenant, kind="speech.details", id=output
                    ),
                    characters=6,
                    accelerator_ms=250,
                    created_on=now.date(),
                ),
            )
        )
    return job
