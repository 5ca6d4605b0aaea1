"""Do recursive least squares and the direct solve decide alike on a trained model?

    python -m benchmarks.solver_decisions MODEL [--max-examples 200]

Both routers are fitted from the statistics in MODEL and decide on the recorded test files,
templated and bare. ``rls`` keeps an absolute ridge, the direct solve one chosen on held-out
prompts; the third line gives the direct solve that absolute ridge too, where the two must agree.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

import asr
from asr.data.load import load_examples
from asr.data.views import make_views
from asr.eval.history import recorded_common_part
from asr.model.background import read_background
from asr.model.routing import fit_router, read_domains
from asr.router import Router, RouterSettings


def main() -> None:
    """Fit, decide, compare."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--max-examples", type=int, default=None, help="per test file")
    options = parser.parse_args()
    model = asr.RoutedModel.from_pretrained(options.model)
    manifest = model.manifest
    settings = RouterSettings.from_dict(manifest.router)
    domains = read_domains(model.directory, manifest.routed, manifest.contract)
    domains += read_background(model.directory, manifest.contract)

    def fitted(chosen: RouterSettings) -> Router:
        return fit_router(domains, chosen, manifest.contract, manifest.base.hidden_size)

    direct = fitted(replace(settings, solver="direct", absolute_ridge=None))
    rls = fitted(replace(settings, solver="rls", ridge=None))
    same = fitted(
        replace(
            settings,
            solver="direct",
            absolute_ridge=None,
            # rls weighs view rows by 1, the statistics by 1 / V
            ridge=rls.report.absolute_ridge
            / len(manifest.contract.views)
            / direct.report.absolute_ridge
            * direct.report.ridge,
        )
    )
    for kind in ("templated", "bare"):
        prompts, labels = [], []
        for name in manifest.routed:
            entry = manifest.domains[name]
            if entry.test is None:
                raise SystemExit(f"domain '{name}' has no recorded test file")
            loaded = load_examples(Path(entry.test), name=name, minimum=1)
            common = recorded_common_part(manifest, name)
            for example in loaded.examples[: options.max_examples]:
                prompts.append(make_views(example.prompt, common, [kind])[kind])
                labels.append(name)
        pooled = model.embed(model.encode(prompts))
        routes = {
            "direct": np.array([d.route for d in direct.decide(pooled)]),
            "rls": np.array([d.route for d in rls.decide(pooled)]),
            "direct at the ridge of rls": np.array([d.route for d in same.decide(pooled)]),
        }
        print(f"{kind}: {len(prompts)} test prompts")
        for name, found in routes.items():
            right = int((found == np.array(labels)).sum())
            differ = int((found != routes["direct"]).sum())
            print(f"  {name:<28} right {right}, other decisions than direct {differ}")
        apart = np.abs(same.weights - rls.weights).max() / np.abs(rls.weights).max()
        against = int((routes["rls"] != routes["direct at the ridge of rls"]).sum())
        print(
            f"  rls against direct at its ridge: {against} decisions, weights {apart:.1e} relative"
        )


if __name__ == "__main__":
    main()
