"""`testudo weights fetch`: whatever a source does, a file is there whole and as pinned, or not at all."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import re
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import httpx2
import published_like
import pytest
from mirror_server import Mirror, serving

from appliance.weights import sources, storage, transfer
from appliance.weights.errors import UnreachableError
from appliance.weights.pins import published as shipped

if TYPE_CHECKING:
    from conftest import Command
    from published_like import Published

# The one that is fetched first.
FILE = "autoregressive.pth"
PART = f"{FILE}.part"
TESTUDO = Path(sys.executable).with_name("testudo")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_whole(out: Path, published: Published) -> None:
    assert names(out) == sorted(published.names)
    for path in out.iterdir():
        assert path.read_bytes() == (published.folder / path.name).read_bytes()
        assert path.stat().st_mode & 0o777 == 0o644


def starts(mirror: Mirror) -> list[int]:
    """The offset of each request for FILE."""
    return [
        int(re.fullmatch(r"bytes=(\d+)-", text)[1]) if text else 0  # type: ignore[index]
        for text in mirror.ranges_of(FILE)
    ]


def test_a_mirror_gives_every_file_once(
    weights: Command, mirror: Mirror, published: Published, out: Path
) -> None:
    first = weights("fetch", "--from", mirror.address, "--out", out)
    assert first.exit_code == 0, first.output
    assert_whole(out, published)
    assert f"{FILE}: " in first.output
    assert f"{out}: {len(published.names)} files" in first.output
    assert f"Next: testudo weights convert {out} --out BUNDLE" in first.output
    asked = len(mirror.seen)
    again = weights("fetch", "--from", mirror.address, "--out", out)
    assert again.exit_code == 0
    assert again.output.count("was there, as pinned") == asked == len(published.names)
    assert len(mirror.seen) == asked
    verified = weights("verify", out)
    assert verified.exit_code == 0
    assert f"{asked} files, all as pinned" in verified.output


def test_the_hub_is_the_source_unless_another_is_given(
    weights: Command, mirror: Mirror, published: Published, out: Path
) -> None:
    packed = published_like.ARCHIVE
    mirror.files = {f"models/{name}": data for name, data in mirror.files.items()}
    mirror.files[f"packages/{packed}"] = published_like.archived(published.folder, {})
    published.content["hub"] = f"{mirror.address}/models"
    published.content["archive"]["url"] = f"{mirror.address}/packages"
    published.pin()
    done = weights("fetch", "--out", out)
    assert done.exit_code == 0, done.output
    assert_whole(out, published)
    paths = [request.path for request in mirror.seen]
    # The real hub has neither the tokenizer nor the norms, so it is not asked for them.
    assert "/models/tokenizer.json" not in paths
    assert f"/packages/{packed}" in paths


def test_only_what_every_bundle_needs(weights: Command, mirror: Mirror, out: Path) -> None:
    assert weights("fetch", "--from", mirror.address, "--out", out, "--required-only").exit_code == 0
    assert names(out) == sorted(
        [FILE, "clvp2.pth", "diffusion_decoder.pth", "vocoder.pth", "tokenizer.json", "mel_norms.pth"]
    )


def test_a_broken_transfer_goes_on_where_it_ended(
    weights: Command, mirror: Mirror, published: Published, out: Path
) -> None:
    third = len(mirror.files[FILE]) // 3
    mirror.cuts = deque([third, third])
    done = weights("fetch", "--from", mirror.address, "--out", out)
    assert done.exit_code == 0, done.output
    assert_whole(out, published)
    assert starts(mirror) == [0, third, 2 * third]
    etag = mirror.etag(mirror.files[FILE])
    assert [request.if_range for request in mirror.seen[:3]] == [None, etag, etag]


def test_a_later_run_goes_on_too(
    weights: Command, mirror: Mirror, published: Published, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PAUSES", ())
    mirror.cuts = deque([5000])
    failed = weights("fetch", "--from", mirror.address, "--out", out)
    assert failed.exit_code == 3
    assert "5000 bytes are kept [source_fails]" in failed.output
    assert "it goes on where it ended" in failed.output
    assert names(out) == [PART, f"{PART}.version"]
    assert weights("fetch", "--from", mirror.address, "--out", out).exit_code == 0
    assert starts(mirror) == [0, 5000]
    assert_whole(out, published)


def test_a_source_may_give_a_range_in_portions(
    weights: Command, mirror: Mirror, published: Published, out: Path
) -> None:
    size = len(mirror.files[FILE])
    mirror.cuts = deque([5000])
    mirror.portion = size // 3
    assert weights("fetch", "--from", mirror.address, "--out", out).exit_code == 0
    assert starts(mirror) == [0, *range(5000, size, size // 3)]
    assert_whole(out, published)


def test_a_part_that_is_whole_is_not_fetched_again(
    weights: Command, mirror: Mirror, published: Published, out: Path
) -> None:
    out.mkdir()
    (out / PART).write_bytes(mirror.files[FILE])
    assert weights("fetch", "--from", mirror.address, "--out", out).exit_code == 0
    assert starts(mirror) == []
    assert_whole(out, published)


@pytest.mark.parametrize("case", ["no ranges", "changed", "shorter", "too long a part"])
def test_what_cannot_be_continued_starts_anew(
    weights: Command, mirror: Mirror, published: Published, out: Path, case: str
) -> None:
    whole = mirror.files[FILE]
    out.mkdir()
    (out / PART).write_bytes(b"x" * (2 * len(whole) if case == "too long a part" else 7000))
    (out / f"{PART}.version").write_text('"before"' if case == "changed" else str(mirror.etag(whole)))
    mirror.ranges = case != "no ranges"
    if case == "shorter":
        mirror.etag = lambda _: None
        (out / PART).write_bytes(b"x" * len(whole))  # HTTP 416
    done = weights("fetch", "--from", mirror.address, "--out", out)
    assert done.exit_code == 0, done.output
    assert_whole(out, published)


def test_a_continued_file_of_two_versions_is_fetched_again_as_a_whole(
    weights: Command, mirror: Mirror, published: Published, out: Path
) -> None:
    # Without an ETag nobody can tell that the beginning was of another version, but the hash does.
    mirror.etag = lambda _: None
    out.mkdir()
    (out / PART).write_bytes(b"x" * 7000)
    assert weights("fetch", "--from", mirror.address, "--out", out).exit_code == 0
    assert starts(mirror) == [7000, 0]
    assert_whole(out, published)


def test_a_file_that_changes_on_the_way_is_fetched_again_as_a_whole(
    weights: Command, mirror: Mirror, published: Published, out: Path
) -> None:
    whole = mirror.files[FILE]
    mirror.etag = lambda _: None
    mirror.versions = {FILE: deque([b"x" * len(whole), whole, whole])}
    mirror.cuts = deque([7000])
    assert weights("fetch", "--from", mirror.address, "--out", out).exit_code == 0
    assert starts(mirror) == [0, 7000, 0]
    assert_whole(out, published)


@pytest.mark.parametrize("change", ["other content", "truncated", "empty", "another one's name"])
def test_another_file_than_the_pinned_is_deleted_unopened(
    weights: Command, mirror: Mirror, out: Path, change: str
) -> None:
    whole = mirror.files[FILE]
    mirror.files[FILE] = {
        "other content": whole[:-1] + bytes([whole[-1] ^ 1]),
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "another one's name": mirror.files["rlg_auto.pth"],
    }[change]
    refused = weights("fetch", "--from", mirror.address, "--out", out)
    assert refused.exit_code == 1
    assert "[hash_mismatch]" in refused.output
    assert f"pinned is {hashlib.sha256(whole).hexdigest()}" in refused.output
    assert "use another --from" in refused.output
    assert names(out) == []


@pytest.mark.parametrize("announce", [True, False])
def test_no_more_is_read_than_a_pin_allows(
    weights: Command, mirror: Mirror, out: Path, *, announce: bool
) -> None:
    mirror.announce = announce
    limit = len(mirror.files[FILE])
    mirror.files[FILE] += b"\0" * 200_000_000
    refused = weights("fetch", "--from", mirror.address, "--out", out)
    assert refused.exit_code == 1
    assert "[too_large]" in refused.output
    assert ("announces 200" if announce else "sends more") in refused.output
    assert f"its pin allows {limit}" in refused.output
    assert names(out) == []
    # What the kernel holds between two sockets, and no more.
    assert mirror.sent < limit + 50_000_000


def test_a_source_that_fails_for_a_time_is_asked_again(
    weights: Command, mirror: Mirror, published: Published, out: Path
) -> None:
    mirror.refusals = deque(
        [(503, {"Retry-After": "0"}), (429, {}), (500, {}), (502, {"Retry-After": "soon"})]
    )
    assert weights("fetch", "--from", mirror.address, "--out", out).exit_code == 0
    assert_whole(out, published)


def test_the_pause_grows_and_follows_the_source(
    weights: Command, mirror: Mirror, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(transfer, "time", SimpleNamespace(sleep=pauses.append))
    monkeypatch.setattr(transfer, "PAUSES", (1.0, 2.0, 5.0))
    mirror.refusals = deque([(503, {})] * 2 + [(503, {"Retry-After": "9"}), (503, {"Retry-After": "99999"})])
    failed = weights("fetch", "--from", mirror.address, "--out", out)
    assert failed.exit_code == 3
    assert "HTTP 503; 0 bytes are kept" in failed.output
    assert pauses == [1, 2, 9]
    assert names(out) == []


@pytest.mark.parametrize(
    ("status", "code"), [(404, "file_not_there"), (403, "access_refused"), (401, "access_refused")]
)
def test_a_source_that_refuses_is_not_asked_again(
    weights: Command, mirror: Mirror, out: Path, status: int, code: str
) -> None:
    mirror.refusals = deque([(status, {})])
    refused = weights("fetch", "--from", mirror.address, "--out", out)
    assert refused.exit_code == 3
    assert f"{mirror.address}/{FILE}: HTTP {status} [{code}]" in refused.output
    assert len(mirror.seen) == 1
    assert names(out) == []


def test_a_source_that_falls_silent_is_left_and_asked_again(
    weights: Command, mirror: Mirror, published: Published, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SILENT_SECONDS", 0.3)
    mirror.stall = threading.Event()
    mirror.cuts = deque([6000])
    assert weights("fetch", "--from", mirror.address, "--out", out).exit_code == 0
    assert starts(mirror) == [0, 6000]
    assert_whole(out, published)


def test_a_source_that_is_not_there(weights: Command, out: Path) -> None:
    with serving(Mirror()) as gone:
        address = gone.address
    failed = weights("fetch", "--from", address, "--out", out)
    assert failed.exit_code == 3
    assert "ConnectError" in failed.output
    assert "[source_fails]" in failed.output


def test_a_redirect_is_followed(weights: Command, mirror: Mirror, published: Published, out: Path) -> None:
    mirror.refusals = deque([(302, {"Location": f"{mirror.address}/{FILE}"}), (307, {"Location": FILE})])
    assert weights("fetch", "--from", mirror.address, "--out", out).exit_code == 0
    assert_whole(out, published)


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("http://192.0.2.1/x", "http://192.0.2.1"),
        ("ftp://127.0.0.1/x", "ftp://127.0.0.1"),
        ("file:///etc/passwd", "file://"),
        (f"/{FILE}", "more than 5 times"),
    ],
)
def test_a_redirect_that_is_not_secure_is_not_followed(
    weights: Command, mirror: Mirror, out: Path, target: str, shown: str
) -> None:
    mirror.refusals = deque([(302, {"Location": target})] * 6)
    refused = weights("fetch", "--from", mirror.address, "--out", out)
    assert refused.exit_code == 3, refused.output
    assert shown in refused.output
    assert "[redirect_refused]" in refused.output
    assert names(out) == []


@pytest.mark.parametrize("target", ["http://127.0.0.1/x", "https://localhost/x", "https://[::1]/x"])
def test_a_server_elsewhere_does_not_lead_to_services_of_this_machine(target: str) -> None:
    mirror = sources.Mirror("https://example.org/models")
    asked: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(str(request.url))
        return httpx2.Response(302, headers={"Location": target})

    mirror._client = httpx2.Client(transport=httpx2.MockTransport(answer))
    with pytest.raises(UnreachableError, match="redirects to") as refused, mirror.open(FILE, 0, None):
        pass
    assert refused.value.code == "redirect_refused"
    assert asked == [f"https://example.org/models/{FILE}"]


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("http://192.0.2.1/x", "source_insecure"),
        ("http://user:secret@192.0.2.1/x", "source_insecure"),
        ("https://example.org/x?token=secret", "source_invalid"),
        ("ftp://example.org/x", "source_invalid"),
        ("s3:///prefix", "source_invalid"),
        ("https://", "source_invalid"),
        ("https://user:secret@[::1/x", "source_invalid"),
        ("https://user:secret@host:port/x", "source_invalid"),
        ("/no/such/folder", "source_invalid"),
        ("hub", "source_invalid"),  # these pins have none
    ],
)
def test_what_is_no_source(weights: Command, out: Path, source: str, code: str) -> None:
    refused = weights("fetch", "--from", source, "--out", out)
    assert refused.exit_code == 2, refused.output
    assert f"[{code}]" in refused.output
    assert "secret" not in refused.output
    assert not out.exists()


def test_a_folder_gives_files_and_links_as_a_hub_cache_has(
    weights: Command, published: Published, tmp_path: Path, out: Path
) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name in published.names:
        (snapshot / name).symlink_to(published.folder / name)
    done = weights("fetch", "--from", snapshot.as_uri(), "--out", out)
    assert done.exit_code == 0, done.output
    assert_whole(out, published)
    assert not [path for path in out.iterdir() if path.is_symlink()]


def test_a_local_file_is_continued_only_if_it_is_the_same(published: Published) -> None:
    folder, path = sources.Folder(published.folder), published.folder / FILE
    with folder.open(FILE, 0, None) as content:
        version = content.validator
    with folder.open(FILE, 100, version) as content:
        assert b"".join(content.chunks) == path.read_bytes()[100:]
    os.utime(path, (1, 1))
    with pytest.raises(sources.ChangedContentError), folder.open(FILE, 100, version):
        pass


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "missing"])
def test_only_regular_files_are_read(weights: Command, published: Published, out: Path, kind: str) -> None:
    path = published.folder / FILE
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    refused = weights("fetch", "--from", published.folder, "--out", out)
    assert refused.exit_code == 3
    expected = "No such file or directory [file_not_there]" if kind == "missing" else "is not a regular file"
    assert expected in refused.output
    assert names(out) == []


def test_a_link_where_the_part_would_be_is_not_written_through(
    weights: Command, mirror: Mirror, tmp_path: Path, out: Path
) -> None:
    out.mkdir()
    (tmp_path / "precious").write_text("mine")
    for name in (PART, f"{PART}.version"):
        (out / name).symlink_to(tmp_path / "precious")
    refused = weights("fetch", "--from", mirror.address, "--out", out)
    assert refused.exit_code == 2
    assert "[part_invalid]" in refused.output
    (out / PART).unlink()
    (out / PART).write_bytes(mirror.files[FILE][:100])
    assert weights("fetch", "--from", mirror.address, "--out", out).exit_code == 0
    assert (tmp_path / "precious").read_text() == "mine"
    # Nor is it read, and told to a stranger as the version of the file.
    assert starts(mirror) == [100]
    assert mirror.seen[0].if_range is None


def test_a_wrong_file_that_is_already_there_is_left_to_its_owner(
    weights: Command, mirror: Mirror, out: Path
) -> None:
    out.mkdir()
    (out / FILE).write_bytes(b"mine")
    refused = weights("fetch", "--from", mirror.address, "--out", out)
    assert refused.exit_code == 1
    assert "Delete it and fetch again" in refused.output
    assert (out / FILE).read_bytes() == b"mine"
    assert mirror.seen == []


def test_two_fetches_do_not_write_to_one_file(weights: Command, mirror: Mirror, out: Path) -> None:
    out.mkdir()
    with (out / PART).open("wb") as held:
        held.write(b"x")
        fcntl.flock(held, fcntl.LOCK_EX)
        refused = weights("fetch", "--from", mirror.address, "--out", out)
    assert refused.exit_code == 2
    assert "another process writes" in refused.output
    assert (out / PART).read_bytes() == b"x"


def test_too_small_a_disk_is_noticed_before_it_is_full(
    weights: Command, mirror: Mirror, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: SimpleNamespace(free=storage.RESERVE + 100))
    refused = weights("fetch", "--from", mirror.address, "--out", out)
    assert refused.exit_code == 4
    assert "[disk_full]" in refused.output
    assert names(out) == []


def test_a_write_that_fails_keeps_what_there_is(
    mirror: Mirror, published: Published, out: Path, weights: Command
) -> None:
    # A limit of the process stands in for a full disk: the system refuses the write in the middle.
    failed = subprocess.run(
        [
            *("prlimit", "--fsize=8192", TESTUDO, "weights", "fetch"),
            *("--pins", published.pins, "--from", mirror.address, "--out", out),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 4, failed.stderr
    assert "File too large [cannot_write]" in failed.stderr
    assert "Free some space" in failed.stderr
    assert (out / PART).read_bytes() == mirror.files[FILE][:8192]
    assert weights("fetch", "--from", mirror.address, "--out", out).exit_code == 0
    assert_whole(out, published)


def test_a_folder_that_cannot_be_made(weights: Command, mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = weights("fetch", "--from", mirror.address, "--out", tmp_path / "file" / "out")
    assert refused.exit_code == 4
    assert "Not a directory [cannot_write]" in refused.output


def test_small_files_come_out_of_the_archive_and_nothing_else(
    weights: Command, mirror: Mirror, published: Published, tmp_path: Path, out: Path
) -> None:
    hostile = {"../escaped": b"x", str(tmp_path / "absolute"): b"x", "voices/famous/1.wav": b"x"}
    packed = published_like.archived(published.folder, hostile)
    published.content["archive"].update(sha256=hashlib.sha256(packed).hexdigest(), limit=len(packed))
    published.pin()
    del mirror.files["tokenizer.json"], mirror.files["mel_norms.pth"]
    mirror.files[published_like.ARCHIVE] = packed
    done = weights("fetch", "--from", mirror.address, "--out", out)
    assert done.exit_code == 0, done.output
    assert_whole(out, published)
    assert not (tmp_path / "escaped").exists()
    assert not (tmp_path / "absolute").exists()


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("swells", "too_large"),
        ("not gzip", "archive_unreadable"),
        ("not tar", "archive_unreadable"),
        ("lacks the member", "archive_unreadable"),
        ("other member", "hash_mismatch"),
        ("other archive", "hash_mismatch"),
    ],
)
def test_an_archive_that_is_not_what_it_should_be(
    weights: Command, mirror: Mirror, published: Published, out: Path, *, case: str, code: str
) -> None:
    del mirror.files["tokenizer.json"]
    packed = {
        "swells": gzip.compress(b"\0" * 50_000_000),
        "not gzip": b"PK" * 100,
        "not tar": gzip.compress(b"text" * 1000),
    }.get(case, published_like.archived(published.folder, {}))
    if case == "lacks the member":
        published.entry("tokenizer.json")["member"] = "elsewhere"
    if case == "other member":
        published.entry("tokenizer.json")["member"] = published.entry("mel_norms.pth")["member"]
    published.content["archive"].update(sha256=hashlib.sha256(packed).hexdigest(), limit=len(packed))
    published.pin()
    mirror.files[published_like.ARCHIVE] = packed[:-1] + b"?" if case == "other archive" else packed
    refused = weights("fetch", "--from", mirror.address, "--out", out)
    assert refused.exit_code == 1
    assert f"[{code}]" in refused.output
    assert not (out / "tokenizer.json").exists()
    # Neither parts nor the archive with all that is in it.
    assert not [name for name in names(out) if name.endswith(".part") or "tortoise-tts" in name]


def test_a_file_without_a_pin_needs_a_hash_from_the_user(
    weights: Command, mirror: Mirror, published: Published, out: Path
) -> None:
    known = published.entry("cvvp.pth").pop("sha256")
    published.pin()
    assert weights("fetch", "--from", mirror.address, "--out", out).exit_code == 0
    assert "cvvp.pth" not in names(out)
    wrong = weights("fetch", "--from", mirror.address, "--out", out, "--sha256", f"cvvp.pth={'0' * 64}")
    assert wrong.exit_code == 1
    assert "[hash_mismatch]" in wrong.output
    assert "cvvp.pth" not in names(out)
    right = weights("fetch", "--from", mirror.address, "--out", out, "--sha256", f"cvvp.pth={known.upper()}")
    assert right.exit_code == 0, right.output
    assert_whole(out, published)


@pytest.mark.parametrize(
    ("option", "code"),
    [
        (f"{FILE}={'0' * 64}", "pin_fixed"),
        (f"stranger.pth={'0' * 64}", "pin_fixed"),
        ("cvvp.pth", "hash_invalid"),
        ("cvvp.pth=123", "pins_invalid"),
    ],
)
def test_a_pin_is_not_changed_by_an_option(
    weights: Command, mirror: Mirror, published: Published, out: Path, *, option: str, code: str
) -> None:
    del published.entry("cvvp.pth")["sha256"]
    published.pin()
    refused = weights("fetch", "--from", mirror.address, "--out", out, "--sha256", option)
    assert refused.exit_code == 2
    assert f"[{code}]" in refused.output
    assert mirror.seen == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pins: pins["files"].append(pins["files"][0]), "a file is listed twice"),
        (lambda pins: pins["files"].append(pins["files"][0] | {"name": "x"}), "two files become one network"),
        (lambda pins: pins["files"].pop(0), "nothing becomes autoregressive"),
        (lambda pins: pins["files"][0].update(name="../x"), "files.0.name"),
        (lambda pins: pins["files"][0].update(name="/etc/x"), "files.0.name"),
        (lambda pins: pins["files"][0].update(sha256="0"), "files.0.sha256"),
        (lambda pins: pins["files"][0].update(limit=0), "files.0.limit"),
        (lambda pins: pins["files"][-1].update(network="stranger"), "no such network: stranger"),
        (lambda pins: pins.pop("archive"), "a member without an archive"),
        (lambda pins: pins.update(hub="ftp://x"), "hub"),
        (lambda pins: pins.update(surprise=1), "surprise"),
    ],
)
def test_pins_that_do_not_add_up(
    weights: Command, published: Published, out: Path, change: object, message: str
) -> None:
    change(published.content)  # type: ignore[operator]
    published.pins.write_text(published_like.yaml.safe_dump(published.content))
    refused = weights("fetch", "--out", out)
    assert refused.exit_code == 2
    assert message in refused.output
    assert "[pins_invalid]" in refused.output


@pytest.mark.parametrize("content", [b"\xff", b"a: [", b"!!python/object/apply:os.getpid []", None])
def test_pins_that_are_none(weights: Command, published: Published, out: Path, content: bytes | None) -> None:
    published.pins.unlink()
    if content is not None:
        published.pins.write_bytes(content)
    refused = weights("fetch", "--out", out)
    assert refused.exit_code == 2
    assert "[pins_unreadable]" in refused.output


def test_the_pins_that_we_ship() -> None:
    pins = shipped()
    assert pins.hub == "https://huggingface.co/Manmay/tortoise-tts/resolve/main"
    assert pins.archive is not None
    assert pins.archive.url.startswith("https://files.pythonhosted.org/")
    hashes = {file.name: file.sha256 for file in pins.files}
    assert [name for name, digest in hashes.items() if digest is None] == ["cvvp.pth"]
    assert hashes["autoregressive.pth"] == "9c6651b9996df6cef6a1fc459738ae207ab60f902ec49b4d0623ca8ab6110d51"
    assert len(set(hashes.values())) == len(hashes)
    assert {file.licence for file in pins.files} == {"Apache-2.0"}
    assert sum(file.limit for file in pins.pinned()) < 4_600_000_000
