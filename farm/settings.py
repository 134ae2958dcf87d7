"""What a process of the control plane must be told, read once at its start."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from farm.addresses import REDIS_HINT, check_http_url, check_redis_url, is_loopback
from farm.errors import InvalidInput
from farm.job import MAX_ASSET_BYTES, OPEN_HOURS, RETENTION_DAYS
from farm.paths import data_dir

Settings = TypeVar("Settings", bound="KeepingSettings")


def _split(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]  # separated by commas


class KeepingSettings(BaseSettings):
    """How long things are kept. Variables carry the prefix ``FARM_``."""

    model_config = SettingsConfigDict(
        env_prefix="FARM_",
        env_ignore_empty=True,  # as files of settings write what is not set
        frozen=True,
        populate_by_name=True,
        extra="ignore",
    )

    retention_days: float = Field(default=RETENTION_DAYS, gt=0, le=36_500)  # after a job's end
    open_hours: float = Field(default=OPEN_HOURS, gt=0, le=87_600)  # for the next piece of a job


class FarmSettings(KeepingSettings):
    """What every process shares. Variables carry the prefix ``FARM_``, but for ``REDIS_URL``."""

    data: Path = Field(default_factory=data_dir)
    redis_url: str = Field(validation_alias=AliasChoices("redis_url", "REDIS_URL"), repr=False)
    store: str = Field(default="", repr=False)  # empty: DATA/store
    name: str = Field(default="farm", pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")  # the keys' hash tag

    single_writer: bool = False  # with one worker, a store may let several writers win

    @field_validator("data")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: str) -> str:
        return check_redis_url(value)

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
    tls_cert: Path | None = None  # PEM, with the chain
    tls_key: Path | None = None
    behind_proxy: bool = False  # a proxy on a trusted network speaks TLS for the gateway
    secret: SecretStr | None = None  # signs object addresses; else DATA/secret is made
    public_url: str = ""  # https://host/prefix, where a proxy shows the gateway to callers
    store_public_url: str = ""  # the s3:// store's endpoint as callers reach it
    store_links: Literal["store", "gateway"] = "store"  # gateway: it passes every picture on
    url_seconds: int = Field(default=3600, ge=1, le=7 * 86400)  # life of a signed address
    allow_volatile: bool = False  # take a server that forgets with its process; for trials
    max_asset_bytes: int = Field(default=MAX_ASSET_BYTES, ge=1)
    max_json_bytes: int = Field(default=16 * 2**20, ge=1)
    max_body_memory: int = Field(default=256 * 2**20, ge=1)  # bytes; of all bodies read at a time
    max_connections: int = Field(default=1024, ge=1)
    max_connections_per_address: int = Field(default=512, ge=1)
    quota_requests: int = Field(default=1000, ge=1)  # of a tenant; per second, for ten at once
    quota_row_steps: int = Field(default=500_000_000, ge=1)  # of those pictures
    quota_pictures: int = Field(default=20_000_000, ge=1)  # of a tenant, that are still to be made
    quota_bytes: int = Field(default=100 * 2**30, ge=1)  # of a tenant's assets
    header_seconds: float = Field(default=10, gt=0)  # until a request's header is there
    least_rate: int = Field(default=1024, ge=0)  # bytes/s of a body
    read_seconds: float = Field(default=30, gt=0)  # that an answer may wait to be read

    @field_validator("public_url", "store_public_url")
    @classmethod
    def _address(cls, value: str, info: ValidationInfo) -> str:
        try:
            return check_http_url(value) if value else value
        except ValueError:  # its own words may hold a password
            raise InvalidInput(
                "is not a plain http:// or https:// address",
                field=f"FARM_{str(info.field_name).upper()}",
                hint="for example https://farm.example.org/prefix",
            ) from None

    @model_validator(mode="after")
    def _who_may_call(self) -> Self:
        """An open gateway is for one machine; what others reach needs keys, and TLS to carry them.

        What a request's headers say of its host proves nothing, so the address decides.
        """
        if self.open and self.keys is not None:
            raise InvalidInput(
                "lets everyone in although FARM_KEYS names a keys file",
                field="FARM_OPEN",
                hint="unset one of the two",
            )
        if self.open and self.behind_proxy:
            raise InvalidInput(
                "lets everyone in whom the proxy lets through",
                field="FARM_OPEN",
                hint="name a keys file in FARM_KEYS",
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InvalidInput("and FARM_TLS_KEY belong together", field="FARM_TLS_CERT")
        if is_loopback(self.host):
            return self
        if self.open:
            raise InvalidInput(
                f"lets everyone in who reaches {self.host}",
                field="FARM_OPEN",
                hint="name a keys file in FARM_KEYS, or set FARM_HOST=127.0.0.1",
            )
        if self.tls_cert is None and not self.behind_proxy:
            raise InvalidInput(
                f"{self.host} can be reached from outside, where keys must not travel unencrypted",
                field="FARM_HOST",
                hint="set FARM_TLS_CERT and FARM_TLS_KEY, or FARM_BEHIND_PROXY=1 where a proxy "
                "on a trusted network does TLS",
            )
        return self


def load(kind: type[Settings], **given: Any) -> Settings:
    """Settings from the environment, but for those given; the error for a bad value names its
    variable."""
    try:
        return kind(**given)
    except ValidationError as error:
        finding = error.errors(include_url=False)[0]
        field = str(finding["loc"][0]) if finding["loc"] else ""
        variable = field.upper() if field.lower() == "redis_url" else f"FARM_{field.upper()}"
        if finding["type"] == "missing":
            hint = REDIS_HINT if variable == "REDIS_URL" else None
            raise InvalidInput("is not set", field=variable, hint=hint) from None
        message = finding["msg"].removeprefix("Value error, ").replace("Input should", "must")
        raise InvalidInput(f"{message}; got {finding['input']!r}", field=variable) from None
