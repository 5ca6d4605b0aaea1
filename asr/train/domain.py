"""One domain through its stages: adapter, router statistics, evaluation.

Each stage ends with its result published and the ledger saved; a stage that the ledger knows to be
done is not repeated. What a killed stage left behind is removed and made again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import TrainerCallback

from asr.adapters import adapter_sha256, detach, save_adapter
from asr.atomic import staged_folder, storage_errors
from asr.base.load import LoadedBase
from asr.eval.cache import EvalCache
from asr.eval.evaluate import Evaluator
from asr.eval.history import extend_matrices
from asr.eval.matrix import EvalMatrix
from asr.model.background import fit_background, read_background, store_background
from asr.model.directory import ModelDirectory, file_sha256
from asr.model.features import Forward
from asr.model.kept_prompts import write_kept
from asr.model.manifest import (
    AdapterEntry,
    BackgroundEntry,
    CommonPartEntry,
    DataEntry,
    Manifest,
    RouterEntry,
)
from asr.model.routed_model import RoutedModel
from asr.model.routing import fit_domain, fit_router, read_domains, store_domain, store_router
from asr.model.stored import background_problem
from asr.router import RouterSettings, RoutingDomain, load_router
from asr.train.adapter import TrainingResult, domain_seed, train_adapter
from asr.train.config import EvalConfig
from asr.train.events import Watcher
from asr.train.initialisation import choose_source
from asr.train.prepare import PreparedDomain
from asr.train.processes import Processes
from asr.train.rules import choose_save_steps


def data_entry(domain: PreparedDomain) -> DataEntry | None:
    """The manifest's record of a domain's data; None where its file is gone."""
    data = domain.data
    if data is None:
        return None
    report = data.encoded.report
    return DataEntry(
        path=str(data.loaded.path),
        sha256=data.sha256,
        examples=len(data.loaded.examples),
        train=len(data.train),
        dev=len(data.dev),
        calibration=data.calibration,
        tokens=report.total_tokens,
        supervised_tokens=report.supervised_tokens,
        truncated=report.truncated,
        dropped=len(report.dropped),
    )


class DomainRun:
    """The stages of the domains of one run.

    Args:
        base: the loaded base.
        forward: its split forward.
        directory: the model directory; locked by the main process.
        manifest: its ledger; saved by the main process.
        processes: the processes of the run.
        watcher: told what happens.
        background: prompts of the router's background class; 0 for none.
        callbacks: further Trainer callbacks, for every domain.
    """

    def __init__(
        self,
        base: LoadedBase,
        forward: Forward,
        directory: ModelDirectory,
        manifest: Manifest,
        processes: Processes,
        watcher: Watcher,
        background: int = 0,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.base = base
        self.forward = forward
        self.directory = directory
        self.manifest = manifest
        self.processes = processes
        self.watcher = watcher
        self.background = background
        self.callbacks = callbacks

    # -- stage 1: the adapter --------------------------------------------------------------------

    def train(self, domain: PreparedDomain) -> None:
        """Train and publish the adapter. All processes take part.

        Raises:
            AdapterError, ConfigError, StorageError: see :func:`asr.train.adapter.train_adapter`.
            KeyboardInterrupt: Ctrl-C; the run can be resumed.
        """
        data = domain.data
        assert data is not None

        def begin() -> Path | None:
            started_from = choose_source(
                domain, self.base, self.forward, self.directory, self.manifest, self.watcher.say
            )
            self.update(
                domain.name,
                status="training",
                data=data_entry(domain),
                common_part=CommonPartEntry(**data.common.to_dict()),
                test=None if domain.config.test is None else str(domain.config.test),
                scorer=domain.scorer,
                placement=domain.placement_record(),
                passes=domain.placement.passes,
                training=domain.training_record(),
                max_new_tokens=domain.max_new_tokens,
                world_size=self.processes.count,
                parent=None if started_from is None else started_from.domain,
                parent_sha256=None if started_from is None else started_from.sha256,
            )
            return None if started_from is None else started_from.folder

        def record(adapter: AdapterEntry, result: TrainingResult) -> None:
            self.update(
                domain.name,
                status="trained",
                adapter=adapter,
                timings={"train": result.seconds},
                tokens_per_second=result.tokens_per_second,
            )

        self.make_adapter(domain, 1, self.processes.on_main(begin), record)

    def make_adapter(
        self,
        domain: PreparedDomain,
        version: int,
        initial: Path | None,
        record: Callable[[AdapterEntry, TrainingResult], None],
    ) -> None:
        """Train one version of a domain's adapter and publish its folder. All processes take part.

        Args:
            domain: the domain, with the data to train on.
            version: of the adapter.
            initial: folder of the adapter that it starts as a copy of; None: from scratch.
            record: writes the published adapter into the ledger; called on the main process.
        """
        data, settings = domain.data, domain.settings
        assert data is not None and settings is not None
        final = self.directory.adapter(domain.name, version)
        rows = data.encoded.rows
        # A published folder that the ledger does not know was made by a killed run, from the
        # same checkpoints; making it again is cheap and leaves one way to be finished.
        self.processes.on_main(lambda: shutil.rmtree(final, ignore_errors=True))
        own = domain.name if version == 1 else final.name
        peft_model = None
        try:
            peft_model, result = train_adapter(
                self.base,
                rows,
                domain.placement,
                domain.lora,
                settings,
                seed=domain_seed(self.manifest.seed, own),
                checkpoints=self.directory.checkpoint(domain.name),
                save_steps=domain.config.training.save_steps
                or choose_save_steps(settings.steps(len(rows))),
                progress=self.watcher.step,
                announce=self.watcher.say,
                callbacks=self.callbacks,
                initial=initial,
                report_to=domain.config.training.report_to,
                logs=self.directory.logs(domain.name),
            )

            def publish() -> None:
                facts = {
                    "examples": len(data.train),
                    "steps": result.steps,
                    "learning rate": settings.learning_rate,
                    "loss at the end": f"{result.loss:.4f}",
                }
                with staged_folder(final) as staged:
                    save_adapter(
                        peft_model,
                        staged,
                        domain=domain.name,
                        fingerprint=self.base.fingerprint,
                        facts=facts,
                    )
                weights = self.directory.adapter_weights(domain.name, version)
                config = self.directory.adapter_config(domain.name, version)
                record(
                    AdapterEntry(
                        sha256=adapter_sha256(final),
                        config_sha256=file_sha256(config),
                        parameters=domain.saved_parameters,
                        bytes=weights.stat().st_size,
                        rank=domain.saved_rank,
                        version=version,
                    ),
                    result,
                )
                self.watcher.trained(domain, result)

            self.processes.on_main(publish)
        finally:
            if peft_model is not None:
                detach(peft_model)

    # -- stage 2: the router ---------------------------------------------------------------------

    def fit(self, domain: PreparedDomain) -> None:
        """Embed the training prompts and publish the domain's statistics. Main process only."""
        assert domain.data is not None
        began = time.perf_counter()
        fitted = self.embed(domain)
        with storage_errors(self.directory.path):
            self.directory.router_folder.mkdir(exist_ok=True)
            if self.manifest.keep_eval:
                self.directory.eval.mkdir(exist_ok=True)
        store_domain(self.directory, fitted, self.manifest.contract)
        if self.manifest.keep_eval:
            write_kept(self.directory.eval_prompts(domain.name), domain.data.dev)
        entry = self.manifest.domains[domain.name]
        self.update(
            domain.name,
            status="routed",
            router=RouterEntry(
                sha256=file_sha256(self.directory.router_statistics(domain.name)),
                prompts=fitted.statistics.prompts,
            ),
            timings={**entry.timings, "statistics": time.perf_counter() - began},
        )

    def embed(self, domain: PreparedDomain) -> RoutingDomain:
        """Embed the domain's training prompts: statistics and calibration block."""
        assert domain.data is not None
        total = len({example.prompt_key for example in domain.data.train})
        total *= len(self.manifest.contract.views)
        done = 0

        def progress(count: int) -> None:
            nonlocal done
            done += count
            self.watcher.progress(f"{domain.name}: router", done, total)

        return fit_domain(
            domain.name,
            domain.data.train,
            domain.data.common,
            self.base,
            self.forward,
            self.manifest.contract,
            progress,
        )

    def refit(
        self,
        settings: RouterSettings,
        canaries: NDArray[np.float32],
        revisited: RoutingDomain | None = None,
    ) -> None:
        """Solve the router over all routed domains and publish it. Main process only.

        ``revisited`` stands in for its stored statistics; the router then waits beside the
        published one (:meth:`asr.model.directory.ModelDirectory.coming`).
        """
        self._settle_background()
        domains = read_domains(self.directory, self.manifest.routed, self.manifest.contract)
        domains += read_background(self.directory, self.manifest)
        path = None
        if revisited is not None:
            domains = [revisited if d.name == revisited.name else d for d in domains]
            path = self.directory.coming(self.directory.router)
        router = fit_router(domains, settings, self.manifest.contract, self.base.hidden_size)
        store_router(self.directory, router, self.manifest.contract, canaries, path)

    def _settle_background(self) -> None:
        """Make the background class, or delete it, where it is not as the run wants it."""
        present, path = self.manifest.background, self.directory.background
        wanted = present is not None and present.samples == self.background
        if wanted and background_problem(self.directory, self.manifest) is None:
            return
        if self.background == 0:
            if present is not None:
                self.manifest.background = None
                self.manifest.save(self.directory.path)
            path.unlink(missing_ok=True)  # after the ledger: it never promises what is gone
            return
        made = fit_background(
            self.base,
            self.forward,
            self.manifest.contract,
            self.background,
            lambda done, total: self.watcher.progress("router: background", done, total),
        )
        store_background(self.directory, made, self.manifest.contract)
        self.manifest.background = BackgroundEntry(
            sha256=file_sha256(path), samples=self.background, prompts=made.statistics.prompts
        )
        self.manifest.save(self.directory.path)

    # -- stage 3: the matrix ---------------------------------------------------------------------

    def evaluate(self, name: str, settings: EvalConfig, routing: RouterSettings) -> None:
        """Score all domains so far on their dev cuts and publish the matrix. Main process only."""
        began = time.perf_counter()
        if self.manifest.keep_eval:
            self.watcher.evaluated(name, self.score(settings, routing))
        entry = self.manifest.domains[name]
        self.update(
            name,
            status="done",
            timings={**entry.timings, "evaluation": time.perf_counter() - began},
        )
        shutil.rmtree(self.directory.checkpoint(name), ignore_errors=True)

    def score(self, settings: EvalConfig, routing: RouterSettings) -> dict[str, EvalMatrix]:
        """Bring the matrices up to date; what stands already is kept. Main process only."""
        router = load_router(self.directory.router, self.manifest.contract.hash).router
        model = RoutedModel(self.base, self.manifest, self.directory, router, self.forward)
        with EvalCache(self.directory.answers) as cache:
            try:
                evaluator = Evaluator(model, cache, settings.batch_size, self.watcher.progress)
                return extend_matrices(
                    evaluator, routing, settings.max_examples, settings.max_new_tokens
                )
            finally:
                model.close()

    def update(self, name: str, **fields: Any) -> None:
        """Change a domain's ledger entry and save the ledger."""
        self.manifest.update(name, **fields)
        self.manifest.save(self.directory.path)
