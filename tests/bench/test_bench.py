"""The benchmark's arithmetic: what is counted, and what is made of figures."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from appliance.speech import PUBLISHED
from appliance.speech.networks import Networks
from tests.bench import report, roofline, service
from tests.bench.plan import CANDIDATES, CODES, CONCURRENCY, SUMMED, TARGETS, total

STAGE = {"conditioning": 2.0, **dict.fromkeys(SUMMED, 10.0), "memory": 4.0}
OURS = {**STAGE, "whole": 4.0, "autoregressive": 2.0, "exact": 1.0, "step_over_roofline": 2.0}
FIGURES = {
    "machine": {
        "bandwidth": 2e10,
        "decoding_bytes": 1e9,
        "decoding_operations": 1e10,
        "diffusion_operations": 1e11,
        **{
            f"{name}_{dtype}": 1e11
            for name in ("flops", "decoding_step", "diffusion")
            for dtype in roofline.BYTES
        },
    },
    "upstream": {**STAGE, "autoregressive": 460.0},
    "upstream_cached": STAGE,
    "float32": OURS,
    "bfloat16": {
        **OURS,
        "whole": 20.0,
        "stream": 4.0,
        "first_audio": 0.5,
        "real_time_factor": 0.8,
        **{f"requests_{count}": 4.0 for count in CONCURRENCY},
        **{f"requests_{count}_hifigan": 1.0 for count in CONCURRENCY},
        **{f"profile_{kind}": 0.2 for kind in report.PROFILE},
    },
}
FACTS = {"Command": "`python -m tests.bench --short`", "Load before": "0.2"}


@pytest.fixture(scope="module")
def networks() -> Networks:
    """The published dimensions, without values."""
    return Networks(PUBLISHED)


def test_operations_of_diffusion_are_those_that_torch_counts(networks: Networks) -> None:
    model = networks.diffusion
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        noisy = torch.empty(1, PUBLISHED.diffusion.mel_bands, roofline.FRAMES)
        embeddings = torch.empty(1, PUBLISHED.diffusion.channels, roofline.FRAMES)
        model(noisy, embeddings, model.times(torch.zeros(1)), model.biases(roofline.FRAMES))
    assert roofline.diffusion_step() == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_decoding_reads_every_weight_once(networks: Networks) -> None:
    model = networks.autoregressive
    read = sum(weight.numel() for weight in (*model.gpt.parameters(), *model.mel_head.parameters()))
    kept = CANDIDATES * PUBLISHED.autoregressive.layers * 2 * PUBLISHED.autoregressive.dim
    positions = roofline.PROMPT + CODES / 2
    moved, operations = roofline.decoding_step(1)
    assert moved == pytest.approx(read + kept * positions, rel=0.002)
    assert operations == pytest.approx(2 * (CANDIDATES * read + kept * positions), rel=0.002)


def test_sums_leave_out_conditioning() -> None:
    assert total(FIGURES, "upstream") == 500
    assert total(FIGURES, "float32") == 4


def test_the_page_says_what_was_reached_and_what_was_not() -> None:
    verdicts = {what: verdict for what, _, _, verdict in report.targets(FIGURES)}
    missed = [target.what for target in TARGETS if "not" in verdicts[target.what]]
    assert missed == [
        "End to end, bf16 over upstream's default",
        "End to end, bf16 over upstream's kv_cache",
        "Streaming, bf16, over upstream's default, per second of sound",
    ]
    page = report.page(FIGURES, FACTS)
    assert page.count("**not reached**") == len(missed)
    assert "| **Text to samples, voice known** | **500** | **50.00** | **4.00** | **20.00** |" in page
    assert "No GPU" in page
    assert "one of the 16 equal batches" in page
    assert "one of the 16" not in report.page(FIGURES, FACTS | {"Command": "`python -m tests.bench --full`"})
    assert "not to be quoted" not in page
    assert "not to be quoted" in report.page(FIGURES, FACTS | {"Load before": "5.0"})


def test_a_target_of_the_service_says_what_it_wanted() -> None:
    slow = service.Target("Added", 20.0, 15, "ms", least=False)
    share = service.Target("Share", 0.64, 0.6, "", least=True)
    assert (slow.reached, share.reached) == (False, True)
    page = service.page({"Load": "0"}, {"Rate": "1"}, [slow, share])
    assert "| Added | ≤ 15 ms | 20.00 ms | **not reached** |" in page
    assert "| Share | ≥ 0.6 | 0.64 | reached |" in page
