"""What the vendor's repository gave: the pinned branch, from what its key has signed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testinfra.host import Host

CHECK = "testudo-gpu"


def test_the_newer_branch_is_left_alone(host: Host) -> None:
    policy = host.check_output("apt-cache policy nvidia-driver-probe")
    assert "590.10-1" in policy
    assert re.findall(r"(?:Installed|Candidate): (\S+)", policy) == ["580.95-1", "580.95-1"]


def test_nothing_else_may_come_from_the_vendor(host: Host) -> None:
    policy = host.check_output("apt-cache policy")
    assert re.search(r"-1 http://127\.0\.0\.1:8080/good", policy), policy


def test_keyring_holds_the_one_key(host: Host) -> None:
    listed = host.check_output("gpg --batch --with-colons --show-keys /usr/share/keyrings/testudo-gpu.gpg")
    assert listed.count("pub:") == 1
    assert host.file("/var/lib/probe/vendor.fingerprint").content_string.strip() in listed
    assert host.file("/usr/share/keyrings/testudo-gpu.gpg").mode == 0o644


def test_module_is_signed_by_the_given_key(host: Host) -> None:
    kernel = host.check_output("linux-version list | linux-version sort | tail -n 1")
    assert host.check_output(f"modinfo -k {kernel} --field signer nvidia") == "Probe of module signing"


def test_a_kernel_without_the_module_is_told(host: Host) -> None:
    """The kernel that runs here is the host's, and nothing was built for it."""
    running = host.check_output("uname -r")
    assert running not in host.check_output("linux-version list").split()
    assert host.run(f"systemctl restart {CHECK}").rc != 0
    assert f"{CHECK}.service" in host.check_output("systemctl list-units --failed --plain --no-legend")
    said = host.check_output(f"journalctl --unit={CHECK} --output=cat --priority=err --grep=^code= --lines=1")
    assert said.startswith(f"code=gpu_module_missing kernel={running} module=nvidia ")


def test_a_module_that_is_not_loaded_is_told(host: Host) -> None:
    """As for the image's kernel after a boot without a GPU; uname says what the module was built for."""
    kernel = host.check_output("linux-version list | linux-version sort | tail -n 1")
    script = f"uname() {{ echo {kernel}; }}; set -- nvidia; . /usr/local/libexec/{CHECK}"
    done = host.run("sh -c %s", script)
    assert (done.rc, done.stdout.split()[0]) == (1, "<3>code=gpu_module_not_loaded")
