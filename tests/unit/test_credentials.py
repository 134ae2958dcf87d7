"""Content credentials: signed, read and checked."""

import io
import json
import socket
from pathlib import Path

import c2pa
import numpy as np
import pytest
from certificates import signing_pair
from PIL import Image

from farm.cli.app import run
from farm.errors import InvalidInput
from farm.formats.credentials import open_signer, told_credentials
from farm.formats.encoding import encode
from farm.formats.picture_file import Facts
from farm.job import Format
from farm.spec import CheckpointInfo, RenderRequest

GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
INFO = CheckpointInfo(
    id="tiny", revision="1", pixel_factor=8, size_multiple=8, native_height=64, native_width=64,
    default_guidance=4.0, vocab_size=72, codebook_size=64, mask_token_id=71, text_tokens=77,
    pooled_dim=8, hidden_dim=8,
)  # fmt: skip
SIGNED = "unaltered, signed as signer; --trust PEM checks the name"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return signing_pair(tmp_path)


def picture(kind: str) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_a_signed_picture_says_that_it_was_generated_and_has_the_same_pixels(
    kind: str, pair: tuple[Path, Path]
) -> None:
    data = picture(kind)
    signed = open_signer(*pair)(data)
    assert len(signed) - len(data) < 5000
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(signed)) as after:
        assert before.tobytes() == after.tobytes()
    told = json.loads(c2pa.Reader(f"image/{kind.lower()}", io.BytesIO(signed)).json())
    assert told["validation_state"] == "Valid"
    assertions = told["manifests"][told["active_manifest"]]["assertions"]
    assert GENERATED in json.dumps(assertions)
    assert told_credentials(signed) == SIGNED
    assert told_credentials(data) is None


def test_a_picture_that_was_changed_afterwards_is_found_out(pair: tuple[Path, Path]) -> None:
    signed = bytearray(open_signer(*pair)(picture("JPEG")))
    signed[-10] ^= 1
    assert told_credentials(bytes(signed)) == "invalid, signed by signer"


def test_a_name_that_anyone_can_write_is_trusted_only_by_its_authority(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    spec = RenderRequest(prompt="a ring").resolve(INFO, seed=7)
    facts = Facts(spec, 0, "cpu", np.zeros((8, 8), np.uint16))
    made = encode(np.zeros((64, 64, 3), np.uint8), facts, Format.PNG)
    files = {folder: folder / "picture.png" for folder in (ours, theirs)}
    for folder, file in files.items():
        folder.mkdir()
        file.write_bytes(open_signer(*signing_pair(folder))(made))
    roots = ours / "chain.pem"
    text = roots.read_text()
    roots.write_text(text[text.rindex("-----BEGIN") :])
    assert told_credentials(files[ours].read_bytes(), roots.read_text()) == (
        "trusted, signed by signer"
    )
    assert told_credentials(files[theirs].read_bytes(), roots.read_text()) == (
        "unaltered, signed as signer; no one trusted says so"
    )
    trust = ["inspect", "--trust", str(roots)]
    assert run([*trust, str(files[ours])]) == 0
    assert run([*trust, str(files[ours]), str(files[theirs])]) == 1
    (tmp_path / "text.pem").write_text("nothing of the kind")
    assert run(["inspect", "--trust", str(tmp_path / "text.pem"), str(files[ours])]) == 2


def test_credentials_that_are_said_to_be_elsewhere_are_not_fetched(pair: tuple[Path, Path]) -> None:
    chain, key = (path.read_bytes() for path in pair)
    signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo("es256", chain, key, None))
    action = {"action": "c2pa.created", "digitalSourceType": GENERATED}
    told = {"assertions": [{"label": "c2pa.actions", "data": {"actions": [action]}}]}
    settings = c2pa.Settings.from_dict({"verify": {"verify_after_sign": False}})
    builder = c2pa.Builder(told, c2pa.Context(settings))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        builder.set_remote_url(f"http://127.0.0.1:{server.getsockname()[1]}/credentials")
        builder.set_no_embed()
        out = io.BytesIO()
        builder.sign(signer, "image/jpeg", io.BytesIO(picture("JPEG")), out)
        assert told_credentials(out.getvalue() + b"jumb c2pa") is None
        with pytest.raises(BlockingIOError):  # no one has come
            server.accept()


def test_what_cannot_sign_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    chain, secret = pair
    sign = open_signer(chain, secret)
    with pytest.raises(InvalidInput, match="only PNG, WebP and JPEG"):
        sign(b"tokens")
    with pytest.raises(InvalidInput, match="cannot be read") as caught:
        open_signer(tmp_path / "nothing.pem", secret)
    assert caught.value.field == "--certificate"
    with pytest.raises(InvalidInput, match="not a private key") as caught:
        open_signer(chain, chain)
    assert caught.value.field == "--key"
    (tmp_path / "text.pem").write_text("nothing of the kind")
    with pytest.raises(InvalidInput, match=r"text\.pem cannot sign"):
        open_signer(tmp_path / "text.pem", secret)(picture("PNG"))
