"""A running server as a chat's partner: what a routed model does, over HTTP.

It knows OpenAI's chat completions as a stream, and the ``asr`` field in which ``asr serve`` tells
the route. A server that routes for another engine tells it in headers alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from asr.errors import AdapterError, ConfigError, DataError, first_line
from asr.router import Decision
from asr.serve.upstream import server_url

_CONNECT = 10.0
_UNSAID = "it says no more"
_Answer = Generator[tuple[Decision | None, str, str], None, None]
_TIMEOUT = httpx.Timeout(_CONNECT, read=None)  # Ctrl-C is at hand


class ServerModel:
    """What a server answers with; see :class:`asr.cli.chat.Partner`.

    Args:
        url: its address, with or without ``/v1``.
        api_key: the key it asks for.
        seed: of the sampling, for each answer.

    Raises:
        ConfigError: it is no address.
    """

    def __init__(self, url: str, api_key: str | None = None, seed: int | None = None) -> None:
        self._url = server_url("--url", url)
        self._keyed = bool(api_key)
        self._seed = seed
        headers = {b"authorization": f"Bearer {api_key}".encode()} if api_key else {}
        self._client = httpx.Client(headers=headers, timeout=_TIMEOUT)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    @property
    def domains(self) -> Sequence[str]:
        """Names of the server's domains, as they are now.

        Raises:
            ConfigError: nothing answers there, it wants another key, or it lists no models.
        """
        with self._said():
            answer = self._client.get(f"{self._url}/v1/models", timeout=_CONNECT)
        self._require_success(answer)
        try:
            return [entry["id"] for entry in answer.json()["data"] if entry.get("parent")]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{self._url}/v1/models is no list of models; give the address of a server that "
                "asr serve started with --url"
            ) from error

    def stream(
        self,
        prompt: Sequence[Mapping[str, str]],
        *,
        adapter: str,
        max_new_tokens: int,
        **generation: Any,
    ) -> tuple[Decision | None, str, Iterator[str]]:
        """Answer one prompt piece by piece; see :meth:`asr.model.routed_model.RoutedModel.stream`.

        Raises:
            DataError: the server cannot take the conversation as it is.
            AdapterError: there is none of that name.
            ConfigError: the server takes no requests now, wants another key, or is not there.
        """
        body = {
            "model": adapter,
            "messages": list(prompt),
            "max_tokens": max_new_tokens,
            "stream": True,
            "temperature": generation.get("temperature", 0),
        }
        if "top_p" in generation:
            body["top_p"] = generation["top_p"]
        if self._seed is not None:
            body["seed"] = self._seed
        answer = self._answer(body)
        decision, name, text = next(answer)
        return decision, name, _texts(text, answer)

    # -- inside ----------------------------------------------------------------------------------

    def _answer(self, body: Mapping[str, Any]) -> _Answer:
        """Yield the route with each piece of text; closing it closes the connection.

        A server frees an answer's row when its connection closes.
        """
        path = f"{self._url}/v1/chat/completions"
        with self._said(), self._client.stream("POST", path, json=body) as response:
            if not response.is_success:
                response.read()
            self._require_success(response)
            route: tuple[Decision | None, str] | None = None
            for chunk in _chunks(response):
                try:
                    route = route or _route(chunk, response.headers)
                    text = _text(chunk)
                except (KeyError, TypeError, AttributeError) as error:
                    raise _foreign() from error
                yield *route, text
            if route is None:
                raise _foreign()

    def _require_success(self, response: httpx.Response) -> None:
        """Raise what a user can do about an error of the server."""
        status = response.status_code
        if response.is_success:
            return
        if status in (401, 403):
            lack = "does not take this API key" if self._keyed else "wants an API key"
            raise ConfigError(f"{self._url} {lack}; set ASR_API_KEY, or give --api-key")
        message, code = _error(response)
        if status == 404 and code == "model_not_found":
            raise AdapterError(message)
        if status == 404:
            raise ConfigError(
                f"there is no {response.url.path} at {self._url}; give the address of a server "
                "that asr serve started with --url"
            )
        if status == 429:
            seconds = response.headers.get("retry-after", "")
            wait = f"in {seconds} s" if seconds.isdecimal() else "later"
            raise ConfigError(f"the server has too many requests waiting; try again {wait}")
        if status in (400, 413, 422):
            raise DataError(message)
        raise ConfigError(f"the server failed ({status}): {message}")

    @contextmanager
    def _said(self) -> Iterator[None]:
        """Turn a failed connection into a line."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise ConfigError(
                f"nothing answers at {self._url} ({first_line(error)}); start it with asr serve "
                "MODEL, or give another --url"
            ) from error
        except httpx.HTTPError as error:
            raise ConfigError(
                f"the connection to {self._url} broke ({first_line(error)}); ask again"
            ) from error


def _texts(first: str, answer: _Answer) -> Iterator[str]:
    try:
        yield first
        for _, _, text in answer:
            yield text
    finally:
        answer.close()


def _chunks(response: httpx.Response) -> Iterator[Mapping[str, Any]]:
    """Yield the JSON of a stream's events, until the one that ends it.

    Raises:
        ConfigError: the server failed on the way, or broke off, or sends no such stream.
    """
    rest = b""
    for part in response.iter_bytes():
        # by hand: httpx also ends lines at characters that JSON may hold, such as U+2028
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            data = line.strip().removeprefix(b"data:").strip()
            if not line.startswith(b"data:"):
                continue
            if data == b"[DONE]":
                return
            try:
                chunk = json.loads(data)
            except ValueError as error:
                raise _foreign() from error
            if message := _message(chunk):
                raise ConfigError(f"the server failed: {message}")
            yield chunk
    raise ConfigError("the server broke off before the answer had ended; ask again")


def _text(chunk: Mapping[str, Any]) -> str:
    return "".join(choice.get("delta", {}).get("content") or "" for choice in chunk["choices"])


def _route(chunk: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[Decision | None, str]:
    """Return the decision and the adapter's name, from an answer's first chunk or its headers."""
    if "x-asr-domain" in headers:  # a router in front of the engine
        return _decision_of(headers)
    told = chunk.get("asr")
    if told is None:
        return None, headers.get("x-asr-adapter") or str(chunk["model"])
    if told["domain"] is None:
        return None, str(told["adapter"])
    threshold = told["threshold"]
    decision = Decision(
        domain=told["domain"],
        route=told["adapter"],
        abstained=told["abstained"],
        score=told["score"],
        margin=told["margin"],
        threshold=-math.inf if threshold is None else threshold,
        scores=told["scores"],
        probability=told["probability"],
    )
    return decision, decision.route


def _decision_of(headers: Mapping[str, str]) -> tuple[Decision, str]:
    """What :mod:`asr.serve.middleware` tells of its decision: no scores of the other domains."""
    domain, score = headers["x-asr-domain"], float(headers["x-asr-score"])
    margin = headers.get("x-asr-margin")
    abstained = headers["x-asr-route"] == "abstained"
    decision = Decision(
        domain=domain,
        route="base" if abstained else domain,
        abstained=abstained,
        score=score,
        margin=None if margin is None else float(margin),
        threshold=float(headers["x-asr-threshold"]),
        scores={domain: score},
        probability=math.nan,
    )
    return decision, decision.route


def _error(response: httpx.Response) -> tuple[str, str | None]:
    """Return an error's message, on one line, and its code."""
    try:
        body = response.json()
        return _message(body) or _UNSAID, body["error"].get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        return _UNSAID, None


def _message(body: Any) -> str | None:
    """Return the message of an error in OpenAI's shape, on one line."""
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(message).split()) if message else None


def _foreign() -> ConfigError:
    return ConfigError(
        "the server's answer is no chat of OpenAI's API; give the address of a server that asr "
        "serve started with --url"
    )
