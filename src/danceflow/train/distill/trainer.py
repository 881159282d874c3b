"""The training loop of the student.

For every update: pick the capabilities, draw their rows and query indices, roll the student out to
those indices, ask each capability's own teacher there, and regress. Everything that differs between
methods is data (``danceflow.method``); every draw is a function of (seed, purpose, step, sample).
A capability's rows in an update have one size; sizes are rolled out apart, each on its own grid.
"""

import copy
import json
import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from danceflow.capability import asked
from danceflow.data.cached_rows import ConditionCache
from danceflow.data.sizes import Size, by_size
from danceflow.fields import (
    Condition,
    CountingField,
    Noised,
    StateRequest,
    VelocityField,
    seed_for,
)
from danceflow.method import Method
from danceflow.models.memory import Memory, recompute_activations
from danceflow.models.pack import save_adapter_package
from danceflow.models.package import save_package
from danceflow.models.start import start_student
from danceflow.models.steps import on_grid
from danceflow.models.teachers import Teachers
from danceflow.ops.group import current, each_for_itself
from danceflow.ops.tracking import Tracker
from danceflow.train.distill.answers import Answers
from danceflow.train.distill.balance import LossBalance
from danceflow.train.distill.budget import FORWARD_AND_BACKWARD, MAX_ROWS, Ledger
from danceflow.train.distill.guards import (
    require_different,
    require_finite,
    require_finite_velocities,
    require_frozen,
    require_gradient,
)
from danceflow.train.distill.replay import Replay, Visits
from danceflow.train.distill.router import Router
from danceflow.train.distill.rows import Drawn, UpdateRows, sizes_by_rows
from danceflow.train.distill.sharding import (
    Together,
    is_sharded,
    load_shards,
    load_whole,
    remove_other_shards,
    save_shards,
    shard,
    whole,
    whole_network,
)
from danceflow.train.log import Meter, MetricsFile, log_losses
from danceflow.train.optim import make_optimizer, schedule, set_learning_rate, sum_gradients
from danceflow.train.state import Ema, load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from danceflow.params.sections import Params
    from danceflow.train.distill.observe import Observer

_LOG = logging.getLogger(__name__)
FINER = 4


class Trainer:
    """Student, optimiser and average, and the loop that moves them."""

    def __init__(
        self,
        params: "Params",
        method: Method,
        teachers: Teachers,
        caches: dict[str, ConditionCache],
        work: Path,
        tracker: Tracker,
        observer: "Observer",
    ) -> None:
        """Build the student and resume from ``work`` if a checkpoint is there."""
        self.params, self.config, self.method = params, params.distill, method
        self.sizes = sizes_by_rows(caches.values())
        family = on_grid(teachers.family, self.config.shift)
        self.families = {size: family.sized(*size) for size in self.sizes}
        self.family = self.families[self.sizes[0]]
        self.tracker, self.observer, self.work = tracker, observer, work
        self.group, self.loaded = current(), teachers
        self.device = torch.device(params.run.device)
        found = asked(params)
        capabilities = found.capabilities
        router = Router(capabilities, self.config.seed, self.config.capabilities_per_update)
        self.rows = UpdateRows(self.config, method, router, caches, params.run.device)
        require_frozen(teachers.backbones.values())
        self.ledger = Ledger(self.config.max_field_evaluations)
        self.teachers: dict[str, VelocityField] = {}
        for c in capabilities:
            teacher = teachers.field(c.teacher.name, c.teacher.guidance_scale)
            self.teachers[c.name] = self.ledger.count("teachers", teacher, teacher.cost)
        self.sharded = False
        self.backbone, self.trainable = start_student(
            self.config, teachers, self.config.seed, found.start, self._spread
        )
        if self.config.activation_checkpointing:
            recompute_activations(self.backbone)
        # A student that starts as one of several teachers agrees with that one at first.
        self.must_differ = found.differing or {c.name for c in capabilities}
        self.student: VelocityField = self.family.field(self.backbone)
        if self.sharded:
            self.student = Together(self.student, self._filler(), self.group)
        self.rollout_field = self.ledger.count("rollout", self.student)
        self.trained_field = self.ledger.count("training", self.student, FORWARD_AND_BACKWARD)
        self.grids = {
            size: family.grid(self.config.num_steps).to(self.device)
            for size, family in self.families.items()
        }
        # Noised states are drawn down to the last step of a rollout of four times as many steps.
        self.levels = {
            size: family.grid(FINER * self.config.num_steps)[:-1]
            for size, family in self.families.items()
        }
        self.answers = Answers(self.config, self.families.values(), self.device)
        self.optimizer = make_optimizer(
            self.config.optimizer,
            self.trainable,
            self.config.learning_rate,
            self.config.weight_decay,
        )
        self.replay = Replay(method.updates_per_rollout, self.device, method.states.dynamics)
        self.balance = LossBalance([c.name for c in capabilities], self.config.loss_normalisation)
        self.ema = Ema(self.backbone, self.config.ema_decay)
        needs_ema = method.objective.needs_ema
        self.ema_field = self._ema_field(teachers.memory) if needs_ema else None
        self.step, self.seconds, size, self.meter = 0, 0.0, 0, Meter()
        if (saved := self._saved()) is not None:
            self._load(saved)
            if self.group.is_main:
                self.meter.load_state_dict(saved["meter"])
            self.replay.load_state_dict(saved["replay"], self.group)
            self.balance.load_state_dict(saved["balance"])
            self.ledger.load_state_dict(saved["ledger"])
            self.step, self.seconds, size = saved["step"], saved["seconds"], saved["metrics_size"]
            _LOG.info("resuming at update %d", self.step)
        file = work / "metrics.jsonl"
        self.metrics = MetricsFile(file, size) if self.group.is_main else None

    def _saved(self) -> dict[str, Any] | None:
        """Return the last checkpoint, on every process; main may put a damaged one aside."""
        path = self.work / "checkpoint.safetensors"
        saved = load_checkpoint(path) if self.group.is_main else None
        is_there = self.group.told(saved is not None)
        return load_checkpoint(path) if is_there and saved is None else saved

    def _spread(self, backbone: nn.Module) -> None:
        if is_sharded(backbone, self.config, self.group):
            self.sharded = True
            shard(backbone, self.device, self.group)

    def _filler(self) -> tuple[Tensor, Tensor, Condition]:
        """Return one state that a process may ask at which has nothing to ask."""
        cached = next(iter(self.rows.caches.values())).groups[0]
        condition = cached.condition(torch.zeros(1, dtype=torch.long)).to(self.device)
        z = torch.zeros(1, *self.families[cached.size].latent_shape, device=self.device)
        return z, torch.ones(1, device=self.device), condition

    def _load(self, saved: dict[str, Any]) -> None:
        """Take student, optimiser and average from a checkpoint of any number of processes."""
        if "shards" in saved:
            place = self.work / saved["shards"]
            load_shards(place, self.backbone, self.optimizer, self.ema, saved["optimizer"])
            self.ema.num_updates = saved["ema"]
        elif self.sharded:
            load_whole(saved, self.backbone, self.optimizer, self.ema)
        else:
            self.backbone.load_state_dict(saved["student"], strict=False)
            self.optimizer.load_state_dict(saved["optimizer"])
            self.ema.load_state_dict(saved["ema"])

    def _ema_field(self, memory: Memory) -> CountingField:
        if self.sharded:  # what is sharded cannot be copied; the average comes before it is asked
            self.ema_backbone = self.family.new_backbone(0)
            self._spread(self.ema_backbone)
            return self.ledger.count("average", self.family.field(self.ema_backbone))
        copied = copy.deepcopy(self.backbone).eval().requires_grad_(False)
        self.ema_backbone = memory.compiled(copied)  # a copy of compiled blocks is not
        return self.ledger.count("average", self.family.field(self.ema_backbone))

    def train(self) -> None:
        """Run the updates that are left; a method that does not train has none."""
        num_updates = self.config.num_updates
        began, done_before = time.monotonic(), self.step
        updating, waited = 0.0, self.rows.waited
        bar = tqdm(total=num_updates, initial=self.step, desc="distill", unit="update")
        if self.step == 0:
            self._observe(force=True)
        while not self._is_finished():
            position = self._position()
            factor = schedule(position, num_updates, self.config.warmup, self.config.schedule)
            set_learning_rate(self.optimizer, factor)
            update_began = time.monotonic()
            norm = self._update(position / num_updates)
            updating += time.monotonic() - update_began
            self.ledger.close_update()
            self.step += 1
            last = self._is_finished()
            bar.update(int(self._position()) - bar.n)
            if self.step % self.config.log_every == 0 or last:
                elapsed = time.monotonic() - began
                speed = (self.step - done_before) * self.config.batch_size / elapsed
                common = {
                    "grad_norm": norm,
                    "learning_rate": self.config.learning_rate * factor,
                    "images_per_second": speed,
                    "row_wait_share": (self.rows.waited - waited) / updating,
                    "field_evaluations": self.ledger.total,
                    "seconds": self.seconds + elapsed,
                    "num_processes": self.group.size,
                }
                updating, waited = 0.0, self.rows.waited
                self.meter.collect(self.group)
                if self.metrics is not None:
                    loss = log_losses(self.meter, self.metrics, self.tracker, self.step, common)
                    require_finite(loss, "loss", self.step)
                    bar.set_postfix(loss=f"{loss:.4f}", images_per_s=f"{speed:.0f}")
            self._observe(force=last)
            if self.step % self.config.checkpoint_every == 0 or last:
                self._checkpoint(self.seconds + time.monotonic() - began)
        bar.close()
        self.ema.copy_to(self.backbone)
        if self.sharded:
            self.backbone = whole_network(self.backbone, self.family, self.group)

    def _is_finished(self) -> bool:
        """Return whether all updates are made, or the budget allows no further one."""
        if not self.method.trains or self.step >= self.config.num_updates:
            return True
        return self.ledger.exhausted

    def _position(self) -> float:
        """Return how far the training is on a scale of ``num_updates``.

        With a budget of field evaluations the share that is spent counts where it is larger than
        the share of updates made: schedule and curriculum end where the training ends, without
        a forecast of what an update costs.
        """
        spent = min(1.0, self.ledger.share) * self.config.num_updates
        return max(self.step, spent)

    def _update(self, progress: float) -> float:
        """Make one update and return the gradient norm before clipping."""
        drawn = self.rows.take(self.step)
        groups = by_size(item.size for item in drawn)
        parts = self.replay.exchange(
            [
                part
                for size, places in groups.items()
                for part in self._collect(size, [drawn[place] for place in places], progress)
            ]
        )
        if isinstance(self.student, Together):
            self.student.finish()
        if self.ema_field is not None:
            self.ema.copy_to(self.ema_backbone)
        self.optimizer.zero_grad(set_to_none=True)
        for part in parts:
            name, weight = part.capability, part.share * self.balance.weight(part.capability)
            teachers = self.answers.at(progress, part.queries.z.shape[1:], self.teachers)
            for chunk, piece in part.queries.split(MAX_ROWS):
                target = self.method.target_velocity(chunk, teachers, name)
                velocity = self.trained_field(chunk.z, chunk.sigma, chunk.condition)
                require_finite_velocities(
                    chunk, target, velocity, name, self._target_of(name), self.step
                )
                if self.step == 0 and name in self.must_differ:
                    require_different(velocity, target, name)
                loss, rows = self.method.objective(velocity, target, chunk, self.ema_field)
                (loss * weight * piece).backward()
                self.meter.add(name, chunk.sigma, rows)
                self.balance.add(name, rows)
        if isinstance(self.student, Together):
            self.student.finish(self._train_on_nothing)
        sums = self._sum_over_processes()
        norm = float(whole(nn.utils.clip_grad_norm_(self.trainable, self.config.clip_norm)))
        require_finite(norm, "gradient norm", self.step)
        if any(part.capability in self.must_differ for part in parts):
            require_gradient(norm, self.step)
        self.optimizer.step()
        self.ema.update(self.backbone)
        self.balance.close_update(sums)
        return norm

    def _train_on_nothing(self) -> None:
        """Make the passes of one chunk of states, with a loss of zero."""
        assert isinstance(self.student, Together)
        loss = self.student.nothing()
        if self.ema_field is not None:
            with torch.no_grad():
                self.ema_field.field(*self.student.filler)
        loss.backward()

    def _sum_over_processes(self) -> dict[str, tuple[float, float]]:
        """Sum gradients and costs of the update, and return the sums for the loss balance."""
        sums = self.balance.sums()
        if self.group.size == 1:
            return sums
        names, costs = self.balance.capabilities, self.ledger.of_update()
        losses = [value for name in names for value in sums.get(name, (0.0, 0.0))]
        numbers = torch.tensor([*costs, *losses], dtype=torch.float32, device=self.device)
        if self.sharded:  # gradients were summed as they came
            self.group.add(numbers)
        else:
            numbers = sum_gradients(self.trainable, numbers, self.group)
        found = numbers.tolist()
        self.ledger.add_others([round(a) - b for a, b in zip(found, costs, strict=False)])
        pairs = zip(found[len(costs) :: 2], found[len(costs) + 1 :: 2], strict=True)
        return {name: pair for name, pair in zip(names, pairs, strict=True) if pair[1]}

    def _target_of(self, name: str) -> str:
        """Return who says what a capability's rows are to become, for messages."""
        if self.method.target == "data":
            return "the data"
        if self.method.routing == "soft":
            return "the average of all teachers"
        return f"teacher {self.params.capabilities[name].teacher!r}"

    def _collect(self, size: Size, drawn: Sequence[Drawn], progress: float) -> list[Visits]:
        """Return the states of rows of one size, capability by capability."""
        whole = [
            seed_for(self.config.seed, f"sample/{item.capability}", self.step, index)
            for item in drawn
            for index in range(item.num_samples)
        ]
        runs = [item.num_samples for item in drawn]
        starts = accumulate(runs, initial=0)
        places = [
            start + i for item, start in zip(drawn, starts, strict=False) for i in item.samples
        ]
        if not places:
            return []
        # Rows in pinned memory are copied while the processor goes on.
        conditions = [
            item.condition.to(self.device, non_blocking=True)
            for item in drawn
            if item.condition is not None
        ]
        clean = [
            item.clean.to(self.device, non_blocking=True)
            for item in drawn
            if item.clean is not None
        ]
        noised = torch.tensor([is_one for item in drawn for is_one in item.noised])
        # States that wait for later updates are asked about whole steps then.
        waits = self.method.updates_per_rollout > 1
        stepped = self.answers.stepped(1.0 if waits else progress)
        at_steps = torch.tensor([item.capability in stepped for item in drawn for _ in item.noised])
        queries = self.method.collect(
            StateRequest(
                student=self.rollout_field,
                condition=Condition.cat(conditions),
                grid=self.grids[size],
                shape=self.families[size].latent_shape,
                seeds=[whole[place] for place in places],
                clean=lambda _kind: torch.cat(clean),
                progress=progress,
                runs=runs,
                whole=(whole, places),
                noised=Noised(noised, self.levels[size], at_steps) if noised.any() else None,
            )
        )
        parts = queries.parts([len(item.samples) for item in drawn])
        return [
            Visits(item.capability, item.share * (len(item.samples) / item.num_samples), part)
            for item, part in zip(drawn, parts, strict=True)
            if item.samples
        ]

    def _observe(self, *, force: bool) -> None:
        """Score and draw the averaged student when it is time; the live weights are put back."""
        score = force or self.step % self.config.evaluate_every == 0
        draw = force or self.step % self.config.grid_every == 0
        if not (score or draw):
            return
        live = {
            name: param.detach().clone()
            for name, param in self.backbone.named_parameters()
            if param.requires_grad
        }
        self.ema.copy_to(self.backbone)
        # A pass of one is a pass of all there: all do the same.
        with each_for_itself() if self.sharded else nullcontext():
            scores = self.observer.observe(self.student, self.step, score=score, draw=draw)
        if scores and self.metrics is not None:
            self.metrics.append(
                {
                    "step": self.step,
                    "num_steps": self.params.evaluate.num_steps,
                    "scores": scores,
                }
            )
        with torch.no_grad():
            for name, param in self.backbone.named_parameters():
                if name in live:
                    param.copy_(live[name])

    def _checkpoint(self, seconds: float) -> None:
        """Write what all processes hold; it does not tell how many they were."""
        self.meter.collect(self.group)
        waiting = self.replay.state_dict(self.group)
        shards = self._save_shards() if self.sharded else None
        if self.metrics is None:
            return
        save_checkpoint(
            self.work / "checkpoint.safetensors",
            {
                "step": self.step,
                "seconds": seconds,
                "metrics_size": self.metrics.size,
                **(self._weights() if shards is None else shards),
                "meter": self.meter.state_dict(),
                "replay": waiting,
                "balance": self.balance.state_dict(),
                "ledger": self.ledger.state_dict(),
            },
        )
        if shards is not None:
            remove_other_shards(self.work, shards["shards"])

    def _weights(self) -> dict[str, Any]:
        student = self.backbone.state_dict().items()
        return {
            "student": {name: value for name, value in student if name in self.ema.values},
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
        }

    def _save_shards(self) -> dict[str, Any]:
        """Write what lies in shards beside the checkpoint, and return what it says of them."""
        return {
            "shards": save_shards(self.work, self.step, self.backbone, self.optimizer, self.ema),
            "optimizer": self.optimizer.state_dict()["param_groups"],
            "ema": self.ema.num_updates,
        }

    def package(self, folder: Path, meta: dict[str, Any]) -> None:
        """Write the averaged student to ``folder``: its network, or its adapter and its base."""
        meta = json.loads(json.dumps(meta))
        if self.config.shift is not None:
            meta["shift"] = self.config.shift
        # Frozen parts are the teachers', which others may share; what differs, the manifest tells.
        family = self.loaded.family.sized(*self.sizes[0])
        if self.config.student == "full":
            save_package(folder, family, self.backbone, meta)
            return
        shares = asked(self.params).start
        meta |= {"dtype": self.params.run.dtype}
        save_adapter_package(folder, family, self.backbone, self.loaded, shares, meta)
