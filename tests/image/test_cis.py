"""Role cis: the controls of its data, in files and, on a booted machine, in the kernel and the daemons."""

from __future__ import annotations

import json
import re
import shlex
from collections import defaultdict
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import yaml

from tools import benchmark

from .conftest import ROOT, properties
from .test_base import installed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from testinfra.host import Host

Data = dict[str, Any]
# Hosts of Debian's archives; its images on AWS have the last.
ARCHIVES = {"deb.debian.org", "security.debian.org", "cdn-aws.deb.debian.org"}
AIDE = "testudo-aide.service"
BASELINE = "testudo-aide-baseline.service"
# Ends with what pam_acct_mgmt says of a user whom no module of PAM has authenticated.
ACCOUNT = """
import ctypes, sys
pam = ctypes.CDLL("libpam.so.0")
class Conversation(ctypes.Structure):
    _fields_ = [("function", ctypes.c_void_p), ("data", ctypes.c_void_p)]
handle, conversation = ctypes.c_void_p(), Conversation()
user = sys.argv[1].encode()
assert pam.pam_start(b"sshd", user, ctypes.byref(conversation), ctypes.byref(handle)) == 0
sys.exit(pam.pam_acct_mgmt(handle, 0))
"""


@pytest.fixture(scope="session")
def cis(role_data: Callable[[str], Data]) -> Data:
    return role_data("cis")


def control_ids(cis: Data) -> set[str]:
    return {
        str(control["id"])
        for name, controls in cis.items()
        if isinstance(controls, list) and name != "cis_exceptions"
        for control in controls
        if isinstance(control, dict) and "id" in control
    }


def test_each_control_is_a_tag(cis: Data) -> None:
    tasks = yaml.safe_load((ROOT / "roles/cis/tasks/main.yml").read_text())
    tags = {tag for task in tasks for tag in task.get("tags", []) if tag.startswith("cis_")}
    assert {f"cis_{control.replace('.', '_')}" for control in control_ids(cis)} <= tags


def test_no_exception_is_overdue_or_also_claimed_as_met(host: Host, cis: Data) -> None:
    exceptions = json.loads(host.file("/usr/share/testudo/cis-exceptions.json").content_string)
    assert exceptions == cis["cis_exceptions"]
    for exception in exceptions:
        assert {"id", "reason", "compensating_control", "owner", "review_by"} == set(exception)
        assert all(exception.values())
        assert date.fromisoformat(exception["review_by"]) >= datetime.now(UTC).date()
        assert str(exception["id"]) not in control_ids(cis)


def test_packages_of_the_controls_are_there(host: Host, cis: Data) -> None:
    assert not set(cis["cis_packages"]) - installed(host)


def test_unwanted_packages_are_absent(host: Host) -> None:
    found = installed(host)
    unwanted = {one.id: set(one.absent) for one in benchmark.load().recommendations() if one.absent}
    assert len(unwanted) > 20
    assert {identifier: there for identifier, names in unwanted.items() if (there := names & found)} == {}


@pytest.mark.booted
def test_each_exception_is_still_needed(host: Host) -> None:
    for one in benchmark.load().recommendations():
        if one.met_if:
            answer = host.run(one.met_if)
            assert answer.rc not in {0, 126, 127}, one.id


def test_kernel_parameters_are_written(host: Host, cis: Data) -> None:
    lines = set(host.file("/etc/sysctl.d/99-testudo.conf").content_string.splitlines())
    assert {f"{control['key']} = {control['value']}" for control in cis["cis_sysctl"]} <= lines


@pytest.mark.booted
def test_kernel_parameters_are_loaded(host: Host, cis: Data) -> None:
    names = [control["key"] for control in cis["cis_sysctl"]]
    values = host.check_output(f"sysctl --values {' '.join(names)}").splitlines()
    assert dict(zip(names, values, strict=True)) == {c["key"]: str(c["value"]) for c in cis["cis_sysctl"]}


def test_modules_cannot_be_loaded(host: Host, cis: Data) -> None:
    """Loading ends at the first command that fails: one must come before the module itself is inserted."""
    names = [module["name"] for module in cis["cis_modules"]]
    assert refused(host, names) == dict.fromkeys(names, True)
    for release in kernels(host):
        assert refused(host, names, f"--set-version={release}") == dict.fromkeys(names, True)


def refused(host: Host, names: Iterable[str], options: str = "") -> dict[str, bool]:
    """Whether modprobe runs a command that fails before it inserts the module, by its name."""
    probe = f"modprobe --dry-run --verbose {options} $name 2>&1"
    script = f"for name in {' '.join(names)}; do echo $name; {probe}; done"
    found: dict[str, bool] = {}
    for line in map(str.strip, host.run(script).stdout.splitlines()):
        if line in names:
            name, inserted = line, False
            found[name] = False
        elif line == "install /bin/false":
            found[name] |= not inserted
        else:
            inserted |= line.endswith((f"/{name}.ko", f"/{name.replace('-', '_')}.ko"))
    return found


def kernels(host: Host) -> list[str]:
    """Releases of the kernels that the image has."""
    return str(host.check_output("ls /lib/modules")).split()


def test_file_systems_are_needed_or_kept_out(host: Host, cis: Data) -> None:
    """A file system is what mount(8) asks the kernel for by an alias that begins with fs-."""
    needed = {module["name"] for module in cis["cis_file_systems"]}
    assert not needed & {module["name"] for module in cis["cis_modules"]}
    assert kernels(host)
    for release in kernels(host):
        listing = host.check_output(f"grep '^alias fs-' /lib/modules/{release}/modules.alias")
        offered = {line.split()[2] for line in listing.splitlines()}
        assert len(offered) > 10
        answers = refused(host, sorted(offered), f"--set-version={release}")
        assert {name for name, is_refused in answers.items() if not is_refused} == needed & offered


def test_modules_refusal_is_not_for_every_name(host: Host) -> None:
    """The line above would be worth nothing if modprobe said it of any module."""
    assert "/bin/false" not in host.run("modprobe --dry-run --verbose vfat").stdout


@pytest.mark.booted
def test_modules_are_not_loaded(host: Host, cis: Data) -> None:
    loaded = {line.split()[0] for line in host.check_output("lsmod").splitlines()}
    assert len(loaded) > 5
    assert not {module["name"].replace("-", "_") for module in cis["cis_modules"]} & loaded


@pytest.mark.booted
def test_kernel_command_line(host: Host, cis: Data) -> None:
    assert set(cis["__cis_kernel_command_line"].split()) <= set(
        host.check_output("cat /proc/cmdline").split()
    )
    assert host.check_output("cat /sys/module/apparmor/parameters/enabled") == "Y"
    assert int(host.check_output("aa-status --profiled")) > 0


def test_no_apparmor_profile_is_switched_off(host: Host) -> None:
    assert int(host.check_output("find /etc/apparmor.d -maxdepth 1 -type f | wc --lines")) > 2
    assert host.run("find /etc/apparmor.d/disable /etc/apparmor.d/force-complain -mindepth 1").stdout == ""
    modes = "flags *= *\\([^)]*(complain|unconfined|default_allow|prompt)"
    assert host.run(f"grep --recursive --extended-regexp '^[^#]*{modes}' /etc/apparmor.d").rc == 1


@pytest.mark.booted
def test_each_apparmor_profile_enforces(host: Host) -> None:
    """A process that its profile does not hold, since it was started before, is listed with the others."""
    status = json.loads(host.check_output("aa-status --json"))
    assert len(status["profiles"]) > 2
    assert {name: mode for name, mode in status["profiles"].items() if mode != "enforce"} == {}
    processes = [(name, one["status"]) for name, listed in status["processes"].items() for one in listed]
    assert [process for process in processes if process[1] != "enforce"] == []


def test_archive_keys_are_those_of_debian(host: Host) -> None:
    files = host.check_output(
        "find /etc/apt/trusted.gpg* /etc/apt/keyrings /usr/share/keyrings -type f 2>/dev/null || true"
    ).splitlines()
    assert len(files) > 5
    owners = host.check_output(f"dpkg-query --search {' '.join(map(shlex.quote, files))}").splitlines()
    assert {line.partition(":")[0] for line in owners} == {"debian-archive-keyring"}
    assert host.check_output("dpkg --verify debian-archive-keyring") == ""


@pytest.mark.booted
def test_archives_are_those_of_debian(host: Host) -> None:
    """On AWS, apt reads the addresses from a list of mirrors."""
    uris = [line.split("'")[1] for line in host.check_output("apt-get --print-uris update").splitlines()]
    uris += [word for word in host.run("cat /etc/apt/mirrors/*.list").stdout.split() if "://" in word]
    assert {urlsplit(uri).scheme for uri in uris} <= {"http", "https", "mirror+file"}
    hosts = {urlsplit(uri).hostname for uri in uris if not uri.startswith("mirror+file:")}
    assert hosts
    assert hosts <= ARCHIVES
    assert any("bookworm-security" in uri for uri in uris)
    assert host.run("grep --recursive --ignore-case 'trusted *[=:] *yes' /etc/apt/sources.list*").rc == 1
    configuration = host.check_output("apt-config dump").lower()
    allowed = [line for line in configuration.splitlines() if re.search("unauthenticated|insecure", line)]
    assert [line for line in allowed if not re.search(r' "(0|false|no)";$', line)] == []


def test_cron_starts_at_boot(host: Host) -> None:
    assert host.service("cron").is_enabled


@pytest.mark.booted
def test_cron_runs(host: Host) -> None:
    assert host.service("cron").is_running


@pytest.mark.booted
def test_memory_file_systems_hold_no_programs(host: Host, cis: Data) -> None:
    for mount in cis["cis_mounts"]:
        assert {"nodev", "nosuid", "noexec"} <= set(host.mount_point(mount["path"]).options), mount


def test_file_permissions(host: Host, cis: Data) -> None:
    wanted = {}
    for control in cis["cis_permissions"]:
        for path in host.check_output(f"ls -d {control['path']} 2>/dev/null || true").splitlines():
            wanted[path] = f"{int(control['mode'], 8):o} root {control.get('group', 'root')}"
    assert len(wanted) > 15
    assert {control["path"] for control in cis["cis_permissions"] if control["type"] == "f"} <= wanted.keys()
    listing = host.check_output("stat --format='%n|%a %U %G' " + " ".join(map(shlex.quote, wanted)))
    found = dict(line.split("|") for line in listing.splitlines())
    assert found == wanted


@pytest.fixture(scope="session")
def everywhere(role_data: Callable[[str], Data]) -> str:
    """Arguments of find for the whole disk, of which some folders are partitions of their own."""
    return " ".join(["/", *(volume["path"] for volume in role_data("storage")["storage_volumes"]), "-xdev"])


def test_no_file_is_writable_by_all_or_of_nobody(host: Host, everywhere: str) -> None:
    assert host.check_output(f"find {everywhere} -type f -perm -0002") == ""
    assert host.check_output(f"find {everywhere} \\( -nouser -o -nogroup \\)") == ""
    assert host.check_output(f"find {everywhere} -type d -perm -0002 -not -perm -1000") == ""


def test_ssh_daemon_is_configured(host: Host, cis: Data) -> None:
    lines = host.file("/etc/ssh/sshd_config.d/10-testudo.conf").content_string.splitlines()
    assert {f"{c['key']} {c['value']}" for c in cis["cis_sshd"] if c["key"] != "AllowGroups"} <= set(lines)


@pytest.mark.running
def test_ssh_daemon_takes_it(host: Host, cis: Data) -> None:
    effective: dict[str, set[str]] = defaultdict(set)
    query = "sshd -T -C user=admin,host=localhost,addr=127.0.0.1"
    for line in host.check_output(query).splitlines():
        key, _, value = line.partition(" ")
        effective[key].add(value)
    for control in cis["cis_sshd"]:
        wanted = "admin" if control["key"] == "AllowGroups" else str(control["value"])
        assert effective[control["key"].lower()] == {wanted}, control["key"]


@pytest.mark.booted
def test_ssh_daemon_takes_no_password(host: Host) -> None:
    answer = host.run(
        "ssh -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        " -o PreferredAuthentications=password,keyboard-interactive root@127.0.0.1 true || true"
    )
    assert "Permission denied (publickey)" in answer.stderr


def test_sudo_logs_and_needs_a_terminal_of_its_own(host: Host) -> None:
    assert {
        "Defaults use_pty",
        'Defaults logfile="/var/log/sudo.log"',
        "Defaults timestamp_timeout=5",
    } <= set(host.file("/etc/sudoers.d/10-testudo").content_string.splitlines())
    host.check_output("visudo --check")
    assert host.run("grep --recursive '^[^#].*!authenticate' /etc/sudoers /etc/sudoers.d").rc == 1


def test_only_root_may_use_su(host: Host) -> None:
    lines = [line.split() for line in host.file("/etc/pam.d/su").content_string.splitlines()]
    assert ["auth", "required", "pam_wheel.so", "use_uid", "group=root"] in lines
    assert host.group("root").members == []


def pam_modules(host: Host, stack: str) -> list[str]:
    lines = host.file(f"/etc/pam.d/common-{stack}").content_string.splitlines()
    return [match[1] for line in lines if (match := re.match(r"[^#].*?(pam_\w+)\.so", line))]


def pam_arguments(host: Host, stack: str, module: str) -> set[str]:
    lines = host.file(f"/etc/pam.d/common-{stack}").content_string.splitlines()
    return next(set(line.split()) for line in lines if re.match(rf"[^#].*\b{module}\.so", line))


def test_passwords_are_checked_and_failures_counted(host: Host) -> None:
    assert pam_modules(host, "auth")[:4] == ["pam_faillock", "pam_unix", "pam_faillock", "pam_deny"]
    assert pam_modules(host, "account")[0] == "pam_faillock"
    assert pam_modules(host, "password")[:3] == ["pam_pwquality", "pam_pwhistory", "pam_unix"]
    assert host.run("grep --recursive --word-regexp nullok /etc/pam.d/common-*").rc == 1
    assert all("pam_unix" in pam_modules(host, stack) for stack in ("account", "session"))
    history, unix = (pam_arguments(host, "password", module) for module in ("pam_pwhistory", "pam_unix"))
    assert {"remember=24", "enforce_for_root", "use_authtok"} <= history
    assert {"yescrypt", "use_authtok"} <= unix
    assert not [word for word in unix if word.startswith("remember")]


def test_password_policy_is_written(host: Host, cis: Data) -> None:
    quality = host.file("/etc/security/pwquality.conf.d/50-testudo.conf").content_string.splitlines()
    wanted = {f"{control['key']} = {control['value']}" for control in cis["cis_pwquality"]}
    assert wanted | {"enforce_for_root"} <= set(quality)
    lockout = host.file("/etc/security/faillock.conf").content_string.splitlines()
    wanted = {f"{key} = {value}" for key, value in cis["cis_faillock"].items()}
    assert wanted | {"even_deny_root"} <= set(lockout)


@pytest.mark.parametrize(
    ("password", "fault"),
    [
        ("Tr0ub4dor&3", "shorter than 14"),
        ("aaaabbbbccccdddd1A", "same characters"),
        ("abcdefgh-1234-XYZ", "monotonic"),
        ("Kx7!pw-tortoise-9Q", "accepted"),
    ],
)
def test_weak_passwords_are_refused(host: Host, password: str, fault: str) -> None:
    answer = host.run(
        "/usr/bin/python3 -c %s %s",
        "import ctypes as c, sys\n"
        "q = c.CDLL('libpwquality.so.1'); q.pwquality_default_settings.restype = c.c_void_p\n"
        "s = c.c_void_p(q.pwquality_default_settings()); a = c.c_void_p()\n"
        "assert q.pwquality_read_config(s, None, c.byref(a)) == 0\n"
        "r = q.pwquality_check(s, sys.argv[1].encode(), None, None, c.byref(a))\n"
        "b = c.create_string_buffer(1024)\n"
        "q.pwquality_strerror.restype = c.c_char_p\n"
        "print(q.pwquality_strerror(b, c.c_size_t(1024), r, a).decode() if r < 0 else 'accepted')",
        password,
    )
    assert fault in answer.stdout, answer


def test_accounts(host: Host, cis: Data) -> None:
    users = [line.split(":") for line in host.check_output("getent passwd").splitlines()]
    assert [user[0] for user in users if user[2] == "0"] == ["root"]
    shadow = [line.split(":") for line in host.check_output("getent shadow").splitlines()]
    assert not [entry[0] for entry in shadow if not entry[1].startswith(("!", "*"))]
    daemons = [user for user in users if 0 < int(user[2]) < 1000 and user[0] != "sync"]
    assert not [user[0] for user in daemons if user[6] not in {"/usr/sbin/nologin", "/bin/false"}]
    definitions = set(host.file("/etc/login.defs").content_string.splitlines())
    assert {f"{control['key']} {control['value']}" for control in cis["cis_login_defs"]} <= definitions
    assert "INACTIVE=45" in host.file("/etc/default/useradd").content_string.splitlines()
    assert {user[1] for user in users} == {"x"}
    assert "nologin" not in host.file("/etc/shells").content_string


def test_a_key_outlives_the_term_of_a_password(host: Host) -> None:
    """The cloud user has a key and no password that could be changed; ageing would lock it out."""
    assert "no_pass_expiry" in pam_arguments(host, "account", "pam_unix")


def test_who_has_a_key_and_no_password_stays_in(host: Host) -> None:
    """By PAM as sshd asks it after a key was accepted, for an account whose term is long over."""
    name = "testudo-probe"
    host.check_output(f"useradd --no-create-home --shell /bin/sh {name}")
    try:
        host.check_output(f"chage --lastday 2020-01-01 --maxdays 365 --inactive 45 {name}")
        host.check_output("/usr/bin/python3 -c %s %s", ACCOUNT, name)
        host.check_output(f"chage --expiredate 2020-01-01 {name}")
        # As PAM_AUTH_ERR of the last module of the stack, or as what it is.
        assert host.run("/usr/bin/python3 -c %s %s", ACCOUNT, name).rc in {7, 13}
    finally:
        host.run(f"userdel {name}")


def test_no_password_was_changed_in_the_future(host: Host) -> None:
    today = int(host.check_output("date +%s")) // 86400
    entries = [line.split(":") for line in host.check_output("getent shadow").splitlines()]
    assert len(entries) > 10
    assert [entry[0] for entry in entries if entry[2] and int(entry[2]) > today] == []


def test_path_of_root_is_safe(host: Host) -> None:
    """As `su -` and as a login shell sets it."""
    for shell in ("su - root -c", "env --ignore-environment bash --login -c"):
        folders = host.check_output(f"{shell} 'echo $PATH'").splitlines()[-1].split(":")
        assert "/usr/sbin" in folders
        assert [folder for folder in folders if not folder.startswith("/")] == []
        assert host.check_output(f"find -L {' '.join(folders)} -maxdepth 0 -type d | wc --lines") == str(
            len(folders)
        )
        unsafe = "-maxdepth 0 \\( -perm /0022 -o -not -user root \\)"
        assert host.check_output(f"find -L {' '.join(folders)} {unsafe}") == ""


def test_homes_are_their_users_own(host: Host) -> None:
    """Of all who can log in: root, and on a booted machine the cloud user."""
    shells = [line for line in host.file("/etc/shells").content_string.splitlines() if line.startswith("/")]
    users = [line.split(":") for line in host.check_output("getent passwd").splitlines()]
    people = [(user[0], user[5]) for user in users if user[6] in shells]
    assert ("root", "/root") in people
    for name, home in people:
        mode, owner = host.check_output(f"stat --format='%a %U' {home}").split()
        assert (owner, int(mode, 8) & 0o027) == (name, 0), home
        listing = host.check_output(f"find {home} -maxdepth 1 -type f -name '.*' -printf '%f %m %u\\n'")
        for file, bits, of in map(str.split, listing.splitlines()):
            private = file in {".netrc", ".bash_history"}
            assert (of, int(bits, 8) & (0o077 if private else 0o133)) == (name, 0), f"{home}/{file}"
            assert file not in {".forward", ".rhosts"}, home


def test_users_and_groups_are_distinct(host: Host) -> None:
    users, groups = (
        [line.split(":") for line in host.file(path).content_string.splitlines()]
        for path in ("/etc/passwd", "/etc/group")
    )
    for entries in (users, groups):
        for field in (0, 2):
            values = [entry[field] for entry in entries]
            assert len(values) == len(set(values))
    assert {user[3] for user in users} <= {group[2] for group in groups}
    assert [user[0] for user in users if user[3] == "0"] == ["root"]
    assert [group[0] for group in groups if group[2] == "0"] == ["root"]
    shadow = next(group for group in groups if group[0] == "shadow")
    assert shadow[3] == ""
    assert not [user[0] for user in users if user[3] == shadow[2]]


def test_shells_end_when_idle_and_write_no_cores(host: Host) -> None:
    assert host.check_output("bash -lc 'umask; echo $TMOUT'").splitlines() == ["0027", "900"]
    assert "* hard core 0" in host.file("/etc/security/limits.d/50-testudo.conf").content_string


def test_banners_tell_nothing(host: Host) -> None:
    texts = {host.file(path).content_string for path in ("/etc/issue", "/etc/issue.net", "/etc/motd")}
    assert len(texts) == 1
    assert not re.search(r"\\[mrsv]|debian|linux|testudo|\d", texts.pop(), re.IGNORECASE)


def test_audit_rules_are_written_and_locked(host: Host, cis: Data) -> None:
    lines = host.file("/etc/audit/rules.d/50-testudo.rules").content_string.splitlines()
    rules = [line for line in lines if line.startswith("-")]
    assert {rule for control in cis["cis_audit_rules"] for rule in control["rules"]} <= set(rules)
    assert {
        f"-a always,exit -F path={path} -F perm=x -F auid>=1000 -F auid!=unset -k privileged"
        for path in cis["cis_audit_privileged"]
    } <= set(rules)
    assert rules[-1] == "-e 2"


def test_audit_watches_every_set_id_program(host: Host, cis: Data, everywhere: str) -> None:
    programs = host.check_output(f"find {everywhere} -type f -perm /6000").splitlines()
    assert "/usr/bin/sudo" in programs
    assert not set(programs) - set(cis["cis_audit_privileged"])


def test_audit_log_is_bounded(host: Host) -> None:
    lines = host.file("/etc/audit/auditd.conf").content_string.splitlines()
    assert {"max_log_file = 50", "num_logs = 5", "max_log_file_action = ROTATE"} <= set(lines)


@pytest.mark.booted
def test_audit_log_is_for_root_and_adm(host: Host) -> None:
    listing = host.check_output("find /var/log/audit -type f -printf '%m %u %g %f\\n'").splitlines()
    assert any(line.endswith(" audit.log") for line in listing)
    for mode, user, group, name in map(str.split, listing):
        assert int(mode, 8) & 0o137 == 0, name
        assert (user, group) in {("root", "adm"), ("root", "root")}, name


def test_audit_configuration_is_for_root(host: Host) -> None:
    files = "find /etc/audit -type f \\( -name '*.conf' -o -name '*.rules' \\)"
    names = host.check_output(files).splitlines()
    assert {"/etc/audit/auditd.conf", "/etc/audit/plugins.d/syslog.conf"} <= set(names)
    assert host.check_output(f"{files} \\( -perm /0137 -o -not -user root -o -not -group root \\)") == ""


def test_audit_tools_are_for_root(host: Host, cis: Data) -> None:
    tools = [rule["path"] for rule in cis["cis_aide_rules"] if rule.get("id") == "6.3.3"]
    assert len(tools) == 6
    found = host.check_output(f"stat --format='%a %U %G %n' {' '.join(tools)}").splitlines()
    assert found == [f"755 root root {tool}" for tool in tools]


@pytest.mark.booted
def test_audit_rules_are_loaded_and_locked(host: Host, cis: Data) -> None:
    assert host.service("auditd").is_running
    assert "enabled 2" in host.check_output("auditctl -s").splitlines()
    loaded = host.check_output("auditctl -l")
    keys = {rule.rsplit("-k ", 1)[1] for control in cis["cis_audit_rules"] for rule in control["rules"]}
    assert {
        key for key in keys | {"privileged"} if not re.search(rf"(-k |key=){key}$", loaded, re.MULTILINE)
    } == set()


def normal_rule(rule: str) -> tuple[str, ...]:
    """Put a rule as it is written and as auditctl lists it into one form."""
    words = shlex.split(rule)
    if words[0] == "-w":
        return tuple(words)
    parts: set[str] = set()
    for option, value in zip(words[::2], words[1::2], strict=True):
        match option:
            case "-S" if value != "all":
                parts |= {f"-S {call}" for call in value.split(",")}
            case "-C":
                parts.add(f"-C {' '.join(sorted(value.split('!=')))}")
            case "-k":
                parts.add(f"-F key={value}")
            case "-a" | "-F":
                parts.add(f"{option} {value.replace('unset', '-1')}")
    return tuple(sorted(parts))


@pytest.mark.booted
def test_loaded_audit_rules_are_the_written_ones(host: Host) -> None:
    written = host.file("/etc/audit/rules.d/50-testudo.rules").content_string.splitlines()
    rules = [normal_rule(line) for line in written if line.startswith(("-a ", "-w "))]
    listed = [normal_rule(line) for line in host.check_output("auditctl -l").splitlines()]
    assert len(rules) > 70
    assert sorted(listed) == sorted(rules)
    assert "No change" in host.check_output("augenrules --check")


@pytest.mark.booted
def test_audit_records_who_reads_the_credentials(host: Host) -> None:
    host.check_output("cat /var/lib/testudo/credentials/keyring.json > /dev/null")
    found = host.run("ausearch --input-logs --key testudo_credentials --start recent --comm cat")
    assert "keyring.json" in found.stdout


def test_journal_is_kept_and_bounded(host: Host) -> None:
    lines = host.file("/etc/systemd/journald.conf.d/testudo.conf").content_string.splitlines()
    assert {"Storage=persistent", "Compress=yes", "ForwardToSyslog=no"} <= set(lines)
    assert [line for line in lines if line.startswith("SystemMaxUse=")]


def test_logs_are_not_for_everybody(host: Host) -> None:
    """Group utmp writes who has logged in; else the owner alone writes, and group adm and the like read."""
    listing = host.check_output("find /var/log -type f -printf '%m %u %g %P\\n'").splitlines()
    assert listing
    for mode, user, group, name in map(str.split, listing):
        of_logins = re.fullmatch(r"(wtmp|btmp|lastlog)([.-].*)?", name)
        assert user == ("www-data" if name.startswith("nginx/") else "root"), name
        assert group in ({"utmp", "root"} if of_logins else {"root", "adm", "systemd-journal"}), name
        assert int(mode, 8) & (0o113 if of_logins else 0o137) == 0, name


@pytest.mark.booted
def test_journal_is_not_for_everybody(host: Host) -> None:
    files = "find /var/log/journal -type f -name '*.journal'"
    assert host.check_output(files)
    assert host.check_output(f"{files} -perm /0137") == ""


@pytest.mark.booted
def test_journal_is_on_disk(host: Host) -> None:
    assert "/var/log/journal/" in host.check_output("journalctl --header --boot")


def test_firewall_starts_at_boot(host: Host) -> None:
    assert host.service("nftables").is_enabled
    text = host.file("/etc/nftables.conf").content_string
    for hook in ("input", "forward", "output"):
        assert f"type filter hook {hook} priority filter; policy drop;" in text
    rules = [line.strip() for line in text.splitlines()]
    assert {
        "iif lo accept",
        "iif != lo ip saddr 127.0.0.0/8 drop",
        "iif != lo ip6 saddr ::1 drop",
        "oif lo accept",
    } <= set(rules)
    # Once for what comes in, once for what goes out.
    assert rules.count("ct state vmap { established : accept, related : accept, invalid : drop }") == 2


@pytest.mark.booted
def test_firewall_is_loaded(host: Host, cis: Data) -> None:
    ruleset = json.loads(host.check_output("nft --json list ruleset"))["nftables"]
    chains = {entry["chain"]["name"]: entry["chain"]["policy"] for entry in ruleset if "chain" in entry}
    assert chains == {"input": "drop", "forward": "drop", "output": "drop"}
    opened = {
        port
        for entry in ruleset
        if "rule" in entry and entry["rule"]["chain"] == "input"
        for expression in entry["rule"]["expr"]
        if "match" in expression
        and expression["match"]["left"] == {"payload": {"protocol": "tcp", "field": "dport"}}
        for port in expression["match"]["right"]["set"]
    }
    assert opened == set(cis["cis_inbound_tcp_ports"])


@pytest.mark.booted
def test_no_rules_of_iptables(host: Host) -> None:
    """systemd itself loads ip_tables at boot; a table is there only once somebody has asked for it."""
    assert host.run("cat /proc/net/ip_tables_names /proc/net/ip6_tables_names").stdout == ""
    loaded = {line.split()[0] for line in host.check_output("lsmod").splitlines()}
    assert not loaded & {"iptable_filter", "ip6table_filter", "iptable_nat", "ip6table_nat", "iptable_mangle"}


@pytest.mark.booted
def test_firewall_keeps_the_metadata_service_to_root(host: Host) -> None:
    """Refused by a rule of its own: anybody may reach port 80 elsewhere."""
    before = dropped(host)
    host.run("runuser -u www-data -- timeout 3 bash -c '> /dev/tcp/169.254.169.254/80'")
    assert dropped(host) > before


def dropped(host: Host) -> int:
    return int(host.run("journalctl --dmesg --grep 'nft metadata drop' --output cat | wc --lines").stdout)


def test_aide_watches_the_audit_tools(host: Host, cis: Data) -> None:
    """By lines of their own, and by what AIDE makes of the whole configuration."""
    lines = host.file("/etc/aide/aide.conf").content_string.splitlines()
    rules = [rule for rule in cis["cis_aide_rules"] if rule.get("id") == "6.3.3"]
    assert {f"{rule['path']} Contents" for rule in rules} <= set(lines)
    contents = next(line for line in lines if line.startswith("Contents = ")).partition(" = ")[2]
    wanted = {"p", "i", "n", "u", "g", "s", "b", "acl", "xattrs", "sha512"}
    assert wanted <= set(contents.split("+"))
    for path in [rule["path"] for rule in rules] + ["/etc/passwd", "/opt/testudo/venv/bin/python"]:
        answer = host.run(f"aide --config=/etc/aide/aide.conf --path-check=f:{path}")
        assert "selective rule" in answer.stdout, answer
    answer = host.run("aide --config=/etc/aide/aide.conf --path-check=f:/opt/testudo/weights/any/file")
    assert "negative rule" in answer.stdout, answer


def test_aide_runs_daily(host: Host, cis: Data) -> None:
    assert host.service("testudo-aide.timer").is_enabled
    text = host.file("/etc/systemd/system/testudo-aide.timer").content_string
    assert f"OnCalendar={cis['cis_aide_calendar']}" in text.splitlines()
    host.check_output(f"systemd-analyze calendar '{cis['cis_aide_calendar']}'")
    paths = " ".join(f"/etc/systemd/system/{unit}" for unit in (AIDE, BASELINE, "testudo-aide.timer"))
    verdict = host.run(f"systemd-analyze verify {paths}")
    assert "testudo-aide" not in verdict.stderr, verdict.stderr


@pytest.mark.parametrize("unit", [AIDE, BASELINE])
def test_aide_is_held_by_a_sandbox(host: Host, unit: str) -> None:
    """The promise is 2.0; the scale of --threshold is tenths. It is root, since it reads every file."""
    verdict = host.run(f"systemd-analyze security --offline=yes --threshold=13 /etc/systemd/system/{unit}")
    assert verdict.rc == 0, verdict.stdout


@pytest.mark.booted
def test_aide_timer_runs(host: Host) -> None:
    assert host.service("testudo-aide.timer").is_running


@pytest.fixture
def aide_of_etc(host: Host) -> Iterator[None]:
    """The real units, held to /etc: to hash everything thrice takes minutes."""
    folders = " ".join(f"/run/systemd/system/{unit}.d" for unit in (AIDE, BASELINE))
    narrow = "sed --quiet 's, --\\(init\\|check\\)$, --limit=/etc&,; /^ExecStart=/p'"
    host.check_output(f"mkdir --parents {folders}")
    for unit in (AIDE, BASELINE):
        lines = host.check_output(f"{narrow} /etc/systemd/system/{unit}")
        assert " --limit=/etc --" in lines
        host.check_output(
            f"printf '[Service]\\nExecStart=\\n%%s\\n' %s > /run/systemd/system/{unit}.d/probe.conf", lines
        )
    host.check_output("rm --force /var/lib/aide/aide.db && systemctl daemon-reload")
    yield
    host.check_output(f"rm --recursive {folders} && rm --force /var/lib/aide/aide.db")
    host.run(f"systemctl daemon-reload && systemctl reset-failed {AIDE}")


@pytest.mark.services
@pytest.mark.commands
@pytest.mark.usefixtures("aide_of_etc")
def test_aide_finds_what_was_changed(host: Host) -> None:
    """The first run makes the record; a later one fails where a file is changed, and says which."""
    path = "/etc/issue.net"
    first = host.run(f"systemctl start {AIDE}")
    assert first.rc == 0, journal_of_aide(host)
    assert "AIDE found NO differences" in journal_of_aide(host)
    assert host.check_output("stat --format='%a %U' /var/lib/aide /var/lib/aide/aide.db").splitlines() == [
        "700 root",
        "600 root",
    ]
    size = host.check_output(f"stat --format=%s {path}")
    try:
        host.check_output(f"echo changed >> {path}")
        assert host.run(f"systemctl start {AIDE}").rc == 1
        assert "AIDE found differences" in journal_of_aide(host)
        assert re.search(rf"^f .*: {path}$", journal_of_aide(host), re.MULTILINE)
        assert properties(host, AIDE, "Result") == {"Result": "exit-code"}
    finally:
        host.check_output(f"truncate --size={size} {path}")
    again = host.run(f"systemctl start {AIDE}")
    assert again.rc == 0, journal_of_aide(host)


def journal_of_aide(host: Host) -> str:
    """Everything that the comparisons said."""
    return str(host.check_output(f"journalctl --unit={AIDE} --output=cat --no-pager"))
