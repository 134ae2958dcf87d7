"""What a process of the control plane must be told, read once at its start."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from farm.errors import InvalidInput
from farm.job import MAX_ASSET_BYTES
from farm.paths import data_dir

Kind = TypeVar("Kind", bound="FarmSettings")


def _split(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]  # separated by commas


class FarmSettings(BaseSettings):
    """What every process shares. Variables carry the prefix ``FARM_``, but for ``REDIS_URL``."""

    model_config = SettingsConfigDict(
        env_prefix="FARM_", frozen=True, populate_by_name=True, extra="ignore"
    )

    data: Path = Field(default_factory=data_dir)
    redis_url: str = Field(validation_alias=AliasChoices("redis_url", "REDIS_URL"))
    store: str = ""  # empty: DATA/store
    name: str = Field(default="farm", pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")  # the keys' hash tag

    single_writer: bool = False  # one worker: then a store may let several writers win

    @field_validator("data")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: str) -> str:
        if not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return value

    @property
    def store_url(self) -> str:
        return self.store or str(self.data / "store")


class GatewaySettings(FarmSettings):
    """What the gateway needs besides."""

    host: str = "127.0.0.1"
    port: int = Field(default=8400, ge=0, le=65535)  # 0: any free one
    checkpoints: Names = ()  # the first is the default
    keys: Path | None = None  # JSON: {sha256 of a key: {"tenant": ..., "expires": ...}}
    open: bool = False  # requests without a key are tenant "local"; for loopback only
    secret: SecretStr | None = None  # signs object addresses; else DATA/secret is made
    url_seconds: int = Field(default=3600, ge=1, le=7 * 86400)  # life of a signed address
    allow_volatile: bool = False  # take a server that forgets with its process; for trials
    max_asset_bytes: int = Field(default=MAX_ASSET_BYTES, ge=1)
    max_json_bytes: int = Field(default=16 * 2**20, ge=1)


def load(kind: type[Kind]) -> Kind:
    """Settings from the environment; a bad value is named with its variable."""
    try:
        return kind()
    except ValidationError as error:
        finding = error.errors(include_url=False)[0]
        field = str(finding["loc"][0]) if finding["loc"] else ""
        variable = field.upper() if field.lower() == "redis_url" else f"FARM_{field.upper()}"
        if finding["type"] == "missing":
            raise InvalidInput("is not set", field=variable, hint=_EXAMPLES.get(variable)) from None
        message = finding["msg"].removeprefix("Value error, ").replace("Input should", "must")
        raise InvalidInput(f"{message}; got {finding['input']!r}", field=variable) from None


_EXAMPLES = {"REDIS_URL": "for example redis://127.0.0.1:6379 or unix:///run/valkey.sock"}
