"""Print the distributions of the running interpreter as JSON: name, version, licence, classifiers."""

import json
from importlib.metadata import distributions

print(
    json.dumps(
        [
            {
                "name": meta["Name"],
                "version": meta["Version"],
                "expression": meta.get("License-Expression"),
                "licence": meta.get("License"),
                "classifiers": meta.get_all("Classifier") or [],
            }
            for meta in (distribution.metadata for distribution in distributions())
        ]
    )
)
