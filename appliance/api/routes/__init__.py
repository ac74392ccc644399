"""The routes of version 1, by subject. Importing this puts them on the blueprint."""

from appliance.api.routes import (
    consents,
    erasures,
    holds,
    jobs,
    ledger,
    models,
    probes,
    provenance,
    speech,
    usage,
    voices,
)

__all__ = [
    "consents",
    "erasures",
    "holds",
    "jobs",
    "ledger",
    "models",
    "probes",
    "provenance",
    "speech",
    "usage",
    "voices",
]
