"""The routes of version 1, by subject. Importing this puts them on the blueprint."""

from appliance.api.routes import models, probes, speech

__all__ = ["models", "probes", "speech"]
