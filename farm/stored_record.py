"""Records that the store keeps for as long as their job: they say which farm wrote them."""

from pydantic import BaseModel, ConfigDict, field_validator

from farm.errors import Conflict

STORE_SCHEMA = 2  # raised where an older farm would misread what this one writes


class NewerRecord(Conflict):
    """A newer farm wrote it; this one would misread it."""


class StoredRecord(BaseModel):
    """A record of a newer schema is refused as it is read; what an older one lacks has defaults."""

    model_config = ConfigDict(frozen=True)

    v: int = STORE_SCHEMA

    @field_validator("v")
    @classmethod
    def _known(cls, value: int) -> int:
        if value > STORE_SCHEMA:
            raise NewerRecord(
                f"a newer version of the farm wrote this: its {cls.__name__} has schema "
                f"{value}, and {STORE_SCHEMA} is the newest that is understood here",
                hint="install the newer version here as well",
            )
        return value
