"""The background class: what people say to a chat model, as a class without a route.

A router that knows only its domains has to give every prompt to one of them; how well a prompt fits
the best domain says little about whether it belongs to any. A class of *other* prompts in the same
regression says more: a request is known by how far its best domain stands above the background, and
by how much nearer it lies to prompts of the domain than to those of the background. Where the
prompts come from: :mod:`asr.model.background_prompts`. Nothing of any user's is in it.

The class has a column and no route. It depends on the base, the template and the feature contract
alone, so it is made once per model directory and belongs to no domain. Half of its prompts are held
out: they are the strangers that thresholds are measured on, and the neighbours of other strangers.

Notation: n prompts, V views, d hidden size.
"""

from __future__ import annotations

from asr.base.load import LoadedBase
from asr.data.formats import Example
from asr.data.views import CommonPart
from asr.errors import RouterError
from asr.model.background_prompts import Progress, own_messages, sampled_prompts
from asr.model.contract import FeatureContract
from asr.model.directory import ModelDirectory
from asr.model.features import Forward
from asr.model.manifest import Manifest
from asr.model.routing import fit_domain
from asr.model.stored import background_problem, contract_metadata, read_domain
from asr.router import RoutingDomain, save_domain

NAME = "_background"
"""No domain can be called so."""


def fit_background(
    base: LoadedBase,
    forward: Forward,
    contract: FeatureContract,
    count: int,
    progress: Progress | None = None,
) -> RoutingDomain:
    """Sum up the features of our messages and of ``count`` prompts that the base writes.

    Raises:
        DataError: a prompt cannot be encoded.
        RouterError: a feature is not finite.
    """
    texts = dict.fromkeys([*own_messages(), *sampled_prompts(base, count, progress)])
    examples = [
        Example(({"role": "user", "content": text}, {"role": "assistant", "content": ""}))
        for text in texts
    ]
    return fit_domain(NAME, examples, CommonPart(), base, forward, contract, kind="background")


def store_background(
    directory: ModelDirectory, background: RoutingDomain, contract: FeatureContract
) -> None:
    """Write ``router/_background.safetensors`` atomically.

    Raises:
        StorageError: the file system refused.
    """
    save_domain(
        directory.background,
        NAME,
        background.statistics,
        background.calibration,
        contract.hash,
        contract_metadata(contract),
    )


def read_background(directory: ModelDirectory, manifest: Manifest) -> list[RoutingDomain]:
    """Return the background class, as a list of one, or of none where the model has none.

    Raises:
        RouterError: the file is missing, or is not the one that was recorded.
        ContractError: it was made under another feature contract.
    """
    if manifest.background is None:
        return []
    problem = background_problem(directory, manifest)
    if problem is not None:
        raise RouterError(problem)
    stored = read_domain(directory.background, manifest.contract)
    return [RoutingDomain(NAME, stored.statistics, stored.calibration)]
