"""Settings of the engine process, from the environment: TESTUDO_ENGINE_<NAME>."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class EngineSettings(BaseSettings):
    """What an operator may set; the descriptions are the documentation."""

    model_config = SettingsConfigDict(env_prefix="TESTUDO_ENGINE_", frozen=True)

    socket: Path = Field(
        default=Path("/run/testudo-engine/engine.sock"),
        description="Unix socket to serve on. Its directory must exist; the socket is made with mode 0660.",
    )
    weights: Path = Field(
        default=Path("/opt/testudo/weights/tiny"),
        description="Folder of the weight bundle: manifest.json and the files it names.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where the model runs; auto takes a CUDA device where there is one."
    )
    threads: int = Field(
        default=0, ge=0, description="CPU threads of the model; 0 leaves the choice to torch."
    )
    max_queue: int = Field(
        default=8, ge=0, description="Requests that may wait while one is spoken; more are refused as busy."
    )
    max_streams: int = Field(
        default=16,
        ge=1,
        description="Streams open at once: waiting, being spoken, and spoken but not yet read to the end.",
    )
    max_deadline_seconds: float = Field(
        default=600, gt=0, description="Longest time a request may take, whatever deadline its caller set."
    )
    max_input_characters: int = Field(default=4096, gt=0, description="Longest text of a request.")
    max_audio_seconds: float = Field(
        default=600,
        gt=0,
        description="Longest speech of a request, which fails beyond it. With max_streams it bounds the"
        " memory that unread audio can take: 48 kB per second and stream.",
    )
    stuck_seconds: float = Field(
        default=60,
        gt=0,
        description="How long the model may go on with a request that is over before the process gives itself"
        " up and exits, to be restarted.",
    )
    stop_seconds: float = Field(
        default=10, ge=0, description="Time that running requests have to finish when the engine is stopped."
    )
