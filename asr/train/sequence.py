"""Train a sequence of domains into a routed model directory, resumably.

The order of work: everything is checked first (config, base, every data file, the ledger); then one
domain after the other goes through adapter, router statistics, router, evaluation. The ledger
(``manifest.json``) is saved after every stage, so that a kill at any moment loses at most the work
since the last step checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy
import peft
import torch
import transformers
from transformers import TrainerCallback

import asr
from asr.atomic import STAGING_PREFIX, storage_errors, sweep_staging, write_text
from asr.base.device import choose_device
from asr.base.fingerprint import tensors_hash
from asr.base.load import LoadedBase, load_base
from asr.errors import BaseModelError, ConfigError
from asr.model.canaries import settled_canaries
from asr.model.contract import FeatureContract, numeric_contract
from asr.model.directory import ModelDirectory
from asr.model.lock import LOCK_FILE, DirectoryLock
from asr.model.manifest import BaseEntry, Manifest, Versions
from asr.model.routed_model import make_forward
from asr.model.switch import complete_switch
from asr.router import RouterSettings
from asr.train.changes import Resume, RunPlan, check_resume, holding
from asr.train.check_data import check_data
from asr.train.config import TrainConfig
from asr.train.config_file import check_files
from asr.train.domain import DomainRun
from asr.train.events import Watcher
from asr.train.initialisation import check_sources
from asr.train.prepare import (
    PreparedDomain,
    feature_contract,
    prepare_domains,
    router_settings,
)
from asr.train.processes import Processes
from asr.train.reporting import check_trackers
from asr.train.space import needed_bytes, require_space


def train_sequence(
    config: TrainConfig,
    out: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    compare_finished: bool = True,
    watcher: Watcher | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    base: LoadedBase | None = None,
) -> Manifest:
    """Train all domains of a config, in order.

    Args:
        config: a validated config (:func:`asr.train.config_file.load_config`).
        out: the model directory.
        resume: go on in a directory that holds a routed model; finished domains are not touched,
            new ones at the end of the config are added.
        overwrite: delete a routed model that is there and start again.
        trust_remote_code: run code that comes with the base.
        compare_finished: with ``resume``, read the training files of finished domains, where they
            are there, and refuse one that changed. Without it they are not looked at.
        watcher: told what happens.
        callbacks: further callbacks of the Trainer, for every domain. One that changes the training
            (stops it early, say) changes what a resumed run repeats.
        base: the config's base where the caller has loaded it already; it comes back unchanged.
            None loads it.

    Returns:
        The manifest of the finished run.

    Raises:
        ConfigError: a setting that does not fit, or one that a finished domain was not made with.
        BaseModelError: the base cannot be loaded, or its weights changed while training.
        SplitUnsupportedError: the base cannot be split, and ``router.two_pass`` is not set.
        DataError: a data file, or rows of it, cannot be used.
        DirectoryError, LockedError: the directory is somebody else's, not empty, damaged, in use.
        StorageError: the disk has no room for the run, or refuses a write.
        AdapterError, RouterError: see the stages.
        KeyboardInterrupt: Ctrl-C; go on with ``resume=True``.
    """
    watcher = watcher or Watcher()
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other; give one of them")
    settings = router_settings(config.router)
    processes = Processes(cpu=choose_device(config.device).type == "cpu")
    if not processes.is_main:
        watcher = Watcher()
    with ExitStack() as stack:
        stack.callback(processes.close)
        directory = ModelDirectory(out)
        lock = directory.lock()
        if processes.is_main:
            stack.callback(_remove_empty, _missing(directory.path))
        stack.callback(lock.release)  # nothing happens where it is not held
        earlier = processes.on_main(lambda: _open(directory, resume, overwrite, lock))
        published = _published(earlier)
        unpublished = [name for name in config.domains if name not in published]
        check_files(config, unpublished)
        read = check_data(config, unpublished)
        check_trackers(t for name in unpublished for t in config.domains[name].training.report_to)
        if base is None:
            base = load_base(
                config.base,
                revision=None if earlier is None else earlier.base.revision_of(config.base),
                device=_device(config, processes),
                dtype=config.dtype,
                quantisation=config.quantisation,
                template_text=_stored_template(directory, earlier, config.base),
                trust_remote_code=trust_remote_code,
                say=watcher.say,
            )
        elif base.name != config.base:
            raise ConfigError(
                f"the base that is loaded is '{base.name}', the config names '{config.base}'; load "
                "that one, or leave it to train_sequence"
            )
        contract = feature_contract(config, base)
        forward = make_forward(base, contract.layer, config.router.two_pass)
        plan = RunPlan(base.fingerprint, contract, config.seed, [], base.quantisation)
        domains = prepare_domains(
            config,
            base,
            contract.layer,
            processes.count,
            published,
            read=read,
            recorded=None if earlier is None else holding(earlier, plan),
            compare_finished=compare_finished,
            on_main=processes.on_main,
            say=watcher.say,
            progress=watcher.progress,
        )
        check_sources(domains)
        plan = replace(plan, domains=[domain.plan for domain in domains])
        fresh = new_manifest(config, base, contract)
        work = check_resume(earlier or fresh, plan)
        for line in work.told():
            watcher.say(line)
        manifest = fresh if earlier is None else _continued(earlier, fresh)
        _take_over(manifest, config, settings, domains, work)
        coming = [domain for domain in domains if domain.name in work.todo]
        features = config.router.expansion or base.hidden_size + 1
        processes.on_main(lambda: require_space(directory.path, needed_bytes(coming, features)))
        if overwrite:
            processes.on_main(lambda: _clear(directory, lock))
        processes.on_main(lambda: _publish_start(directory, manifest, base, work))
        watcher.planned(domains, list(work.todo))
        run = DomainRun(
            base,
            forward,
            directory,
            manifest,
            processes,
            watcher,
            background=config.router.background,
            callbacks=callbacks,
        )
        _run_all(run, domains, work, config, settings)
        return manifest


def _run_all(
    run: DomainRun,
    domains: list[PreparedDomain],
    work: Resume,
    config: TrainConfig,
    settings: RouterSettings,
) -> None:
    canaries = settled_canaries(run.directory, run.manifest, run.base, run.forward, run.watcher.say)
    frozen = tensors_hash(run.base.model)
    by_name = {domain.name: domain for domain in domains}
    for name in work.todo:
        domain = by_name[name]
        run.watcher.domain_started(domain, list(by_name).index(name), len(domains))
        if run.manifest.domains[name].status in ("pending", "training"):
            run.train(domain)
            if tensors_hash(run.base.model) != frozen:
                raise BaseModelError(
                    f"the base's weights changed while '{name}' was trained; this is a bug, please "
                    "report it with the config"
                )

        def finish(domain: PreparedDomain = domain) -> None:
            if run.manifest.domains[domain.name].status == "trained":
                run.fit(domain)
            run.refit(settings, canaries)
            run.evaluate(domain.name, config.eval, settings)

        run.processes.on_main(finish)

    def derive() -> None:
        run.refit(settings, canaries)
        if run.manifest.keep_eval:
            run.score(config.eval, settings)

    if not work.todo:
        # nothing to train, but ridge, solver, scorers or the like may have changed
        run.processes.on_main(derive)
    run.processes.on_main(lambda: _remove_checkpoints(run.directory, run.manifest))


def _remove_checkpoints(directory: ModelDirectory, manifest: Manifest) -> None:
    """Remove all checkpoints but those of extensions that are under way."""
    wanted = {name for name, entry in manifest.domains.items() if entry.unfinished_extension}
    for folder in directory.checkpoints.iterdir() if directory.checkpoints.is_dir() else []:
        if folder.name not in wanted:
            shutil.rmtree(folder, ignore_errors=True)
    if not wanted:
        shutil.rmtree(directory.checkpoints, ignore_errors=True)


def _open(
    directory: ModelDirectory, resume: bool, overwrite: bool, lock: DirectoryLock
) -> Manifest | None:
    """Lock the directory and read its ledger, if it has one and may be continued."""
    if resume and directory.is_routed_model:
        lock.acquire()
        sweep_staging(directory.path)
        manifest = Manifest.load(directory.path)
        complete_switch(directory, manifest)
        return manifest
    _sweep_failed_start(directory)
    if overwrite and directory.path.is_dir():
        directory.require_replaceable(overwrite)  # deleted only when everything else is checked
    else:
        ModelDirectory.create(directory.path)
    lock.acquire()
    directory.require_replaceable(overwrite)  # again: another run may have come in between
    return None


def _missing(path: Path) -> list[Path]:
    """The folders that making ``path`` would make, the innermost first."""
    return [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove the folders that this run made and that hold nothing: a refused one leaves nothing."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # it holds a model, or was never made
            return


def _sweep_failed_start(directory: ModelDirectory) -> None:
    """Empty a folder in which a run was killed while it wrote its very first ledger."""

    def leftovers_only() -> bool:
        names = {entry.name for entry in directory.path.iterdir()} - {LOCK_FILE}
        return bool(names) and all(name.startswith(STAGING_PREFIX) for name in names)

    if directory.path.is_dir() and leftovers_only():
        with directory.lock():
            if leftovers_only():  # still: that run may have been alive
                sweep_staging(directory.path)


def _continued(earlier: Manifest, fresh: Manifest) -> Manifest:
    """The ledger to go on with.

    As long as no adapter is published nothing depends on the base, seed and contract of the earlier
    run, and this run's hold.

    Raises:
        ConfigError: ``keep_eval`` changed, and there are finished domains.
    """
    finished = [name for name, entry in earlier.domains.items() if entry.adapter is not None]
    if not finished:
        return fresh.model_copy(update={"created": earlier.created, "domains": earlier.domains})
    if earlier.keep_eval != fresh.keep_eval:
        raise ConfigError(
            f"cannot resume: keep_eval changed: {json.dumps(earlier.keep_eval)} -> "
            f"{json.dumps(fresh.keep_eval)}, and domain '{finished[0]}' is finished with it; undo "
            "the change, or train into a new folder"
        )
    earlier.two_pass = fresh.two_pass  # the same features, at another cost
    return earlier


def _take_over(
    manifest: Manifest,
    config: TrainConfig,
    settings: RouterSettings,
    domains: list[PreparedDomain],
    work: Resume,
) -> None:
    """Bring the ledger in line with the config, in memory, on every process."""
    for name in work.dropped:
        del manifest.domains[name]
    for domain in domains:
        if domain.name not in manifest.domains:
            manifest.add(domain.name)
        manifest.update(
            domain.name,
            test=None if domain.config.test is None else str(domain.config.test),
            scorer=domain.scorer,
            max_new_tokens=domain.max_new_tokens,
        )
    for name in work.restart:  # what it starts from is chosen anew
        manifest.update(name, status="pending", parent=None, parent_sha256=None)
    for domain in domains:
        if manifest.domains[domain.name].status == "pending":
            # what a probe decided is decided for good, also for a domain whose turn is to come
            placed = {} if domain.placed.asked is None else domain.placement_record()
            manifest.update(domain.name, placement=placed, passes=domain.placement.passes)
    manifest.arrange([domain.name for domain in domains])
    manifest.router = settings.to_dict()
    manifest.config = config.plain()


def _clear(directory: ModelDirectory, lock: DirectoryLock) -> None:
    ModelDirectory.create(directory.path, overwrite=True, lock=lock)


def _publish_start(
    directory: ModelDirectory, manifest: Manifest, base: LoadedBase, work: Resume
) -> None:
    """Write what must stand before the first domain: ledger, tokenizer, template."""
    for name in (*work.dropped, *work.restart):
        shutil.rmtree(directory.checkpoint(name), ignore_errors=True)
    for name in work.dropped:
        shutil.rmtree(directory.adapter(name), ignore_errors=True)  # published, not yet recorded
    # The ledger before the template: with it a kill leaves a directory that can be continued.
    manifest.save(directory.path)
    template = directory.chat_template
    if not template.is_file() or template.read_text(encoding="utf-8") != base.template.text:
        # The template last: where it stands, the tokenizer is complete.
        with storage_errors(directory.tokenizer):
            template.unlink(missing_ok=True)
            base.tokenizer.save_pretrained(directory.tokenizer, save_jinja_files=False)
        write_text(template, base.template.text)


def new_manifest(config: TrainConfig, base: LoadedBase, contract: FeatureContract) -> Manifest:
    """The ledger of a run that has no domain yet."""
    return Manifest(
        versions=Versions(
            asr=asr.__version__,
            torch=torch.__version__,
            transformers=transformers.__version__,
            peft=peft.__version__,
            numpy=numpy.__version__,
        ),
        base=BaseEntry(
            name=base.name,
            source=base.resolved.source,
            revision=base.resolved.revision,
            fingerprint=base.fingerprint,
            n_layers=base.n_layers,
            hidden_size=base.hidden_size,
            architecture=base.architecture,
        ),
        contract=contract,
        numeric=numeric_contract(base),
        seed=config.seed,
        keep_eval=config.keep_eval,
        two_pass=config.router.two_pass,
    )


def _published(manifest: Manifest | None) -> list[str]:
    """Domains whose adapter and statistics are there: they need no training file any more."""
    return [] if manifest is None else manifest.routed


def _stored_template(directory: ModelDirectory, manifest: Manifest | None, base: str) -> str | None:
    if manifest is None or not directory.chat_template.is_file():
        return None
    if not manifest.routed and manifest.base.name != base:
        return None  # nothing stands yet, and another base is asked for
    return directory.chat_template.read_text(encoding="utf-8")


def _device(config: TrainConfig, processes: Processes) -> str:
    """Every process of a multi-GPU run uses the accelerator that it was given."""
    return processes.device if config.device == "auto" and processes.count > 1 else config.device
