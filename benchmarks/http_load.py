"""Any OpenAI-compatible server under load, over HTTP: ours, vLLM, another.

    python -m benchmarks.http_load URL --models auto [--models a b c] [--clients 1 8 32]

URL is the server's, e.g. http://127.0.0.1:8000. Each --models is a load: its models are asked for
by turns, streaming, with prompts of random words. The loads of one call take turns, round by round,
so that the drift of the machine meets them alike; the middle run is printed. Prompts hold as many
words as give about --tokens-in tokens, which two short requests measure first. The end of a turn is
ignored, so that every answer has --tokens-out tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks.interleaved import machine
from benchmarks.load import Sample, Summary, closed_loop

_LIST = (
    "about above after again air also animal answer any around ask away back because been before "
    "began below best between big book both boy bring build but call came can car carry change "
    "city close cold come could country cut day did different does door down draw dry each earth "
    "eat end enough even every eye face fact far farm fast father feel few field find fire first "
    "fish five fly follow food foot form found four friend from full gave girl give good got "
    "govern great green ground group grow had half hand hard has head hear help her here high "
    "home horse hot hour house idea just keep kind king knew know land large last late learn "
    "leave left let letter life light line list little live long look low made main make man map"
)
WORDS = _LIST.split()


class HttpClient:
    """Asks a server for answers of a fixed length to prompts of random words.

    Args:
        url: of the server, without ``/v1``.
        models: asked for by turns.
        words: in a prompt.
        tokens_out: of an answer; the model's end of turn does not end it.
        api: ``chat`` or ``completions``.
        key: sent as a bearer token.
        seed: of the prompts.
    """

    def __init__(
        self,
        url: str,
        models: Sequence[str],
        words: int,
        tokens_out: int,
        *,
        api: str = "chat",
        key: str | None = None,
        seed: int = 0,
    ) -> None:
        self.models = list(models)
        self.words = words
        self.tokens_out = tokens_out
        self.path = "/v1/chat/completions" if api == "chat" else "/v1/completions"
        self.seed = seed
        self._url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._own = threading.local()

    @property
    def http(self) -> httpx.Client:
        """This thread's connection, kept open between its requests."""
        if not hasattr(self._own, "client"):
            self._own.client = httpx.Client(
                base_url=self._url, headers=self._headers, timeout=600, trust_env=False
            )
        return self._own.client  # type: ignore[no-any-return]

    def prompt(self, number: int) -> str:
        """The prompt of a number; the same number gives the same."""
        return " ".join(random.Random(f"{self.seed}/{number}").choices(WORDS, k=self.words))

    def body(self, model: str, prompt: str, **changes: Any) -> dict[str, Any]:
        """A request."""
        body: dict[str, Any] = {
            "model": model,
            "max_tokens": self.tokens_out,
            "temperature": 0,
            "ignore_eos": True,
        }
        if self.path.endswith("chat/completions"):
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        return body | changes

    def prompt_tokens(self) -> int:
        """How many tokens a prompt has, as the server counts them.

        Raises:
            RuntimeError: the server refused.
            httpx.HTTPError: it cannot be reached.
        """
        body = self.body(self.models[0], self.prompt(-1), max_tokens=1)
        answer = self.http.post(self.path, json=body)
        _require_success(answer.status_code, answer.text)
        return int(answer.json()["usage"]["prompt_tokens"])

    def __call__(self, number: int) -> Sample:
        """Ask one of the models for an answer to a prompt of its own; raises as :meth:`ask`."""
        return self.ask(self.models[number % len(self.models)], self.prompt(number))

    def ask(self, model: str, prompt: str) -> Sample:
        """One streamed request; returns when it has ended.

        Raises:
            RuntimeError: the server refused, failed in the middle, or generated nothing.
            httpx.HTTPError: it cannot be reached.
        """
        body = self.body(model, prompt, stream=True, stream_options={"include_usage": True})
        times, tokens = [], 0
        began = time.perf_counter()
        with self.http.stream("POST", self.path, json=body) as response:
            if response.status_code != 200:
                _require_success(response.status_code, response.read().decode())
            for chunk in _chunks(response):
                if "error" in chunk:
                    raise RuntimeError(f"{model}: {chunk['error']}")
                if any(_text(choice) for choice in chunk.get("choices", ())):
                    times.append(time.perf_counter())
                tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
        if not times:
            raise RuntimeError(f"{model}: an answer without text")
        return Sample(times[0] - began, times[-1] - began, tokens or len(times))


def _chunks(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            yield json.loads(data)


def _text(choice: dict[str, Any]) -> str:
    """New text of a choice: a chat's or a completion's."""
    return choice.get("text") or (choice.get("delta") or {}).get("content") or ""


def _require_success(status: int, text: str) -> None:
    if status != 200:
        raise RuntimeError(f"the server answered {status}: {text.strip()[:300]}")


def words_for(client: HttpClient, tokens: int) -> int:
    """How many words give about so many tokens, the template's own included.

    Raises:
        RuntimeError: the server refused.
        httpx.HTTPError: it cannot be reached.
    """
    counts = []
    for words in (20, 120):
        client.words = words
        counts.append(client.prompt_tokens())
    per_word = (counts[1] - counts[0]) / 100
    return max(1, round(20 + (tokens - counts[0]) / per_word))


def http_table(
    url: str,
    loads: Sequence[Sequence[str]],
    clients: Sequence[int],
    *,
    per_client: int = 3,
    tokens_in: int = 200,
    tokens_out: int = 64,
    rounds: int = 3,
    api: str = "chat",
    key: str | None = None,
) -> list[dict[str, Any]]:
    """Measure loads by turns; prints and returns one entry per number of clients.

    Raises:
        RuntimeError: the server refused or failed.
        httpx.HTTPError: it cannot be reached.
    """
    words = words_for(HttpClient(url, loads[0], 1, 1, api=api, key=key), tokens_in)
    found = []
    for count in clients:
        runs: dict[str, list[Summary]] = {",".join(models): [] for models in loads}
        for turn in range(rounds):
            for models in loads:
                ask = HttpClient(url, models, words, tokens_out, api=api, key=key, seed=turn)
                runs[",".join(models)].append(closed_loop(count, per_client * count, ask))
        entry: dict[str, Any] = {"clients": count, "words": words}
        for name, taken in runs.items():
            middle = sorted(taken, key=lambda run: run.tokens_per_second)[len(taken) // 2]
            entry[name] = middle.figures()
            print(f"  {name}\n    {middle.line()}", flush=True)
        found.append(entry)
    return found


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("url", help="of the server, e.g. http://127.0.0.1:8000")
    parser.add_argument(
        "--models", nargs="+", action="append", required=True, help="a load; may be given again"
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--per-client", type=int, default=3, help="requests of each client")
    parser.add_argument("--tokens-in", type=int, default=200)
    parser.add_argument("--tokens-out", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--api", choices=("chat", "completions"), default="chat")
    parser.add_argument("--key", help="API key of the server")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    print(f"{machine()}; {options.tokens_in} tokens in, {options.tokens_out} out, {options.api}")
    found = http_table(
        options.url,
        options.models,
        options.clients,
        per_client=options.per_client,
        tokens_in=options.tokens_in,
        tokens_out=options.tokens_out,
        rounds=options.rounds,
        api=options.api,
        key=options.key,
    )
    if options.json is not None:
        result = {"machine": machine(), "url": options.url, "table": found}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
