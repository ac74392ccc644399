"""Role gpu: one driver, for the image's kernel, without a display; and none on an image for processors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import properties
from .test_base import installed

if TYPE_CHECKING:
    from collections.abc import Callable

    from testinfra.host import Host

Data = dict[str, Any]
CHECK = "testudo-gpu"

on_gpu = pytest.mark.variant("gpu")


@pytest.fixture(scope="session")
def gpu(role_data: Callable[[str], Data]) -> Data:
    return role_data("gpu")


@pytest.fixture(scope="module")
def kernel(host: Host) -> str:
    """The kernel that the image boots."""
    return str(host.check_output("linux-version list | linux-version sort | tail -n 1"))


@pytest.fixture(scope="module")
def module(host: Host) -> str:
    """The driver's main module, as the unit that looks for it names it."""
    return str(host.check_output(f"sed -n 's/^ExecStart=//p' /etc/systemd/system/{CHECK}.service").split()[1])


@pytest.mark.variant("cpu")
def test_no_driver_on_an_image_for_processors(host: Host) -> None:
    assert not {name for name in installed(host) if re.match(r"(lib)?nvidia-|libcuda", name)}
    assert not host.file("/etc/apt/sources.list.d/testudo-gpu.sources").exists
    assert not host.file("/etc/apt/sources.list.d/testudo-gpu.list").exists


@on_gpu
def test_module_is_built_for_the_kernel_of_the_image(host: Host, kernel: str, module: str) -> None:
    path = host.check_output(f"modinfo -k {kernel} --field filename {module}")
    assert path == f"/lib/modules/{kernel}/updates/dkms/{module}.ko"
    assert host.check_output(f"modinfo -k {kernel} --field vermagic {module}").split()[0] == kernel
    assert host.check_output(f"modprobe --set-version {kernel} --show-depends {module}")


@on_gpu
def test_module_is_built_for_no_other_kernel(host: Host) -> None:
    """Nor for the one that runs, if it is not the image's: in a container it is the build host's."""
    listed = host.check_output("dkms status").splitlines()
    built = {re.split(r"[,:] *", line)[1] for line in listed}
    assert listed
    assert built <= set(host.check_output("linux-version list").split())
    assert all(line.endswith(": installed") for line in listed), listed


@on_gpu
def test_all_of_the_driver_is_of_one_branch(host: Host, gpu: Data, kernel: str, module: str) -> None:
    source = "debian" if module == gpu["__gpu_sources"]["debian"]["module"] else "vendor"
    branch = gpu[f"gpu_{source}_branch"]
    query = "dpkg-query --show --showformat='${db:Status-Abbrev} ${Package} ${source:Package} ${Version}\\n'"
    rows = [line.split() for line in host.check_output(query).splitlines() if line.startswith("ii")]
    found = {
        name: version
        for _, name, origin, version in rows
        if origin == "nvidia-graphics-drivers" or name.startswith("nvidia-driver")
    }
    assert found
    assert {name: one for name, one in found.items() if not one.startswith(f"{branch}.")} == {}
    assert host.check_output(f"modinfo -k {kernel} --field version {module}").startswith(f"{branch}.")


@on_gpu
def test_there_is_no_display(host: Host) -> None:
    """x11-common, which ffmpeg brings, is a folder and no program."""
    display = re.compile(
        r"xserver-|xorg|x11-(?!common$)|xinit|nvidia-(settings|xconfig|driver$)|lib(gl|egl|glx)\w*-?nvidia"
    )
    assert not {name for name in installed(host) if display.match(name)}


@on_gpu
def test_archives_are_trusted_by_a_key_of_their_own(host: Host) -> None:
    text = host.check_output("cat /etc/apt/sources.list.d/testudo-gpu.*")
    assert "signed-by" in text.lower()
    assert "trusted" not in text.lower()
    assert host.run("ls /etc/apt/trusted.gpg").rc != 0


@on_gpu
def test_kernel_and_driver_change_with_the_image_only(host: Host, gpu: Data) -> None:
    listed = host.check_output("apt-config dump Unattended-Upgrade::Package-Blacklist --format '%v%n'")
    patterns = listed.splitlines()
    assert set(gpu["gpu_excluded"]) <= set(patterns)
    for name in ("linux-image-cloud-amd64", "linux-headers-cloud-amd64", "nvidia-smi", "libcuda1"):
        assert any(pattern and re.match(pattern, name) for pattern in patterns), name
    assert not any(pattern and re.match(pattern, "openssl") for pattern in patterns)


@on_gpu
def test_nouveau_cannot_be_loaded(host: Host, kernel: str) -> None:
    text = host.file("/etc/modprobe.d/testudo-gpu.conf").content_string
    assert {"blacklist nouveau", "install nouveau /bin/false"} <= set(text.splitlines())


@on_gpu
def test_no_key_that_signs_modules_is_in_the_image(host: Host) -> None:
    assert host.run("ls /var/lib/dkms/mok.key /var/lib/shim-signed/mok").stdout == ""


@on_gpu
def test_devices_are_made_without_set_id(host: Host) -> None:
    assert not host.file("/usr/bin/nvidia-modprobe").mode & 0o6000


@on_gpu
def test_driver_is_kept_loaded_and_looked_for_at_boot(host: Host) -> None:
    for unit in ("nvidia-persistenced", CHECK):
        assert host.service(unit).is_enabled, unit
    text = host.file("/etc/modules-load.d/testudo-gpu.conf").content_string
    assert {"nvidia", "nvidia-uvm"} <= set(text.splitlines())


@on_gpu
def test_check_is_well_formed_and_closed(host: Host) -> None:
    verdict = host.run(f"systemd-analyze verify /etc/systemd/system/{CHECK}.service")
    assert "testudo-" not in verdict.stderr, verdict.stderr
    security = "systemd-analyze security --offline=yes --threshold=12"
    closed = host.run(f"{security} /etc/systemd/system/{CHECK}.service")
    assert closed.rc == 0, closed.stdout


@on_gpu
def test_engine_gets_the_devices_of_the_gpu_and_no_others(host: Host, gpu: Data) -> None:
    for unit in gpu["gpu_units"]:
        text = host.file(f"/etc/systemd/system/{unit}.d/20-gpu.conf").content_string
        allowed = [line for line in text.splitlines() if line.startswith(("DeviceAllow=", "DevicePolicy="))]
        assert allowed == ["DeviceAllow=char-nvidia* rw"]
        assert f"{CHECK}.service" in text
    # Its AppArmor profile (role voice) includes this file where it is.
    profile = host.file("/etc/apparmor.d/local/testudo-engine").content_string
    assert [line for line in profile.splitlines() if line.startswith("/dev/")] == ["/dev/nvidia* rw,"]


@on_gpu
@pytest.mark.booted
def test_driver_runs(host: Host) -> None:
    assert properties(host, CHECK, "Result") == {"Result": "success"}
    assert host.check_output("nvidia-smi --query-gpu=name --format=csv,noheader")
