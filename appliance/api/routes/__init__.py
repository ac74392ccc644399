"""The routes of version 1, by subject. Importing this puts them on the blueprint."""

from appliance.api.routes import erasures, holds, ledger, models, probes, speech, usage

__all__ = ["erasures", "holds", "ledger", "models", "probes", "speech", "usage"]
