"""One LoRA trained through the sequence of domains: what people do without routing.

Everything is as for private adapters: the rows, their order, batch size, learning rate, schedule,
steps, seeds, placement and rank of each domain. The one difference: a domain's training starts from
the tensors that the domain before it left, and there is no router, since there is one adapter.

```
OUT/
  sequential.json        ledger; see asr.compare.ledger
  adapters/<domain>/     the LoRA as it was right after each domain; plain PEFT
  checkpoints/<domain>/  of the domain in training
  answers.jsonl          answers that need not be generated again
```
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from asr.adapters import adapter_sha256, detach, save_adapter
from asr.atomic import staged_folder, storage_errors, sweep_staging
from asr.base.fingerprint import tensors_hash
from asr.base.load import LoadedBase, load_base
from asr.compare.ledger import Ledger, Plan, Step
from asr.compare.sets import load_test_sets
from asr.errors import AdapterError, BaseModelError, ConfigError, unknown
from asr.eval.cache import EvalCache
from asr.eval.evaluate import EvalSet, Evaluator
from asr.eval.matrix import EvalMatrix
from asr.model.directory import ModelDirectory
from asr.model.lock import DirectoryLock
from asr.model.manifest import AdapterEntry, Manifest
from asr.model.routed_model import RoutedModel
from asr.router import Router
from asr.train.adapter import TrainingResult, domain_seed, train_adapter
from asr.train.config import TrainConfig
from asr.train.events import Watcher
from asr.train.prepare import PreparedDomain, feature_contract, prepare_domains
from asr.train.rules import choose_save_steps
from asr.train.sequence import new_manifest


def train_sequential(
    config: TrainConfig,
    out: Path | str,
    *,
    kind: str = "templated",
    max_examples: int | None = None,
    trust_remote_code: bool = False,
    watcher: Watcher | None = None,
) -> EvalMatrix:
    """Train one LoRA through all domains of a config and score it after each on their test files.

    Called again with the same arguments it goes on where it was stopped; finished domains and
    answers are not made again.

    Args:
        config: a validated config, as for :func:`asr.train.sequence.train_sequence`; every domain
            needs a test file.
        out: folder of the comparison: new, empty, or one of an earlier call.
        kind: "templated" (prompts as trained) or "bare" (without the domain's instruction).
        max_examples: most test examples per domain; None for all.
        trust_remote_code: run code that comes with the base.
        watcher: told what happens.

    Returns:
        The matrix; its ``routed`` scores are the one LoRA's, base and oracle stay empty.

    Raises:
        As :class:`SequentialLora` and its methods, and :func:`asr.compare.sets.load_test_sets`.
    """
    watcher = watcher or Watcher()
    base = load_base(
        config.base,
        device=config.device,
        dtype=config.dtype,
        quantisation=config.quantisation,
        trust_remote_code=trust_remote_code,
        say=watcher.say,
    )
    contract = feature_contract(config, base)
    domains = prepare_domains(config, base, contract.layer, 1)
    sets = load_test_sets(domains, max_examples, config.seed)
    run = SequentialLora(config, base, domains, out, watcher)
    watcher.planned(domains, [d.name for d in domains if d.name not in run.finished])
    for position, domain in enumerate(domains):
        if domain.name not in run.finished:
            watcher.domain_started(domain, position, len(domains))
            watcher.trained(domain, run.train(domain.name))
        matrix = run.score(sets, kind, config.eval.batch_size)
    return matrix


class SequentialLora:
    """One LoRA on its way through the domains, one :meth:`train` each, in order.

    Args:
        config: the validated config.
        base: the loaded base; between calls it is the plain base, unchanged.
        domains: its domains, prepared with their data, in training order.
        out: folder of the comparison: new, empty, or one of an earlier run, which is continued.
        watcher: told what happens.

    Raises:
        ConfigError: domains differ in placement, rank, alpha or dropout, or start by an
            initialisation of their own, so that one LoRA cannot learn them all; or a finished
            domain was trained on other data, with other settings, in another place of the order,
            or on another base.
        DirectoryError: ``out`` holds something else.
        LockedError: another process works in ``out``.
    """

    def __init__(
        self,
        config: TrainConfig,
        base: LoadedBase,
        domains: Sequence[PreparedDomain],
        out: Path | str,
        watcher: Watcher | None = None,
    ) -> None:
        self.base = base
        self.domains = {domain.name: domain for domain in domains}
        self.directory = ModelDirectory(out)
        self.watcher = watcher or Watcher()
        _require_one_shape(domains)
        contract = feature_contract(config, base)
        self._empty = new_manifest(config, base, contract)
        self._frozen = tensors_hash(base.model)
        self.ledger = Ledger.load(self.directory.path) or Ledger(
            base_fingerprint=base.fingerprint, contract_hash=contract.hash, seed=config.seed
        )
        self._require_same(contract.hash)

    @property
    def finished(self) -> list[str]:
        """Names of the domains that the LoRA has been through."""
        return [step.plan.domain for step in self.ledger.steps]

    def train(self, name: str) -> TrainingResult:
        """Go on with the next domain, from the tensors that the one before left.

        Raises:
            ConfigError: ``name`` is not the next domain.
            BaseModelError: the base's weights changed.
            AdapterError, StorageError: see :func:`asr.train.adapter.train_adapter`; the adapter
                of the domain before was changed.
            KeyboardInterrupt: Ctrl-C; the same call goes on from the last checkpoint.
        """
        domain = self._next(name)
        data, settings = domain.data, domain.settings
        assert data is not None and settings is not None
        parent = self._parent()
        final, checkpoints = self.directory.adapter(name), self.directory.checkpoint(name)
        plan = Plan.of(domain.plan)
        with self._writing():
            # A folder that the ledger does not know was left by a killed run.
            shutil.rmtree(final, ignore_errors=True)
            if self.ledger.current != plan:
                shutil.rmtree(checkpoints, ignore_errors=True)
            self.ledger.current = plan
            self.ledger.save(self.directory.path)
            rows = data.encoded.rows
            model, result = train_adapter(
                self.base,
                rows,
                domain.placement,
                domain.lora,
                settings,
                seed=domain_seed(self.ledger.seed, name),
                checkpoints=checkpoints,
                save_steps=domain.config.training.save_steps
                or choose_save_steps(settings.steps(len(rows))),
                progress=self.watcher.step,
                announce=self.watcher.say,
                initial=None if parent is None else self.directory.adapter(parent),
            )
            try:
                facts = {"domains so far": ", ".join([*self.finished, name])}
                with staged_folder(final) as staged:
                    save_adapter(
                        model,
                        staged,
                        domain=name,
                        fingerprint=self.base.fingerprint,
                        facts=facts,
                    )
            finally:
                detach(model)
            if tensors_hash(self.base.model) != self._frozen:
                raise BaseModelError(f"the base's weights changed while '{name}' was trained")
            self._record(plan, seconds=result.seconds)
        return result

    def adopt(self, model: ModelDirectory) -> bool:
        """Take the first domain's adapter from a routed model instead of training it again.

        The first domain starts from nothing in both, so it is the same training: same rows, seed
        and settings. Nothing is taken unless the model's ledger says that they are the same.

        Returns:
            Whether it was taken.

        Raises:
            DirectoryError: no routed model there.
            AdapterError: its adapter was changed.
            ConfigError: the first domain is finished already.
        """
        name = next(iter(self.domains))
        domain = self._next(name)
        manifest = Manifest.load(model.path)
        entry = manifest.domains.get(name)
        plan = Plan.of(domain.plan)
        if entry is None or entry.adapter is None or entry.data is None:
            return False
        same = (
            manifest.base.fingerprint == self.ledger.base_fingerprint
            and manifest.contract.hash == self.ledger.contract_hash
            and manifest.seed == self.ledger.seed
            and manifest.numeric == self._empty.numeric
            and entry.data.sha256 == plan.data_sha256
            and {"placement": entry.placement, **entry.training} == plan.settings
            and entry.parent is None
            and entry.world_size == 1
        )
        if not same:
            return False
        source = model.adapter(name, entry.adapter.version)
        if adapter_sha256(source) != entry.adapter.sha256:
            raise AdapterError(f"adapter {source} was changed since training; restore it")
        final = self.directory.adapter(name)
        with self._writing():
            shutil.rmtree(final, ignore_errors=True)
            with staged_folder(final) as staged:
                shutil.copytree(source, staged, dirs_exist_ok=True)
            self._record(plan, seconds=entry.timings.get("train", 0.0), adopted=True)
        return True

    def score(
        self, sets: Sequence[EvalSet], kind: str = "templated", batch_size: int = 16
    ) -> EvalMatrix:
        """Score the LoRA as it was after each finished domain on all domains up to it.

        Args:
            sets: one per domain; domains not trained yet, or without a set, are left out.
            kind: "templated" or "bare".
            batch_size: prompts generated together.

        Returns:
            The matrix of the finished domains: ``routed`` holds the one LoRA's scores (nothing is
            routed), everything else stays empty.

        Raises:
            DataError, AdapterError, StorageError: as :meth:`asr.eval.evaluate.Evaluator.extend`.
        """
        by_name = {evaluated.domain: evaluated for evaluated in sets}
        matrix = EvalMatrix(kind)
        with self._writing(), EvalCache(self.directory.path / "answers.jsonl") as cache:
            model = _Stages(self.base, self._manifest(), self.directory, cast(Router, None))
            try:
                evaluator = Evaluator(model, cache, batch_size, self._progress)
                names = [name for name in self.finished if name in by_name]
                for k, after in enumerate(names):
                    matrix.add_domain(after, by_name[after].scorer)
                    for name in names[: k + 1]:
                        scores = evaluator.forced(by_name[name], kind, after)
                        matrix.record(after, name, routed=scores)
            finally:
                model.close()
        return matrix

    # -- inside ----------------------------------------------------------------------------------

    def _progress(self, what: str, done: int, total: int) -> None:
        self.watcher.progress(f"one LoRA, {what}", done, total)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with storage_errors(self.directory.path):
            self.directory.path.mkdir(parents=True, exist_ok=True)
        with DirectoryLock(self.directory.path):
            sweep_staging(self.directory.path)
            yield

    def _next(self, name: str) -> PreparedDomain:
        if name not in self.domains:
            raise ConfigError(unknown("domain", name, self.domains))
        todo = [domain for domain in self.domains if domain not in self.finished]
        if not todo or name != todo[0]:
            what = f"'{todo[0]}' comes next" if todo else "all domains are finished"
            raise ConfigError(f"one LoRA learns the domains in order: {what}, not '{name}'")
        return self.domains[name]

    def _parent(self) -> str | None:
        """The last finished domain; its adapter is what was recorded."""
        if not self.ledger.steps:
            return None
        last = self.ledger.steps[-1]
        folder = self.directory.adapter(last.plan.domain)
        if adapter_sha256(folder) != last.adapter_sha256:
            raise AdapterError(
                f"adapter {folder} was changed since training; delete '{self.directory.path}' to "
                "start the comparison again"
            )
        return last.plan.domain

    def _record(self, plan: Plan, seconds: float, adopted: bool = False) -> None:
        steps = self.ledger.steps
        steps.append(
            Step(
                plan=plan,
                adapter_sha256=adapter_sha256(self.directory.adapter(plan.domain)),
                parent_sha256=steps[-1].adapter_sha256 if steps else None,
                adopted=adopted,
                seconds=seconds,
            )
        )
        self.ledger.current = None
        self.ledger.save(self.directory.path)
        shutil.rmtree(self.directory.checkpoints, ignore_errors=True)

    def _require_same(self, contract_hash: str) -> None:
        """Refuse a folder whose finished domains were made otherwise than now asked for."""
        ledger, changed = self.ledger, []
        if ledger.steps:
            if ledger.base_fingerprint != self.base.fingerprint:
                changed.append("the base")
            elif ledger.contract_hash != contract_hash:
                changed.append("the feature contract")
            if ledger.seed != self._empty.seed:
                changed.append(f"the seed ({ledger.seed} -> {self._empty.seed})")
        names = list(self.domains)
        if self.finished != names[: len(self.finished)]:
            changed.append(f"the order of the domains ({', '.join(self.finished)} are finished)")
        else:
            changed += [
                f"data or settings of '{step.plan.domain}'"
                for step in ledger.steps
                if Plan.of(self.domains[step.plan.domain].plan) != step.plan
            ]
        if changed:
            raise ConfigError(
                f"cannot go on with the comparison in '{self.directory.path}': {changed[0]} "
                "changed; undo the change, or choose another folder"
            )
        if not ledger.steps:  # nothing depends on an earlier start
            ledger.base_fingerprint, ledger.contract_hash = self.base.fingerprint, contract_hash
            ledger.seed = self._empty.seed

    def _manifest(self) -> Manifest:
        """A manifest, in memory only, in which each stage of the LoRA is an adapter."""
        manifest = self._empty.model_copy(deep=True)
        for step in self.ledger.steps:
            domain = self.domains[step.plan.domain]
            weights = self.directory.adapter_weights(domain.name)
            manifest.add(
                domain.name,
                status="trained",
                passes=domain.placement.passes,
                adapter=AdapterEntry(
                    sha256=step.adapter_sha256,
                    parameters=domain.placement.parameters(domain.lora.rank),
                    bytes=weights.stat().st_size,
                    rank=domain.saved_rank,
                ),
            )
        return manifest


class _Stages(RoutedModel):
    """The LoRA as it was after each domain, under that domain's name. It has no router."""

    @property
    def domains(self) -> tuple[str, ...]:
        """Every stage can be asked for by name."""
        return tuple(self.manifest.domains)


def _require_one_shape(domains: Sequence[PreparedDomain]) -> None:
    if not domains:
        raise ConfigError("no domains to train one LoRA on")
    first = domains[0]
    for domain in domains:
        if domain.data is None or domain.settings is None:
            raise ConfigError(
                f"the training file of '{domain.name}' is gone; the comparison needs it"
            )
        if domain.lora.init_lora_weights is not True:
            raise ConfigError(
                f"'{domain.name}' has init_lora_weights {domain.lora.init_lora_weights}, which "
                "makes a LoRA anew and cannot go on from another; leave it out for the comparison"
            )
        if not domain.placement.alike(first.placement) or domain.lora != first.lora:
            raise ConfigError(
                f"one LoRA has one placement, rank, alpha and dropout, but '{domain.name}' and "
                f"'{first.name}' differ in them; give both the same adapter section"
            )
