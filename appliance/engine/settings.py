"""Settings of the engine, from the environment: TESTUDO_ENGINE_<NAME>."""

from __future__ import annotations

import os
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
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="What matrix products are computed in; auto takes the fastest of the device, float32"
        " gives the same speech for the same seed everywhere.",
    )
    threads: int = Field(
        default=0, ge=0, description="CPU threads of the model; 0 leaves the choice to torch."
    )
    max_queue: int = Field(
        default=32,
        ge=0,
        description="Requests that may wait while others are spoken; more are refused as busy.",
    )
    max_streams: int = Field(
        default=32,
        ge=1,
        description="Streams open at once: waiting, being spoken, and spoken but not yet read to the end.",
    )
    tenant_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Largest part of max_queue, max_streams and max_recordings that one tenant may take up.",
    )
    max_batch: int = Field(
        default=16,
        ge=1,
        description="Requests of one tenant that are spoken together, where they wait.",
    )
    turn_seconds: float = Field(
        default=0.5,
        gt=0,
        description="How long one tenant has the model before the next that waits gets it, in the middle of a"
        " speech as well.",
    )
    max_workers: int = Field(
        default=8,
        ge=1,
        description="Processes that speak, each for one tenant. One more replaces the one idle for longest.",
    )
    worker_memory_mib: int = Field(
        default=0,
        ge=0,
        description="Memory of the workers beyond the weights they share. Idle ones are ended while they have"
        " more together, and no single one can have more; 0 means half of the machine's memory.",
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
    max_clips: int = Field(default=25, ge=1, le=32, description="Clips that one voice may be heard in.")
    max_clip_seconds: float = Field(default=30, gt=0, description="Longest clip of a voice.")
    max_clips_seconds: float = Field(
        default=300,
        gt=0,
        le=3600,
        description="Longest that the clips of a voice may be together, and one that the watermark is looked"
        " for in. With max_recordings it bounds the memory that they can take: 96 kB per second.",
    )
    max_recordings: int = Field(
        default=4,
        ge=1,
        description="Requests with clips that may be received, wait or be heard at once, of one tenant its"
        " share; more are refused as busy.",
    )
    stuck_seconds: float = Field(
        default=60,
        gt=0,
        description="How long a worker may keep the model beyond its turn, or go on with what nobody waits"
        " for, before it is killed and replaced.",
    )
    stop_seconds: float = Field(
        default=10, ge=0, description="Time that running requests have to finish when the engine is stopped."
    )

    @property
    def worker_bytes(self) -> int:
        """Memory of the workers beyond what they share."""
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return self.worker_memory_mib << 20 or machine // 2

    def share(self, limit: int) -> int:
        """What of a `limit` one tenant may take up."""
        return max(1, int(limit * self.tenant_share)) if limit else 0
