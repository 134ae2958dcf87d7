"""Content credentials: a signed statement in a picture file that it was generated.

C2PA 2.2, https://spec.c2pa.org. A signature has other bytes every time, so only copies that leave
the farm are signed, never what is stored. Needs the extra ``sign`` (c2pa-python).
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from farm.errors import InvalidInput
from farm.formats.origin import GENERATED

Sign = Callable[[bytes], bytes]

_STATEMENT = {
    "claim_generator_info": [{"name": "amused-farm"}],
    "assertions": [
        {
            "label": "c2pa.actions",
            "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": GENERATED}]},
        }
    ],
}
# Without these a file takes a quarter of a second and 100 kB.
_SETTINGS = {"builder": {"thumbnail": {"enabled": False}}, "verify": {"verify_after_sign": False}}
TRUSTED = "trusted"

# A stranger's file may name an address where its credentials are said to be.
_OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}


def open_signer(certificate: Path, key: Path) -> Sign:
    """What adds credentials to the bytes of a PNG, WebP or JPEG file.

    Args:
        certificate: PEM, the publisher's and those that lead to its root.
        key: PEM, its private key.

    Raises:
        InvalidInput: a file cannot be used, or c2pa-python is not installed.
    """
    c2pa = _library()
    chain, secret = _read(certificate, "--certificate"), _read(key, "--key")
    try:
        signer = c2pa.Signer.from_info(
            c2pa.C2paSignerInfo(_algorithm(secret, key), chain, secret, None)
        )
        context = c2pa.Context(c2pa.Settings.from_dict(_SETTINGS))
    except c2pa.C2paError as error:
        raise _unusable(certificate, error) from None

    def sign(data: bytes) -> bytes:
        out = io.BytesIO()
        builder = c2pa.Builder(json.dumps(_STATEMENT), context)
        try:
            builder.sign(signer, _media_type(data), io.BytesIO(data), out)
        except c2pa.C2paError as error:
            raise _unusable(certificate, error) from None
        return out.getvalue()

    return sign


def told_credentials(data: bytes, roots: str | None = None) -> str | None:
    """What a picture file's credentials say, for people; None if it has none. Nothing is fetched
    from elsewhere.

    Args:
        data: the file.
        roots: PEM of the authorities that are trusted. Anyone can make a certificate with any
            name; it begins with ``TRUSTED`` only where one of these has issued it.
    """
    if b"jumb" not in data or b"c2pa" not in data:
        return None
    try:
        c2pa = _library()
    except InvalidInput as error:
        return f"not checked: {error.hint}"
    settings: dict[str, Any] = _OFFLINE
    if roots is not None:
        settings = {
            "verify": {**_OFFLINE["verify"], "verify_trust": True},
            "trust": {"trust_anchors": roots},
        }
    try:
        context = c2pa.Context(c2pa.Settings.from_dict(settings))
        reader = c2pa.Reader(_media_type(data), io.BytesIO(data), context=context)
        told = json.loads(reader.json())
    except (c2pa.C2paError, InvalidInput):
        return None
    manifest = told["manifests"][told["active_manifest"]]
    state = str(told.get("validation_state", "")).lower() or "not checked"
    name = manifest.get("signature_info", {}).get("common_name")
    if state != "valid":
        return f"{state}, signed by {name}"
    doubt = "no one trusted says so" if roots else "--trust PEM checks the name"
    return f"unaltered, signed as {name}; {doubt}"


def read_roots(path: Path) -> str:
    """The certificates of a PEM file."""
    from cryptography.x509 import load_pem_x509_certificates

    data = _read(path, "--trust")
    try:
        load_pem_x509_certificates(data)
    except ValueError:
        raise InvalidInput(
            f"{path} has no certificates", field="--trust", hint="PEM, of the authorities"
        ) from None
    return data.decode("ascii", errors="replace")


def _algorithm(secret: bytes, path: Path) -> str:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(secret, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    match key:
        case ec.EllipticCurvePrivateKey(key_size=256 | 384 | 521 as size):
            return {256: "es256", 384: "es384", 521: "es512"}[size]
        case ed25519.Ed25519PrivateKey():
            return "ed25519"
        case rsa.RSAPrivateKey():
            return "ps256"
    raise InvalidInput(
        f"{path} is not a private key that can sign",
        field="--key",
        hint="an unencrypted PEM file with a key on P-256, P-384 or P-521, Ed25519 or RSA",
    )


def _media_type(data: bytes) -> str:
    if data.startswith(b"\x89PNG"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    raise InvalidInput("only PNG, WebP and JPEG files can be signed", field="--sign")


def _read(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", field=field) from None


def _unusable(certificate: Path, error: Exception) -> InvalidInput:
    return InvalidInput(
        f"{certificate} cannot sign: {error}",
        field="--certificate",
        hint="a PEM chain of the key's certificate, issued for signing documents or e-mail",
    )


def _library() -> Any:
    try:
        import c2pa
    except ImportError:
        raise InvalidInput(
            "c2pa-python is not installed", field="--sign", hint='pip install "amused-farm[sign]"'
        ) from None
    return c2pa
