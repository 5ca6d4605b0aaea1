"""What every request body keeps to: nothing unknown, nothing unsupported, nothing converted.

A field that OpenAI's API has and this server cannot honour is refused by its name: to leave it out
silently would answer another question than was asked. ``null`` is the same as leaving a field out.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

from asr.errors import did_you_mean

Name = Annotated[str, Field(max_length=200)]


def at_most(most: int) -> BeforeValidator:
    """Refuse a mapping of more entries before they are looked at.

    Each bad one costs a report; lists have ``fail_fast`` against that.
    """

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > most:
            raise PydanticCustomError("too_long", "must have at most {most} items", {"most": most})
        return value

    return BeforeValidator(check)


Labels = Annotated[dict[str, str], Field(max_length=64), at_most(64)]
"""What a client calls its request."""


class Strict(BaseModel):
    """A part of a request's body.

    Attributes:
        unsupported: fields that exist in OpenAI's API and are refused here.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)
    unsupported: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        for name in given:
            if name in cls.unsupported:
                raise PydanticCustomError(
                    "unsupported_field",
                    "'{name}' is not supported by this server; leave it out",
                    {"name": name},
                )
            if name not in cls.model_fields:
                known = sorted(cls.model_fields)
                raise PydanticCustomError(
                    "unknown_field",
                    "unknown field '{name}'{near}; there are: {known}",
                    {
                        "name": str(name)[:80],
                        "near": did_you_mean(str(name)[:80], known),
                        "known": ", ".join(known),
                    },
                )
        return given
