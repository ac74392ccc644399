"""`testudo weights fetch --from s3://…`, against moto's S3 over HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

if TYPE_CHECKING:
    from conftest import Command
    from published_like import Published

FILE = "autoregressive.pth"
SOURCE = "s3://models/tortoise/v2"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, published: Published, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3").Bucket("models")
    bucket.create(CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    for path in published.folder.iterdir():
        bucket.upload_file(str(path), f"tortoise/v2/{path.name}")
    yield bucket
    bucket.objects.delete()
    bucket.delete()


def assert_whole(out: Path, published: Published) -> None:
    assert sorted(path.name for path in out.iterdir()) == sorted(published.names)
    for path in out.iterdir():
        assert path.read_bytes() == (published.folder / path.name).read_bytes()


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_prefix_gives_every_file(
    weights: Command, published: Published, tmp_path: Path, slash: str
) -> None:
    done = weights("fetch", "--from", SOURCE + slash, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert_whole(tmp_path / "out", published)


@pytest.mark.parametrize(
    ("version", "answers"),
    [("same", ["206"]), ("none", ["206"]), ("other", ["412", "200"]), ("whole", ["416", "200"])],
)
def test_a_part_is_continued_if_the_object_is_the_same(
    weights: Command,
    bucket: Any,
    published: Published,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    *,
    version: str,
    answers: list[str],
) -> None:
    whole = (published.folder / FILE).read_bytes()
    out = tmp_path / "out"
    out.mkdir()
    etag = bucket.Object(f"tortoise/v2/{FILE}").e_tag
    (out / f"{FILE}.part").write_bytes(b"x" * len(whole) if version == "whole" else whole[:5000])
    if version != "none":
        (out / f"{FILE}.part.version").write_text('"0123"' if version == "other" else etag)
    caplog.set_level("INFO", logger="werkzeug")
    done = weights("fetch", "--from", SOURCE, "--out", out)
    assert done.exit_code == 0, done.output
    assert_whole(out, published)
    # moto's own log of its answers, coloured where they are errors.
    assert re.findall(rf'"\S*GET /models/tortoise/v2/{FILE} HTTP/1.1\S*" (\d+)', caplog.text) == answers


def test_another_object_than_the_pinned_is_refused(weights: Command, bucket: Any, tmp_path: Path) -> None:
    bucket.put_object(Key=f"tortoise/v2/{FILE}", Body=b"something else")
    refused = weights("fetch", "--from", SOURCE, "--out", tmp_path / "out")
    assert refused.exit_code == 1
    assert f"{SOURCE}/{FILE} has SHA-256" in refused.output
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize(
    ("source", "reason"),
    [("s3://models/nowhere", "NoSuchKey"), ("s3://nobody/tortoise", "NoSuchBucket")],
)
def test_what_is_not_there(weights: Command, tmp_path: Path, source: str, reason: str) -> None:
    refused = weights("fetch", "--from", source, "--out", tmp_path / "out")
    assert refused.exit_code == 3
    assert f"{source}/{FILE}: {reason} [file_not_there]" in refused.output


@pytest.mark.usefixtures("bucket")
def test_no_credentials(weights: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    refused = weights("fetch", "--from", SOURCE, "--out", tmp_path / "out")
    assert refused.exit_code == 3
    assert "Unable to locate credentials [access_refused]" in refused.output


@pytest.mark.usefixtures("bucket")
def test_no_server(weights: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    failed = weights("fetch", "--from", SOURCE, "--out", tmp_path / "out")
    assert failed.exit_code == 3
    assert "[source_fails]" in failed.output
