"""Which files a model is made from, each pinned by its SHA-256: in tortoise.yml, or in a user's file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from appliance.speech.bundle import NETWORKS, OPTIONAL_NETWORKS, TOKENIZER, Name
from appliance.speech.config import PUBLISHED, ModelConfig
from appliance.weights.errors import RequestError

MEL_NORMS = "mel_norms.pth"
MAX_PINS_BYTES = 1 << 20

# One plain name: what a source calls the file is also what it is called on disk.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Address = Annotated[str, StringConstraints(pattern=r"^https?://[^?#\s]+[^/?#\s]$")]


class _Pinned(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PinnedFile(_Pinned):
    """One file: `network` is what it becomes, from under `key` if it holds more.

    A file with a `member` may also be taken out of the archive.
    """

    name: FileName
    sha256: Sha256 | None = None
    limit: int = Field(gt=0)
    licence: str = "Apache-2.0"
    network: str | None = None
    key: str | None = None
    member: str | None = None

    @property
    def required(self) -> bool:
        """No bundle can be made without it."""
        return self.network in NETWORKS or self.name in {TOKENIZER, MEL_NORMS}


class Archive(_Pinned):
    """A gzipped tar file that holds the `member` of some files, at an address of its own."""

    name: FileName
    url: Address
    sha256: Sha256
    limit: int = Field(gt=0)
    unpacked_limit: int = Field(gt=0)


class Pins(_Pinned):
    """Everything that is known about a model before one byte of it is fetched."""

    id: Name
    title: str
    notice: str
    intelligible: bool
    licence: str
    source: str
    hub: Address | None = None
    archive: Archive | None = None
    files: tuple[PinnedFile, ...]
    config: ModelConfig = PUBLISHED

    @model_validator(mode="after")
    def _complete(self) -> Self:
        names = [file.name for file in self.files]
        if len(set(names)) != len(names):
            raise ValueError("a file is listed twice")
        made = [file.network for file in self.files if file.network is not None]
        if len(set(made)) != len(made):
            raise ValueError("two files become one network")
        if missing := [
            *(network for network in NETWORKS if network not in made),
            *(name for name in (TOKENIZER, MEL_NORMS) if name not in names),
        ]:
            raise ValueError(f"nothing becomes {', '.join(missing)}")
        if any(file.member for file in self.files) and self.archive is None:
            raise ValueError("a member without an archive")
        known = {*NETWORKS, *(name for names in OPTIONAL_NETWORKS.values() for name in names)}
        if unknown := sorted(set(made) - known):
            raise ValueError(f"no such network: {', '.join(unknown)}")
        return self

    def with_hashes(self, hashes: Mapping[str, str]) -> Pins:
        """Return these pins and hashes of files that have none.

        Raises:
            RequestError: a file is not listed, has a pin already, or the hash is none.
        """
        open_pins = {file.name for file in self.files if file.sha256 is None}
        if wrong := sorted(set(hashes) - open_pins):
            raise RequestError(
                "pin_fixed",
                f"--sha256 cannot be given for {', '.join(wrong)}",
                f"It is for files without a pin ({', '.join(sorted(open_pins)) or 'none here'}). "
                "To use other weights, write a pins file and give it with --pins.",
            )
        described = self.model_dump(exclude_unset=True)
        for file in described["files"]:
            if file["name"] in hashes:
                file["sha256"] = hashes[file["name"]].lower()
        return _validated(described, "--sha256")

    def pinned(self) -> Iterable[PinnedFile]:
        """Return the files that may be opened, that is, whose hash is known."""
        return [file for file in self.files if file.sha256 is not None]


def published() -> Pins:
    """Return the pins of the published Tortoise."""
    resource = files("appliance.weights") / "tortoise.yml"
    return _validated(yaml.safe_load(resource.read_text(encoding="utf-8")), resource.name)


def read_pins(path: Path) -> Pins:
    """Return the pins in a user's file.

    Raises:
        RequestError: the file cannot be read or is not what it must be.
    """
    try:
        with path.open("rb") as file:
            content = yaml.safe_load(file.read(MAX_PINS_BYTES))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise RequestError("pins_unreadable", f"{path}: {error}", "Give a pins file with --pins.") from error
    return _validated(content, str(path))


def _validated(content: object, where: str) -> Pins:
    try:
        return Pins.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "pins"
        raise RequestError(
            "pins_invalid", f"{where}: {field}: {first['msg']}", "docs/weights.md says what pins hold."
        ) from error
