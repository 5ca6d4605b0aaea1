"""Messages of a chat as clients send them, and as the chat template takes them.

Text only. A part that names a picture, a sound or a file is refused by its type, and nothing that
it names is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from asr.errors import unknown
from asr.serve.api.fields import Strict

_ROLES = ("assistant", "developer", "system", "user")
_TEXT_PARTS = ("text", "input_text", "output_text")

Text = Annotated[str, Field(min_length=1)]


class TextPart(Strict):
    """A part of a content; the texts of all parts are put together as they are."""

    unsupported = frozenset({"prompt_cache_breakpoint"})
    type: Literal["text"]
    text: Text


def text_parts(content: Any) -> Any:
    """Refuse a part that is no text, by its type."""
    for part in content if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind not in _TEXT_PARTS:
            raise PydanticCustomError(
                "unsupported_part",
                "parts of type '{kind}' are not supported: this server takes text only",
                {"kind": kind[:80]},
            )
    return content


Content = Annotated[
    Text | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)],
    BeforeValidator(text_parts),
]


class SystemMessage(Strict):
    """Instructions; ``developer`` is another word for ``system``."""

    unsupported = frozenset({"name"})
    role: Literal["system", "developer"]
    content: Content


class UserMessage(Strict):
    """What the user says; the router reads these."""

    unsupported = frozenset({"name"})
    role: Literal["user"]
    content: Content


class AssistantMessage(Strict):
    """An earlier answer."""

    unsupported: ClassVar[frozenset[str]] = frozenset(
        {"name", "audio", "function_call", "refusal", "tool_calls"}
    )
    role: Literal["assistant"]
    content: Content
    annotations: Annotated[list[Any], Field(max_length=0)] | None = Field(
        None, description="What the client of an earlier answer kept of it; empty."
    )


def known_role(message: Any) -> Any:
    """Refuse a message whose role is not one of ours, by name."""
    role = message.get("role") if isinstance(message, dict) else None
    if isinstance(role, str) and role not in _ROLES:
        raise PydanticCustomError(
            "unknown_role", "{message}", {"message": unknown("role", role[:80], _ROLES)}
        )
    return message


Message = Annotated[
    Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")],
    BeforeValidator(known_role),
]


def plain_text(content: str | list[Any]) -> str:
    """Return a content as one text."""
    if isinstance(content, str):
        return content
    return "".join(part.text for part in content)


def plain_turns(messages: Sequence[Any]) -> list[dict[str, str]]:
    """Return messages as the chat template takes them."""
    return [
        {
            "role": "system" if message.role == "developer" else message.role,
            "content": plain_text(message.content),
        }
        for message in messages
    ]
