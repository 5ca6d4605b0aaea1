"""The request of ``POST /v1/responses``: text in, text out, nothing kept between requests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from asr.serve.api.fields import Labels, Name, Strict
from asr.serve.api.messages import Text, known_role, plain_text, text_parts
from asr.serve.api.sampling import MODEL, TEMPERATURE, MaxTokens, Temperature, TopP


class InputPart(Strict):
    """A part of a content; the texts of all parts are put together as they are."""

    unsupported = frozenset({"prompt_cache_breakpoint"})
    type: Literal["input_text", "output_text", "text"]
    text: Text
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: list[Any] | None = Field(None, description="Of an earlier answer; without effect.")


def _message_item(item: Any) -> Any:
    kind = item.get("type", "message") if isinstance(item, dict) else "message"
    if isinstance(kind, str) and kind != "message":
        raise PydanticCustomError(
            "unsupported_part",
            "items of type '{kind}' are not supported: this server takes messages only",
            {"kind": kind[:80]},
        )
    return known_role(item)


class InputMessage(Strict):
    """A message of the conversation, or an earlier answer as it was given out."""

    unsupported = frozenset({"phase"})
    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Text | Annotated[list[InputPart], Field(min_length=1, fail_fast=True)],
        BeforeValidator(text_parts),
    ]
    id: str | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


InputItem = Annotated[InputMessage, BeforeValidator(_message_item)]


class PlainFormat(Strict):
    """The only form of an answer: text."""

    type: Literal["text"]


class TextOptions(Strict):
    """Options of the answer's text."""

    unsupported = frozenset({"verbosity"})
    format: PlainFormat | None = None


class ResponseStreamOptions(Strict):
    """Options of a stream."""

    include_obfuscation: Literal[False] | None = None


class ResponseRequest(Strict):
    """A conversation that wants an answer.

    Answers are not kept: send the conversation each time, with ``store`` false or left out.
    """

    unsupported = frozenset(
        {
            *("access_programs", "background_options", "context_management", "conversation"),
            *("image", "max_tool_calls", "moderation", "previous_response_id", "prompt"),
            *("prompt_cache_options", "reasoning", "reasoning_effort", "top_logprobs"),
        }
    )
    model: Name | None = Field(None, description=MODEL)
    input: Text | Annotated[list[InputItem], Field(min_length=1, fail_fast=True)]
    instructions: Text | None = Field(None, description="A system message before the input.")
    max_output_tokens: MaxTokens | None = Field(
        None, description="Longest answer. Default: what the context has left, at most 1024."
    )
    temperature: Temperature | None = Field(None, description=TEMPERATURE)
    top_p: TopP | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    text: TextOptions | None = None
    store: Literal[False] | None = None
    background: Literal[False] | None = None
    include: Annotated[list[str], Field(max_length=0)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = Field(None, description="Accepted: there are no tools.")
    truncation: Literal["disabled"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    metadata: Labels | None = Field(None, description="Given back, without effect.")
    user: str | None = Field(None, description="Accepted, without effect on the answer.")
    prompt_cache_key: str | None = Field(None, description="Accepted, without effect.")
    prompt_cache_retention: Literal["in_memory"] | None = None
    safety_identifier: str | None = Field(None, description="Accepted, without effect.")

    def turns(self) -> list[dict[str, str]]:
        """Return the conversation as the chat template takes it."""
        turns = []
        if self.instructions is not None:
            turns.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*turns, {"role": "user", "content": self.input}]
        for item in self.input:
            role = "system" if item.role == "developer" else item.role
            turns.append({"role": role, "content": plain_text(item.content)})
        return turns
