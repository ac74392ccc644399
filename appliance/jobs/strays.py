"""Outputs that a dead process has left without a row: sealed, of no use to anybody, and to be removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from appliance.jobs.performance import OUTPUT, output_id
from appliance.store import references
from appliance.store.tables import Job, JobState

if TYPE_CHECKING:
    from appliance.tenancy.house import Tenancy


def remove(tenancy: Tenancy, tenant: str) -> int:
    """Remove a tenant's outputs that belong neither to a row nor to a job under way; return how many.

    The objects are listed before the rows are read: what is completed in between has its row by then.
    """
    found = list(tenancy.objects.keys(tenant, OUTPUT))
    if not found:
        return 0
    with tenancy.store.session(tenant, read_only=True) as session:
        kept = references.referenced(session, [str(key) for key in found])
        running = session.execute(select(Job.id, Job.lease_token).where(Job.state == JobState.RUNNING))
        under_way = {output_id(job, token) for job, token in running if token is not None}
    strays = [key for key in found if str(key) not in kept and key.id not in under_way]
    for key in strays:
        tenancy.objects.delete(key)
    return len(strays)
