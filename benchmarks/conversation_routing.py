"""What should be pooled in a conversation: all of the user's turns, or the last one?

    python -m benchmarks.conversation_routing DATA CONVERSATIONS.jsonl [--features F.npz]

CONVERSATIONS.jsonl has lines ``{"messages": [...], "domain": of the last turn or "none", "change":
whether the subject changed on the way}``. The router is the default one of
:mod:`benchmarks.free_routing`, fitted on single prompts (``--features`` is its file, and saves the
embedding); it decides on the mean over

- all turns: every token that the user wrote, which is what a routed model does;
- the last turn, as it stands in the conversation: later layers of the prefix have seen the rest;
- the last turn alone, without the conversation;
- weighted means of the first two;
- sticky: the last turn, unless it is sent to the base at less than STICKY below the threshold;
  then all turns.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from asr.data.prompt import EncodedPrompt, encode_prompt
from asr.model.features import embed
from asr.router import Router
from benchmarks.free_routing import ARMS, Embedded, Embedder, embed_data, fit
from benchmarks.interleaved import machine

STICKY = 1.0
DEFAULT = next(arm for arm in ARMS if arm.name == "messages")


def last_turn(prompt: EncodedPrompt) -> EncodedPrompt:
    """Pool the last run of pooled tokens only: the user's last turn."""
    ends = max(place for place, pooled in enumerate(prompt.pool_mask) if pooled) + 1
    begins = ends
    while begins and prompt.pool_mask[begins - 1]:
        begins -= 1
    mask = [begins <= place < ends for place in range(len(prompt.pool_mask))]
    return replace(prompt, pool_mask=mask)


def routes(router: Router, pooled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (n,) routes, ``none`` for the base, and (n,) scores less the threshold."""
    batch = router.decide_batch(pooled)
    names = np.array(batch.names)[batch.indices]
    return np.where(batch.abstained, "none", names), batch.score - batch.threshold


def main() -> None:
    """Embed, decide, print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of <domain>/train.jsonl")
    parser.add_argument("conversations", type=Path)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--layer", type=int, default=8)
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--background", type=int, default=128)
    parser.add_argument("--abstain", type=float, default=0.07)
    parser.add_argument("--features", type=Path, help="as of benchmarks.free_routing")
    options = parser.parse_args()
    embedder = Embedder(options.base, options.layer)
    if options.features is not None and options.features.is_file():
        embedded = Embedded.load(options.features)
    else:
        embedded = embed_data(embedder, options.data, options.limit, options.background)
    router = fit(embedded, DEFAULT, options.abstain)
    rows = [json.loads(line) for line in options.conversations.read_text("utf-8").splitlines()]
    base = embedder.base

    def encoded(messages: list[dict[str, str]]) -> EncodedPrompt:
        return encode_prompt(messages, base.tokenizer, base.template, base.context_length)

    def pooled(prompts: list[EncodedPrompt]) -> np.ndarray:
        return embed(prompts, embedder.forward, base.tokenizer.pad_token_id, base.device)

    whole = [encoded(row["messages"]) for row in rows]
    spoken = [[m for m in row["messages"] if m["role"] == "user"][-1:] for row in rows]
    every, last = pooled(whole), pooled([last_turn(prompt) for prompt in whole])
    alone = pooled([encoded(messages) for messages in spoken])
    found = {
        "all turns": routes(router, every)[0],
        "three quarters all": routes(router, 0.75 * every + 0.25 * last)[0],
        "half and half": routes(router, 0.5 * every + 0.5 * last)[0],
        "last turn": routes(router, last)[0],
        "last turn alone": routes(router, alone)[0],
    }
    route, above = routes(router, last)
    found["sticky"] = np.where((above < 0) & (above > -STICKY), found["all turns"], route)
    labels = np.array([row["domain"] for row in rows])
    change = np.array([row["change"] for row in rows])
    kinds = {"all": change | ~change, "change": change, "no change": ~change}
    kinds |= {"to a domain": labels != "none", "to none": labels == "none"}
    print(f"{len(rows)} conversations, layer {options.layer}; {machine()}\n")
    print(f"| pooled | {' | '.join(f'{kind} ({rows.sum()})' for kind, rows in kinds.items())} |")
    print("|---" * (len(kinds) + 1) + "|")
    for name, taken in found.items():
        right = taken == labels
        print(f"| {name} | {' | '.join(f'{right[rows].mean():.2f}' for rows in kinds.values())} |")


if __name__ == "__main__":
    main()
