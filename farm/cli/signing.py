"""The flags of commands that sign pictures on their way out of the farm."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farm.errors import InvalidInput

if TYPE_CHECKING:
    from farm.formats.credentials import Sign

Signing = Annotated[
    bool, typer.Option("--sign", help="Add C2PA content credentials to the pictures.")
]
Certificate = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        envvar="FARM_SIGN_CERTIFICATE",
        help="PEM chain that --sign uses.",
        show_default=False,
    ),
]
Key = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", envvar="FARM_SIGN_KEY", help="PEM of its private key.", show_default=False
    ),
]


def signer(certificate: Path | None, key: Path | None) -> "Sign":
    """What adds credentials to the bytes of a picture file."""
    from farm.formats.credentials import open_signer

    if certificate is None or key is None:
        raise InvalidInput(
            "needs a certificate and its private key",
            field="--sign",
            hint="--certificate chain.pem --key key.pem",
        )
    return open_signer(certificate, key)
