"""Open a routed model directory for use: every check that needs no forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from asr.base.load import LoadedBase
from asr.base.split import SplitForward
from asr.base.whole import WholeForward
from asr.errors import AdapterError, BaseModelError, ContractError, DirectoryError, RouterError
from asr.model.directory import ModelDirectory
from asr.model.features import Forward
from asr.model.manifest import Manifest
from asr.model.stored import read_router
from asr.router import StoredRouter


@dataclass(frozen=True)
class OpenedDirectory:
    """A routed model directory that is complete.

    Attributes:
        directory: its paths.
        manifest: its ledger.
        router: the derived router with the canaries' features.
        template_text: the chat template that it was trained with.
    """

    directory: ModelDirectory
    manifest: Manifest
    router: StoredRouter
    template_text: str


def open_directory(path: str | Path) -> OpenedDirectory:
    """Read a routed model directory and check that it is complete and unchanged.

    Raises:
        DirectoryError: not a routed model directory, damaged, or without a finished domain.
        RouterError: the router file is missing or damaged, or knows domains that are gone.
        ContractError: the router was made under another feature contract.
        AdapterError: a published file is missing or was changed.
    """
    directory = ModelDirectory.open(path)
    manifest = Manifest.load(directory.path)
    if not any(entry.router is not None for entry in manifest.domains.values()):
        raise DirectoryError(
            f"'{directory.path}' has no finished domain yet; run asr train with --resume"
        )
    problems = directory.verify(manifest)
    if problems:
        raise AdapterError(problems[0])
    stored = read_router(directory.current(directory.router, manifest), manifest.contract)
    strangers = [name for name in stored.router.names if name not in manifest.routed]
    if strangers:
        raise RouterError(
            f"{directory.router} routes to '{strangers[0]}', which the manifest does not hold; run "
            "asr train with --resume to derive it again"
        )
    try:
        template = directory.chat_template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DirectoryError(
            f"{directory.chat_template} cannot be read ({error}); restore it from a copy"
        ) from error
    return OpenedDirectory(directory, manifest, stored, template)


def require_base(base: LoadedBase, manifest: Manifest) -> None:
    """Refuse a base, or a chat template, that is not the one of the manifest.

    Raises:
        BaseModelError: the fingerprints differ.
        ContractError: the templates differ.
    """
    if base.fingerprint != manifest.base.fingerprint:
        raise BaseModelError(
            f"base '{base.name}' is not the one this model was trained on: fingerprint "
            f"{base.fingerprint[:12]}, recorded {manifest.base.fingerprint[:12]} for "
            f"'{manifest.base.name}' ({manifest.base.revision or manifest.base.source}); "
            "give the right one with --base"
        )
    recorded = manifest.contract.template_hash
    if base.template.hash != recorded:
        raise ContractError(
            f"chat_template.jinja was changed: hash {base.template.hash[:12]}, recorded "
            f"{recorded[:12]}; prompts would be rendered otherwise than in training, restore it "
            "from a copy"
        )


def make_forward(base: LoadedBase, layer: int, two_pass: bool) -> Forward:
    """The split forward of a base, or two passes where the config asks for them.

    Raises:
        SplitUnsupportedError: the architecture cannot be split and two passes were not asked for,
            or it keeps no cache to go on from.
        BaseModelError: see :class:`~asr.base.split.SplitForward` and
            :class:`~asr.base.whole.WholeForward`.
    """
    model = base.model
    return WholeForward(model, layer, check=True) if two_pass else SplitForward(model, layer)
