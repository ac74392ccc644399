"""A folder of weights and its manifest.json: opened only when every file is what the manifest says."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from appliance.speech.config import ModelConfig
from appliance.speech.errors import BundleError

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
NETWORKS = ("autoregressive", "clvp", "diffusion", "vocoder")
TOKENIZER = "tokenizer.json"
MEL_NORMS = "mel_norms.safetensors"
WATERMARK = "watermark.safetensors"
REQUIRED = (*(f"{network}.safetensors" for network in NETWORKS), TOKENIZER, MEL_NORMS, WATERMARK)
# The networks that a bundle may lack, by the field of the configuration that says it does not.
OPTIONAL_NETWORKS = {
    "hifigan": ("hifigan",),
    "cvvp": ("cvvp",),
    "random_voice": ("random_voice_autoregressive", "random_voice_diffusion"),
}

# Plain names separated by single slashes: no root, no dot files, no climbing out of the bundle.
BundlePath = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$")
]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]


class _Described(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BundleFile(_Described):
    """One file of a bundle: where it is, what it must be, and where it comes from."""

    path: BundlePath
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    size: int = Field(ge=0)
    licence: str
    source: str


class Manifest(_Described):
    """What a bundle is. Users are shown `notice`; a model that is not `intelligible` makes only sound."""

    format: Literal[1] = 1
    id: Name
    title: str
    notice: str
    intelligible: bool
    licence: str
    source: str
    sample_rate: Literal[24000] = 24000
    config: ModelConfig
    files: tuple[BundleFile, ...]
    voices: tuple[Name, ...]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        paths = [file.path for file in self.files]
        if len(set(paths)) != len(paths):
            raise ValueError("a file is listed twice")
        for field, networks in OPTIONAL_NETWORKS.items():
            files = {f"{network}.safetensors" for network in networks}
            if getattr(self.config, field) is None and (unknown := sorted(files & set(paths))):
                raise ValueError(f"listed without a configuration of {field}: {', '.join(unknown)}")
        if missing := sorted(set(required(self.config)) - set(paths)):
            raise ValueError(f"not listed: {', '.join(missing)}")
        if mute := [voice for voice in self.voices if not self.clips(voice)]:
            raise ValueError(f"voices without a clip: {', '.join(mute)}")
        return self

    def clips(self, voice: str) -> tuple[str, ...]:
        """Return the paths of a built-in voice's reference clips, `voices/<name>/*.wav`."""
        folder = PurePosixPath("voices", voice)
        return tuple(
            file.path
            for file in self.files
            if PurePosixPath(file.path).parent == folder and file.path.endswith(".wav")
        )


def required(config: ModelConfig) -> tuple[str, ...]:
    """Return the paths that a bundle of this configuration must list, but for its voices."""
    optional = (
        f"{network}.safetensors"
        for field, networks in OPTIONAL_NETWORKS.items()
        if getattr(config, field) is not None
        for network in networks
    )
    return (*REQUIRED, *optional)


def read_manifest(bundle: Path) -> Manifest:
    """Read and check a bundle's manifest. Raises `BundleError`."""
    path = _regular(bundle, MANIFEST)
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "manifest"
        raise BundleError(f"{path}: {where}: {first['msg']}") from error


def verify_files(bundle: Path, manifest: Manifest) -> None:
    """Check size and SHA-256 of every file in the manifest. Raises `BundleError`."""
    for file in manifest.files:
        path = locate(bundle, file)
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if digest != file.sha256:
            raise BundleError(f"{path} has SHA-256 {digest}, the manifest says {file.sha256}")


def locate(bundle: Path, file: BundleFile) -> Path:
    """Return the path of a listed file that is a regular file of the right size. Raises `BundleError`."""
    path = _regular(bundle, file.path)
    if (size := path.stat().st_size) != file.size:
        raise BundleError(f"{path} has {size} bytes, the manifest says {file.size}")
    return path


def describe(bundle: Path, path: str, *, licence: str, source: str) -> BundleFile:
    """Return the manifest entry of a file that is in the bundle."""
    content = (bundle / path).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return BundleFile(path=path, sha256=digest, size=len(content), licence=licence, source=source)


def write_manifest(bundle: Path, manifest: Manifest) -> None:
    """Write a bundle's manifest.json."""
    (bundle / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _regular(bundle: Path, relative: str) -> Path:
    # A link could point anywhere and be changed after the check, so none is followed below the bundle.
    path = bundle
    for part in PurePosixPath(relative).parts:
        path = path / part
        try:
            mode = path.lstat().st_mode
        except OSError as error:
            raise BundleError(f"{path} is missing") from error
        if stat.S_ISLNK(mode):
            raise BundleError(f"{path} is a symbolic link")
    if not stat.S_ISREG(mode):
        raise BundleError(f"{path} is not a regular file")
    return path
