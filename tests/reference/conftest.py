"""Both sides, made and asked once per size."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from appliance.speech import Conditioning, Synthesizer
from appliance.speech.bundle import TOKENIZER
from appliance.speech.text import normalise
from appliance.speech.tokenizer import TextTokenizer
from tests.reference import jobs
from tests.reference.stages import STAGES
from tests.reference.texts import ALIKE, DIFFERENT

MEASURED: dict[tuple[str, str], float] = {}


@dataclass
class Sides:
    """Upstream's answers, and ours loaded with the same weights."""

    size: jobs.Size
    ours: Synthesizer
    inputs: dict[str, Tensor]
    upstream: dict[str, Tensor]
    tokens: list[list[int]]
    draws: dict[str, jobs.Draw] = field(init=False)

    def __post_init__(self) -> None:
        self.draws = jobs.draws(self.size)

    @property
    def voice(self) -> Conditioning:
        """Upstream's own conditioning, so that one stage's difference is not the next one's."""
        return Conditioning(self.upstream["voice.autoregressive"], self.upstream["voice.diffusion"])

    @property
    def prompt(self) -> Tensor:
        """The beginning of the sequence: voice and text."""
        return self.ours._networks.autoregressive.prompt(self.voice.autoregressive, self.inputs["text"])

    def check(self, stage: str, ours: Tensor, answer: str | None = None) -> None:
        """Compare ours with upstream's answer, `stage` if none is named, within the bound of the stage."""
        theirs = self.upstream[answer or stage]
        ours = ours.reshape(theirs.shape)
        bound = STAGES[stage].bounds[self.size.name]
        if not bound:
            assert torch.equal(ours, theirs), f"{stage}: {int((ours != theirs).sum())} values differ"
            return
        spread = float(theirs.std())
        difference = float((ours - theirs).abs().max()) / spread
        MEASURED[self.size.name, stage] = max(difference, MEASURED.get((self.size.name, stage), 0.0))
        assert spread > 1e-3, f"{stage}: upstream's own values hardly differ, so this proves nothing"
        assert difference <= bound, f"{stage}: differs by {difference:.1e} of the spread, allowed {bound:.0e}"


@pytest.fixture(
    scope="session",
    params=["tiny", pytest.param("full", marks=pytest.mark.full)],
)
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sides:
    size = jobs.SIZES[request.param]
    torch.set_num_threads(size.threads)
    bundle = jobs.make_weights(size)
    folder = tmp_path_factory.mktemp(f"reference-{size.name}")
    tokens = TextTokenizer(bundle / TOKENIZER).encode(normalise(jobs.TEXT))
    upstream, of_texts = jobs.answers(size, [*ALIKE, *DIFFERENT], tokens, folder)
    ours = Synthesizer.load(bundle, dtype="float32", verify=False)
    return Sides(size, ours, jobs.inputs(size, tokens), upstream, of_texts)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show how close each stage came."""
    if MEASURED:
        terminalreporter.section("largest differences from tortoise-tts 3.0.0, relative to the spread")
    for (size, stage), difference in sorted(MEASURED.items()):
        bound = STAGES[stage].bounds[size]
        terminalreporter.write_line(f"{size:5} {stage:20} {difference:.1e} (allowed {bound:.0e})")
