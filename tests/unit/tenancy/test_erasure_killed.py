"""kill -9 of a process that erases: the next one finishes, and counts no more and no less."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from erasure_world import ACTOR, counts, kinds, make

from appliance.ledger.receipt import verify_receipt
from appliance.ledger.signing import PublicKey
from appliance.store.tables import ErasureState, Target
from appliance.tenancy import erasure
from appliance.tenancy.house import Tenancy

SCRIPT = Path(__file__).with_name("erasure_process.py")


@pytest.mark.parametrize("target", [Target.CONSENT, Target.TENANT])
def test_killed_again_and_again(tenancy: Tenancy, database: Any, tmp_path: Path, target: Target) -> None:
    world = make(tenancy)
    named = world.consent if target is Target.CONSENT else "acme"
    asked = erasure.request(tenancy, "acme", actor=ACTOR, target=target, target_id=named)
    logins = database.logins
    settings = {
        **{name: getattr(logins, name).render_as_string() for name in ("app", "worker", "operator")},
        "wall_key": logins.wall_key.hex(),
        "folder": str(tmp_path),
        "erasure": asked.id,
    }
    stages = []
    for pauses in (2, 4, 100):  # killed at the second pause, then at the fourth, then not at all
        with subprocess.Popen(
            [sys.executable, str(SCRIPT), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for number, stage in enumerate(process.stdout, start=1):
                stages.append(stage.strip())
                if number == pauses:
                    process.kill()
                    break
                if stages[-1] != "done":
                    process.stdin.write("\n")
                    process.stdin.flush()
    assert process.returncode == 0
    assert stages[-2:] == ["signing", "done"]
    assert sum(counts(tenancy).values()) == 0
    found = erasure.find(tenancy, "acme", asked.id)
    assert found is not None
    assert found.state is ErasureState.DONE
    told = verify_receipt(
        erasure.receipt(tenancy, "acme", asked.id) or b"", PublicKey.load(tenancy.signer.public_key())
    )
    assert told.object_versions == 9
    assert sum(things.count for things in told.erased.values()) == 12
    assert kinds(tenancy).count("erasure.completed") == 1
    assert kinds(tenancy).count("voice.deleted") == 2
