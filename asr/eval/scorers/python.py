"""``python``: the answer is code, and it passes the asserts of ``meta.tests``.

Scoring runs code that a model wrote. It is never chosen by itself: a config has to name it, and
:mod:`asr.eval.sandbox` says what it is kept from and what not.

The answer runs first, then ``meta.setup`` (which may use what it defines), then each test, all in
one fresh interpreter with the standard library alone.
"""

from __future__ import annotations

import ast
import builtins
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from asr.data.problems import describe
from asr.eval.registry import register
from asr.eval.sandbox import Program, passes
from asr.eval.scorers.fence import unfenced
from asr.eval.scorers.meta import bad_meta, texts

if TYPE_CHECKING:
    from asr.data.formats import Example

_SAMPLE = '["assert add(1, 2) == 3"]'

_passes = functools.lru_cache(maxsize=4096)(passes)  # adapters often give the same answer


@register
class PythonScorer:
    """1.0 where every test passes within the limits, else 0.0.

    Code in a Markdown fence is taken out of it; without one, the whole answer is the code.
    """

    name = "python"
    needs: Literal["text"] = "text"
    higher_is_better = True

    def requires(self, example: Example) -> None:
        """Refuse an example without tests that can fail.

        Raises:
            DataError: ``meta.tests`` is not an array of Python texts, ``meta.setup`` is there and
                is no Python text, or there is no assert in any of them.
        """
        tests = texts(example, "tests", self.name, _SAMPLE)
        setup = example.meta.get("setup")
        if setup is not None and not isinstance(setup, str):
            found = f"{describe(setup)} in meta.setup"
            raise bad_meta(example, self.name, found, "a string", "tests", _SAMPLE)
        parts = {f"meta.tests[{place}]": test for place, test in enumerate(tests)}
        asserts = 0
        for where, text in {"meta.setup": setup or "", **parts}.items():
            try:
                tree = ast.parse(text)
            except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
                found = f"no Python in {where} ({error})"
                raise bad_meta(
                    example, self.name, found, "Python that parses", "tests", _SAMPLE
                ) from error
            asserts += sum(isinstance(node, ast.Assert) for node in ast.walk(tree))
        if not asserts:
            raise bad_meta(
                example, self.name, "no assert in meta.tests", "at least one", "tests", _SAMPLE
            )

    def score(self, prediction: str, reference: str, meta: Mapping[str, Any]) -> float:
        """Return 1.0 or 0.0.

        Raises:
            ConfigError: the sandbox cannot be started on this system.
        """
        program = Program(
            code=unfenced(prediction, ("python", "python3", "py")),
            setup=meta.get("setup") or "",
            tests=tuple(meta["tests"]),
            redefined=_redefined(unfenced(reference, ("python", "python3", "py"))),
        )
        return float(_passes(program))


@functools.lru_cache(maxsize=4096)
def _redefined(reference: str) -> tuple[str, ...]:
    """Builtin names that the reference defines: tests of those mean the answer's, not Python's."""
    try:
        body = ast.parse(reference).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return ()
    defined = {
        node.name
        for node in body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    return tuple(sorted(defined & vars(builtins).keys()))
