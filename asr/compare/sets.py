"""The test files of a config: what both sides of a comparison are scored on."""

from __future__ import annotations

from collections.abc import Sequence

from asr.data.load import load_examples
from asr.errors import DataError
from asr.eval.evaluate import EvalSet, check_set
from asr.train.prepare import PreparedDomain


def load_test_sets(
    domains: Sequence[PreparedDomain], max_examples: int | None = None, seed: int = 0
) -> list[EvalSet]:
    """Read the test files of prepared domains, in training order.

    Args:
        domains: with their data.
        max_examples: most examples per domain, drawn by ``seed``; None for all.
        seed: seed of the draw.

    Raises:
        DataError: a domain has no test file, or it cannot be used, or the scorer cannot score it.
    """
    sets = []
    for domain in domains:
        path = domain.config.test
        if path is None:
            raise DataError(
                f"domain '{domain.name}' has no test file; set domains.{domain.name}.test"
            )
        loaded = load_examples(
            path,
            name=domain.name,
            fmt=domain.config.format,
            limit=max_examples,
            minimum=1,
            seed=seed,
        )
        assert domain.data is not None
        sets.append(
            EvalSet(
                domain=domain.name,
                examples=loaded.examples,
                common=domain.data.common,
                scorer=domain.scorer,
                max_new_tokens=domain.max_new_tokens,
            )
        )
        check_set(sets[-1])
    return sets
