"""More data for a domain that a routed model has: a new version of its adapter, made beside it.

The new version starts as a copy of the adapter in use and is trained on the new data. Its prompts
are added to the domain's router statistics, its dev cut to the kept prompts, and the router is
solved over the sums: the router of a model that was fitted with both data sets, up to rounding.
Nothing of the old data is needed, and nothing of the old version is written to.

The order of the writes, so that a kill in between leaves the old model or the new one, and the same
command with ``--resume`` finishes the work:

1. the ledger, with the extension as begun; checkpoints; the adapter's folder; the ledger;
2. statistics, kept prompts and router beside those in use;
3. the ledger, naming the new adapter and statistics: the switch (:mod:`asr.model.switch`);
4. these files moved into place; the matrices; the ledger.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr.atomic import sweep_staging
from asr.base.device import choose_device
from asr.base.fingerprint import tensors_hash
from asr.base.load import load_base
from asr.data.formats import Example
from asr.errors import BaseModelError, ConfigError, DataError, DirectoryError, unknown
from asr.eval.history import recorded_common_part
from asr.model.canaries import settled_canaries
from asr.model.directory import ModelDirectory, file_sha256
from asr.model.kept_prompts import read_kept, write_kept
from asr.model.lock import DirectoryLock
from asr.model.manifest import AdapterEntry, DomainEntry, ExtensionEntry, Manifest, RouterEntry
from asr.model.routed_model import make_forward
from asr.model.routing import read_domains, store_domain
from asr.model.switch import complete_switch
from asr.router import RouterSettings
from asr.train.adapter import TrainingResult
from asr.train.check_data import check_data
from asr.train.config import TrainConfig
from asr.train.config_file import check_files
from asr.train.domain import DomainRun, data_entry
from asr.train.domain_data import EarlierData
from asr.train.events import Watcher
from asr.train.initialisation import adapter_source
from asr.train.prepare import PreparedDomain, feature_contract, prepare_domains
from asr.train.processes import Processes
from asr.train.revisit import facts, joined, merged_prompts


@dataclass(frozen=True)
class _Work:
    """What is left of an extension. ``train``: from ``initial`` if given; ``switch``: not yet."""

    version: int
    train: bool
    switch: bool
    initial: Path | None = None


def extend_domain(
    config: TrainConfig,
    out: Path | str,
    *,
    resume: bool = False,
    from_scratch: bool = False,
    trust_remote_code: bool = False,
    watcher: Watcher | None = None,
) -> Manifest:
    """Train a new version of one domain's adapter on more data, and switch to it.

    Args:
        config: of that domain alone, with the new data
            (:func:`asr.train.extension_config.extension_config`).
        out: the model directory.
        resume: go on with an extension that was stopped.
        from_scratch: start from a fresh adapter instead of a copy of the one in use.
        trust_remote_code: run code that comes with the base.
        watcher: told what happens.

    Returns:
        The manifest with the new version in use.

    Raises:
        ConfigError: a placement, rank or feature contract other than the domain's.
        DirectoryError: no such domain, one that is not finished, an extension that is under way
            (without ``resume``) or that is not (with it).
        DataError: the data cannot be used, or the domain was trained on it already.
        BaseModelError, AdapterError, RouterError, StorageError, LockedError: as
            :func:`asr.train.sequence.train_sequence`.
        KeyboardInterrupt: Ctrl-C; go on with ``resume=True``.
    """
    if len(config.domains) != 1:
        raise ConfigError(f"one domain is extended at a time, got {', '.join(config.domains)}")
    name = next(iter(config.domains))
    watcher = watcher or Watcher()
    processes = Processes(cpu=choose_device(config.device).type == "cpu")
    if not processes.is_main:
        watcher = Watcher()
    with ExitStack() as stack:
        stack.callback(processes.close)
        directory = ModelDirectory.open(out)
        lock = directory.lock()
        stack.callback(lock.release)  # nothing happens where it is not held
        manifest = processes.on_main(lambda: _open(directory, lock))
        _require_extendable(manifest, name, resume)
        check_files(config)
        read = check_data(config, [name])
        shared = config.device == "auto" and processes.count > 1
        base = load_base(
            config.base,
            revision=manifest.base.revision_of(config.base),
            device=processes.device if shared else config.device,
            dtype=config.dtype,
            quantisation=config.quantisation,
            template_text=directory.chat_template.read_text(encoding="utf-8"),
            trust_remote_code=trust_remote_code,
            say=watcher.say,
        )
        changed = manifest.contract.difference(feature_contract(config, base))
        if changed is not None:
            raise ConfigError(
                f"cannot extend '{name}': the feature contract's {changed[0]} changed: "
                f"{changed[1]} -> {changed[2]}; add the data as a domain of a new model"
            )
        forward = make_forward(base, manifest.contract.layer, manifest.two_pass)
        kept = _kept(directory, manifest, name)
        earlier = EarlierData(
            recorded_common_part(manifest, name), frozenset(e.prompt_key for e in kept)
        )
        [domain] = prepare_domains(
            config,
            base,
            manifest.contract.layer,
            processes.count,
            earlier=earlier,
            read=read,
            recorded=manifest.domains,
        )
        _require_same_adapter(manifest.domains[name], domain, from_scratch)
        background = 0 if manifest.background is None else manifest.background.samples
        run = DomainRun(base, forward, directory, manifest, processes, watcher, background)
        extension = _Extension(run, domain)
        work = processes.on_main(lambda: extension.begin(from_scratch, resume))
        if work is None:
            watcher.say(f"{name}: extended with this data already; nothing to do")
            return manifest
        for line in facts(domain, kept):
            watcher.say(line)
        watcher.planned([domain], [name])
        watcher.domain_started(domain, 0, 1)
        if work.train:
            frozen = tensors_hash(base.model)
            run.make_adapter(domain, work.version, work.initial, extension.trained)
            if tensors_hash(base.model) != frozen:
                raise BaseModelError(
                    f"the base's weights changed while '{name}' was trained; this is a bug, please "
                    "report it with the config"
                )
        processes.on_main(lambda: extension.finish(config, work, kept))
        return manifest


def _open(directory: ModelDirectory, lock: DirectoryLock) -> Manifest:
    lock.acquire()
    sweep_staging(directory.path)
    manifest = Manifest.load(directory.path)
    complete_switch(directory, manifest)
    return manifest


class _Extension:
    """The stages of one extension, each recorded in the ledger."""

    def __init__(self, run: DomainRun, domain: PreparedDomain) -> None:
        self.run = run
        self.domain = domain
        self.name = domain.name
        self.directory = run.directory
        self.manifest = run.manifest

    @property
    def entry(self) -> DomainEntry:
        """The domain's entry of the ledger."""
        return self.manifest.domains[self.name]

    def begin(self, from_scratch: bool, resume: bool) -> _Work | None:
        """Compare with the ledger, and record an extension that begins. None: nothing to do."""
        data = data_entry(self.domain)
        assert data is not None
        record = json.loads(json.dumps(self.domain.training_record()))
        entry, pending = self.entry, self.entry.unfinished_extension
        seen = [made.data.sha256 for made in entry.extensions if made.status == "done"]
        if pending is None and resume and data.sha256 in seen[-1:]:
            self._remove_checkpoints()  # a kill may have come right before it
            return None
        if pending is None and resume:
            raise DirectoryError(
                f"no extension of '{self.name}' is unfinished; leave out --resume to begin one"
            )
        if data.sha256 in seen or (entry.data is not None and data.sha256 == entry.data.sha256):
            raise DataError(
                f"{data.path}: '{self.name}' was trained on these examples already, and they would "
                "count twice; give new ones"
            )
        assert entry.adapter is not None
        if pending is not None:
            same = (pending.data.sha256, pending.training) == (data.sha256, record)
            if pending.status == "switched" and pending.data.sha256 != data.sha256:
                raise ConfigError(
                    f"'{self.name}' is being extended with {pending.data.path}; finish that first, "
                    "with the same command and --resume"
                )
            if pending.status == "switched":
                return _Work(pending.version, train=False, switch=False)
            if same and not (from_scratch and pending.started_from):
                return self._work(pending)
            self.run.watcher.say(
                f"{self.name}: its data or settings changed since the extension began; it starts "
                "again"
            )
            shutil.rmtree(self.directory.adapter(self.name, pending.version), ignore_errors=True)
        shutil.rmtree(self.directory.checkpoint(self.name), ignore_errors=True)
        begun = ExtensionEntry(
            version=1 + max(made.version for made in entry.versions),
            data=data,
            training=record,
            started_from=None if from_scratch else entry.adapter.sha256,
            world_size=self.run.processes.count,
        )
        finished = [made for made in entry.extensions if made is not pending]
        self.run.update(self.name, extensions=[*finished, begun])
        return self._work(begun)

    def _work(self, extension: ExtensionEntry) -> _Work:
        initial = None
        if extension.started_from is not None:
            initial = adapter_source(
                self.directory, self.manifest, self.name, extension.started_from
            ).folder
        return _Work(extension.version, extension.status == "training", True, initial)

    def trained(self, adapter: AdapterEntry, result: TrainingResult) -> None:
        """Record the published version."""
        self._record(
            {"adapter_versions": adapter.version},
            status="trained",
            adapter=adapter,
            timings={"train": result.seconds},
            tokens_per_second=result.tokens_per_second,
        )

    def finish(self, config: TrainConfig, work: _Work, kept: Sequence[Example]) -> None:
        """Statistics, switch, evaluation. Main process only."""
        settings = RouterSettings.from_dict(self.manifest.router)
        if work.switch:
            self._switch(settings, kept)
        complete_switch(self.directory, self.manifest)
        began = time.perf_counter()
        if self.manifest.keep_eval:
            self.run.watcher.evaluated(self.name, self.run.score(config.eval, settings))
        self._record(
            status="done",
            timings={
                **self.entry.extensions[-1].timings,
                "evaluation": time.perf_counter() - began,
            },
        )
        self._remove_checkpoints()

    def _remove_checkpoints(self) -> None:
        shutil.rmtree(self.directory.checkpoint(self.name), ignore_errors=True)
        if self.directory.checkpoints.is_dir() and not any(self.directory.checkpoints.iterdir()):
            self.directory.checkpoints.rmdir()

    def _switch(self, settings: RouterSettings, kept: Sequence[Example]) -> None:
        began = time.perf_counter()
        directory, manifest, data = self.directory, self.manifest, self.domain.data
        assert data is not None
        added = self.run.embed(self.domain)
        [old] = read_domains(directory, [self.name], manifest.contract)
        both = joined(old, added)
        statistics = directory.coming(directory.router_statistics(self.name))
        store_domain(directory, both, manifest.contract, statistics)
        if manifest.keep_eval:
            prompts = directory.coming(directory.eval_prompts(self.name))
            write_kept(prompts, merged_prompts(kept, data.dev))
        run = self.run
        canaries = settled_canaries(directory, manifest, run.base, run.forward, run.watcher.say)
        run.refit(settings, canaries, both)
        extension = self.entry.extensions[-1]
        assert extension.adapter is not None
        manifest.switching = self.name
        self._record(
            {
                "adapter": extension.adapter,
                "router": RouterEntry(
                    sha256=file_sha256(statistics), prompts=both.statistics.prompts
                ),
            },
            status="switched",
            replaced=self.entry.adapter,
            prompts=added.statistics.prompts,
            timings={**extension.timings, "statistics": time.perf_counter() - began},
        )
        self.run.watcher.say(
            f"{self.name}: version {extension.version} is in use; the router knows "
            f"{both.statistics.prompts} prompts of it, {added.statistics.prompts} of them new"
        )

    def _record(self, of_domain: dict[str, Any] | None = None, **fields: Any) -> None:
        """Change the last extension and the domain's entry at once, and save the ledger."""
        *before, last = self.entry.extensions
        current = {field: getattr(last, field) for field in type(last).model_fields}
        extensions = [*before, ExtensionEntry(**(current | fields))]
        self.run.update(self.name, extensions=extensions, **(of_domain or {}))


def _kept(directory: ModelDirectory, manifest: Manifest, name: str) -> list[Example]:
    return read_kept(directory.eval_prompts(name)) if manifest.keep_eval else []


def _require_extendable(manifest: Manifest, name: str, resume: bool) -> None:
    entry = manifest.domains.get(name)
    if entry is None:
        raise DirectoryError(unknown("domain", name, manifest.domains))
    if entry.status != "done":
        raise DirectoryError(
            f"domain '{name}' is not finished ({entry.status}); go on with asr train or asr add "
            "with --resume, and extend it then"
        )
    if entry.unfinished_extension is not None and not resume:
        path = entry.unfinished_extension.data.path
        raise DirectoryError(
            f"an extension of '{name}' with {path} is unfinished; add --resume to go on with it"
        )


def _require_same_adapter(entry: DomainEntry, domain: PreparedDomain, from_scratch: bool) -> None:
    here = domain.placement_record()
    for key, recorded in entry.placement.items():
        if key in here and here[key] != recorded:
            raise ConfigError(
                f"cannot extend '{domain.name}': its {key} is {_short(recorded)} and would be "
                f"{_short(here[key])}; a new version keeps placement and rank"
            )
    assert entry.adapter is not None
    rank = domain.placement.largest_rank(domain.lora.rank)
    if entry.adapter.rank != rank and not from_scratch:
        raise ConfigError(
            f"cannot extend '{domain.name}' from its adapter: it was saved with rank "
            f"{entry.adapter.rank} and is trained with {rank}; add --from-scratch"
        )


def _short(value: object) -> str:
    return f"{len(value)} modules" if isinstance(value, list) else str(value)
