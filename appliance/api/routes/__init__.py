"""The routes of version 1, by subject. Importing this puts them on the blueprint."""

from appliance.api.routes import consents, jobs, models, probes, speech, usage, voices

__all__ = ["consents", "jobs", "models", "probes", "speech", "usage", "voices"]
