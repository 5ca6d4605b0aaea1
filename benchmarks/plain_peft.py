"""Do the adapters of a routed model give the same logits in plain PEFT?

Run as:  python -m benchmarks.plain_peft MODEL [--dtype float32]

Loads the base with transformers and each adapter folder with ``PeftModel.from_pretrained``, runs a
few prompts of that domain's kept dev cut through it (canary prompts where none was kept), and
compares the logits of the last position with those of the routed model (split prefill, adapter
bank). Prints the largest difference.
"""

from __future__ import annotations

import argparse

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from asr.base.quiet import quiet_libraries
from asr.base.split import position_ids_of
from asr.model.canaries import PROMPTS as CANARIES
from asr.model.features import pad_left
from asr.model.kept_prompts import read_kept
from asr.model.request import Prompt
from asr.model.routed_model import RoutedModel

PROMPTS = 4


def prompts_of(routed: RoutedModel, name: str) -> list[Prompt]:
    """A few prompts to compare on: the domain's, or some of nobody's with ``keep_eval: false``."""
    if not routed.manifest.keep_eval:
        return list(CANARIES[:PROMPTS])
    kept = read_kept(routed.directory.eval_prompts(name))
    return [list(example.prompt) for example in kept[:PROMPTS]]


def last_logits(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits of the last position, (b, v), of a plain forward over (b, t) ids and mask."""
    positions = position_ids_of(mask)
    with torch.no_grad():
        logits: torch.Tensor = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1
        ).logits
    return logits[:, -1]


def main() -> None:
    """Parse the arguments, compare every domain, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL", help="folder that asr train wrote")
    parser.add_argument("--dtype", default="float32", help="of the base; default: float32")
    args = parser.parse_args()

    routed = RoutedModel.from_pretrained(args.model, dtype=args.dtype)
    base = routed.base
    print(f"{base.name} on {base.note}")
    for name in routed.domains:
        entry = routed.manifest.domains[name].adapter
        assert entry is not None  # routed to, so published
        encoded = routed.encode(prompts_of(routed, name))
        ids, mask = pad_left(
            [prompt.input_ids for prompt in encoded], base.tokenizer.pad_token_id, base.device
        )
        with routed.applied([name] * len(encoded)):
            ours = routed.forward.suffix(routed.forward.prefix(ids, mask), 1)[:, -1]
        with quiet_libraries():
            plain = AutoModelForCausalLM.from_pretrained(base.resolved.path, dtype=base.dtype)
            adapted = PeftModel.from_pretrained(
                plain.to(base.device), routed.directory.adapter(name, entry.version)
            ).eval()
        theirs = last_logits(adapted, ids, mask)
        adapted.get_output_embeddings().register_forward_pre_hook(
            lambda module, args: (args[0].contiguous(),)
        )
        alike = last_logits(adapted, ids, mask)
        print(
            f"{name}: largest logit difference {(ours - theirs).abs().max():g} (logits up to "
            f"{theirs.abs().max():.1f}), {(ours - alike).abs().max():g} with the head's input in "
            f"one piece as in ours; same next token: "
            f"{bool((ours.argmax(-1) == theirs.argmax(-1)).all())}"
        )


if __name__ == "__main__":
    main()
