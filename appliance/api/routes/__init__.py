"""The routes of version 1, by subject. Importing this puts them on the blueprint."""

from appliance.api.routes import jobs, models, probes, speech, usage

__all__ = ["jobs", "models", "probes", "speech", "usage"]
