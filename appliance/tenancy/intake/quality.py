"""Whether a recording will do: long enough, loud enough, not clipped, and somebody speaks.

Energy, pitch and its movement say that somebody speaks. They tell speech from silence, noise, hum and tones,
which is what goes wrong in practice; they are no proof against somebody who sends a siren or a song.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from appliance.tenancy.intake.clip import Clip
from appliance.tenancy.intake.limits import LIMITS, Limits
from appliance.tenancy.intake.voicing import Voicing, find_voice


@dataclass(frozen=True)
class Problem:
    """One reason to refuse a recording: a stable code, and a sentence with what is measured and the limit.

    Codes: `too_short`, `no_speech`, `too_quiet`, `clipped`.
    """

    code: str
    message: str


@dataclass(frozen=True)
class Assessment:
    """What is measured of a recording, and all that speaks against it, the gravest first."""

    seconds: float
    voiced_seconds: float
    pitch_spread: float  # semitones
    level: float  # dB relative to full scale, root mean square of the voiced frames
    clipped_share: float
    problems: tuple[Problem, ...]

    @property
    def accepted(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.problems


def assess(clip: Clip, limits: Limits = LIMITS) -> Assessment:
    """Measure a recording and compare it with the limits."""
    voicing = find_voice(clip)
    return Assessment(
        seconds=clip.seconds,
        voiced_seconds=voicing.seconds,
        pitch_spread=voicing.pitch_spread,
        level=voicing.speaking_level,
        clipped_share=clip.source.clipped_share,
        problems=tuple(_problems(clip, voicing, limits)),
    )


def _problems(clip: Clip, voicing: Voicing, limits: Limits) -> Iterator[Problem]:
    if clip.seconds < limits.minimum_seconds:
        yield Problem(
            "too_short",
            f"the recording lasts {clip.seconds:.1f} s, and must last at least {limits.minimum_seconds:g} s",
        )
    if voicing.seconds < limits.minimum_voiced_seconds:
        yield Problem(
            "no_speech",
            f"the recording holds {voicing.seconds:.1f} s of voice, and must hold at least "
            f"{limits.minimum_voiced_seconds:g} s",
        )
        return
    if voicing.pitch_spread < limits.minimum_pitch_spread:
        yield Problem(
            "no_speech",
            f"the pitch spreads over {voicing.pitch_spread:.2f} semitones, as a tone's does, and must spread "
            f"over at least {limits.minimum_pitch_spread:g}",
        )
    if voicing.speaking_level < limits.minimum_level:
        yield Problem(
            "too_quiet",
            f"the voice is at {voicing.speaking_level:.0f} dB of full scale, and must be at least at "
            f"{limits.minimum_level:g} dB",
        )
    if clip.source.clipped_share > limits.maximum_clipped_share:
        yield Problem(
            "clipped",
            f"{clip.source.clipped_share:.1%} of the recording is clipped, and at most "
            f"{limits.maximum_clipped_share:.1%} may be",
        )
