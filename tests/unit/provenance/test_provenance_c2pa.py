"""Manifests: signed, read, tampered with, of somebody else; and never a connection."""

from __future__ import annotations

import io
import json
import stat
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import c2pa as library
import numpy as np
import pytest
import soundfile

from appliance.audio import FORMATS
from appliance.provenance import c2pa
from appliance.provenance.authority import LocalAuthority
from appliance.provenance.c2pa import Claim, ManifestSigner, consent_hash, read
from appliance.provenance.errors import ProvenanceError
from appliance.provenance.verify import Manifest, Watermark, examine

RATE = 24_000
TONE = (np.sin(np.arange(4 * RATE) / 20) / 2).astype(np.float32)
CLAIM = Claim("out_1", "tortoise-tiny", consent_hash("con_1"), disclosed=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> LocalAuthority:
    return LocalAuthority.create(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def signer(authority: LocalAuthority) -> ManifestSigner:
    return ManifestSigner(authority, authority.chain)


def spoken(audio_format: str) -> bytes:
    """A file as the API makes it."""
    encoder = FORMATS[audio_format].encoder(RATE)
    return encoder.feed((TONE * 32767).astype("<i2").tobytes()) + encoder.finish()


@pytest.mark.parametrize("audio_format", ["wav", "mp3"])
def test_a_signed_file_says_what_was_claimed(
    authority: LocalAuthority, signer: ManifestSigner, audio_format: str
) -> None:
    plain = spoken(audio_format)
    signed = signer.sign(plain, audio_format, CLAIM)
    found = read(signed, audio_format, authority.root)
    assert found == c2pa.Credentials(valid=True, claim=CLAIM)
    assert b"con_1" not in signed
    assert read(plain, audio_format, authority.root) is None
    heard, rate = soundfile.read(io.BytesIO(signed), dtype="int16")
    assert rate == RATE
    # What the stream's header leaves out is filled in, and not a sample changes.
    before, _ = soundfile.read(io.BytesIO(plain), dtype="int16")
    assert np.array_equal(heard, before)


def test_it_is_declared_to_be_made_by_a_model(authority: LocalAuthority, signer: ManifestSigner) -> None:
    signed = signer.sign(spoken("wav"), "wav", CLAIM)
    with library.Reader("audio/wav", io.BytesIO(signed)) as reader:
        assert c2pa.TRAINED_MEDIA in json.dumps(reader.get_active_manifest())


@pytest.mark.parametrize("audio_format", ["wav", "mp3"])
def test_one_changed_bit_makes_it_invalid(
    authority: LocalAuthority, signer: ManifestSigner, audio_format: str
) -> None:
    signed = bytearray(signer.sign(spoken(audio_format), audio_format, CLAIM))
    # Of the sound.
    place = 60_000 if audio_format == "wav" else -5_000
    signed[place] ^= 1
    found = read(bytes(signed), audio_format, authority.root)
    assert found is not None
    assert (found.valid, found.claim) == (False, None)
    assert "assertion.dataHash.mismatch" in found.faults


def test_a_changed_claim_and_a_foreign_signature_are_invalid(
    authority: LocalAuthority, signer: ManifestSigner, tmp_path: Path
) -> None:
    signed = signer.sign(spoken("wav"), "wav", CLAIM)
    changed = read(signed.replace(b"out_1", b"out_2"), "wav", authority.root)
    assert changed is not None
    assert (changed.valid, changed.claim) == (False, None)
    other = LocalAuthority.create(tmp_path)
    foreign = read(signed, "wav", other.root)
    assert foreign is not None
    assert (foreign.valid, foreign.claim, foreign.faults) == (False, None, ("signingCredential.untrusted",))


def test_a_wrong_signature_is_not_handed_out_as_valid(authority: LocalAuthority) -> None:
    class Liar:
        public_key = authority.public_key

        def sign(self, message: bytes) -> bytes:
            return authority.sign(message + b"!")

    signed = ManifestSigner(Liar(), authority.chain).sign(spoken("wav"), "wav", CLAIM)
    found = read(signed, "wav", authority.root)
    assert found is not None
    assert not found.valid


def test_a_signer_that_fails_is_an_error(authority: LocalAuthority) -> None:
    class Away:
        public_key = authority.public_key

        def sign(self, message: bytes) -> bytes:
            raise OSError("secret detail", len(message))

    with pytest.raises(ProvenanceError) as failed:
        ManifestSigner(Away(), authority.chain).sign(spoken("wav"), "wav", CLAIM)
    assert failed.value.code == "signing_failed"
    assert "secret" not in str(failed.value)


def test_the_authority_keeps_its_files_to_its_owner_and_never_replaces_them(tmp_path: Path) -> None:
    made = LocalAuthority.create(tmp_path)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    # The root's key is nowhere.
    assert sum(b"PRIVATE" in path.read_bytes() for path in tmp_path.iterdir()) == 1
    loaded = LocalAuthority.load(tmp_path)
    assert (loaded.chain, loaded.root) == (made.chain, made.root)
    signed = ManifestSigner(loaded, loaded.chain).sign(spoken("wav"), "wav", CLAIM)
    assert read(signed, "wav", made.root) == c2pa.Credentials(valid=True, claim=CLAIM)
    with pytest.raises(ProvenanceError) as again:
        LocalAuthority.create(tmp_path)
    assert again.value.code == "authority_exists"


def test_a_chain_for_another_key_is_refused(authority: LocalAuthority, tmp_path: Path) -> None:
    with pytest.raises(ProvenanceError) as refused:
        ManifestSigner(authority, LocalAuthority.create(tmp_path).chain)
    assert refused.value.code == "authority_invalid"


def test_what_cannot_be_claimed_or_carried_is_refused(
    authority: LocalAuthority, signer: ManifestSigner
) -> None:
    for wrong in [
        ("", "m", None),
        ("a b", "m", None),
        ("a", "m\n", None),
        ("a", "m", "con_1"),
        ("a", "m", None, 1),
    ]:
        with pytest.raises(ProvenanceError) as refused:
            Claim(*wrong)
        assert refused.value.code == "claim_invalid"
    for use in (lambda: signer.sign(b"", "opus", CLAIM), lambda: read(b"", "opus", authority.root)):
        with pytest.raises(ProvenanceError) as refused:
            use()
        assert refused.value.code == "format_unsupported"
    with pytest.raises(ProvenanceError) as refused:
        signer.sign(b"no sound", "wav", CLAIM)
    assert refused.value.code == "signing_failed"


def test_no_connection_is_made(authority: LocalAuthority) -> None:
    asked = []

    class Host(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Host)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        remote = _remote(authority, f"http://127.0.0.1:{server.server_port}/manifest")
        # The bait works: the library, as it comes, goes there.
        with pytest.raises(library.C2paError):
            library.Reader("audio/wav", io.BytesIO(remote))
        assert asked
        asked.clear()
        found = read(remote, "wav", authority.root)
        assert found is None or not found.valid
        assert not asked
    finally:
        server.shutdown()
        server.server_close()


def _remote(authority: LocalAuthority, address: str) -> bytes:
    plain, out = io.BytesIO(), io.BytesIO()
    soundfile.write(plain, TONE, RATE, format="WAV", subtype="PCM_16")
    settings = library.Settings.from_dict({"verify": {"verify_after_sign": False}})
    with (
        library.Context(settings) as context,
        library.Builder(c2pa._definition(CLAIM), context=context) as builder,
        library.Signer.from_callback(authority.sign, library.C2paSigningAlg.ES256, authority.chain) as signer,
    ):
        builder.set_no_embed()
        builder.set_remote_url(address)
        builder.sign(signer, "audio/wav", plain, out)
    return out.getvalue()


def test_torch_is_not_needed_to_sign_and_examine() -> None:
    code = (
        "import sys, appliance.provenance.c2pa, appliance.provenance.verify; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        (0.95, Watermark.FOUND),
        (0.7, Watermark.FOUND),
        (0.5, Watermark.INCONCLUSIVE),
        (0.1, Watermark.NOT_FOUND),
        (float("nan"), Watermark.INCONCLUSIVE),
    ],
)
def test_a_report_says_what_the_score_means(
    authority: LocalAuthority, signer: ManifestSigner, score: float, verdict: Watermark
) -> None:
    signed = signer.sign(spoken("mp3"), "mp3", CLAIM)
    report = examine(signed, TONE, RATE, lambda *_: score, authority.root)
    assert report.watermark == verdict
    assert (report.manifest, report.output_id, report.consent_sha256) == (
        Manifest.VALID,
        CLAIM.output_id,
        CLAIM.consent_sha256,
    )


def test_nothing_is_said_of_short_silent_or_high_clips(
    authority: LocalAuthority,
) -> None:
    def never(*_: object) -> float:
        raise AssertionError

    high = np.sin(np.arange(4 * RATE) * (2 * np.pi * 4000 / RATE)).astype(np.float32)
    for clip in (TONE[:RATE], np.zeros_like(TONE), TONE[:0], high, TONE * np.float32(np.nan)):
        report = examine(spoken("aac"), clip, RATE, never, authority.root)
        assert (report.watermark, report.score) == (Watermark.INCONCLUSIVE, None)
        assert report.manifest == Manifest.ABSENT


def test_an_invalid_manifest_tells_no_ids(authority: LocalAuthority, signer: ManifestSigner) -> None:
    signed = bytearray(signer.sign(spoken("wav"), "wav", CLAIM))
    signed[60_000] ^= 1
    report = examine(bytes(signed), TONE, RATE, lambda *_: 1.0, authority.root)
    assert report.manifest == Manifest.INVALID
    assert (report.output_id, report.model, report.consent_sha256) == (None, None, None)
    assert report.faults
