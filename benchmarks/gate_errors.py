"""How often the gate errs: simulated candidates at a limit, below and above it.

    python benchmarks/gate_errors.py [--candidates 1000] [--out docs/results/gate_errors.json]

A candidate is drawn from the committed evaluation (``reports/evaluate``): prompts with replacement
within their category, with the real answers of student and teacher to every noise seed, as many as
the default asks. Its true score is moved to where the simulation wants it. It is lowered by losing
answers: with some probability an answer falls behind by as much as the student really fell behind
on some prompt, and by a multiple of that where it would not do. It is raised by answering as the
teacher did. So true score and shape are known, and what the gate says of 1,000 such candidates is
counted. For the loss against a champion the committed student is the champion, and its teacher,
moved, the candidate.
"""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from danceflow.evaluate.records import STANDARD, STUDENT, Evaluation, read_evaluation
from danceflow.params.read import load_params
from danceflow.params.sections import GateParams
from danceflow.paths import Paths
from danceflow.report.bootstrap import Array
from danceflow.report.evidence import Evidence, Row, Scored
from danceflow.report.gate import Rival, verdict

ROOT = Path(__file__).resolve().parents[1]
LEVELS = {
    "3 % below the limit": 0.97,
    "at the limit": 1.0,
    "6 % above the limit": 1.06,
}
Move = Callable[[Array, Array, np.random.Generator], Array]
_IDENTITY: Mapping[str, Any] = {"simulated": True}


@dataclass(frozen=True)
class Population:
    """The prompts of one capability; a candidate is a sample of them.

    Attributes:
        name: of the capability.
        scale: the best possible score.
        categories: of each, [prompts, seeds, 2] scores of who is judged and of the other.
    """

    name: str
    scale: float
    categories: Mapping[str, Array]

    def mean(self, field: int) -> float:
        """Return a field's true score."""
        return float(np.mean([scores[..., field].mean() for scores in self.categories.values()]))

    def swapped(self) -> "Population":
        """Return the same with the other as who is judged."""
        categories = {name: scores[..., ::-1] for name, scores in self.categories.items()}
        return Population(self.name, self.scale, categories)

    def draw(self, share: float | None, generator: np.random.Generator) -> list[Row]:
        """Return a sample, as rows of a ``Scored``.

        Args:
            share: of the other's true score that the true score shall be; None: as it is.
            generator: decides the sample.
        """
        rows: list[Row] = []
        move, chance = self._move(share)
        for name, scores in self.categories.items():
            chosen = scores[generator.integers(len(scores), size=len(scores))]
            judged, other = chosen[..., 0], chosen[..., 1]
            moved = move(judged, other, generator)
            judged = np.where(generator.random(judged.shape) < chance, moved, judged)
            judged, other = judged.mean(axis=1), other.mean(axis=1)  # as the gate does by itself
            rows += [
                (name, f"{name}-{prompt}", 0, float(judged[prompt]), float(other[prompt]))
                for prompt in range(len(judged))
            ]
        return rows

    def _move(self, share: float | None) -> tuple[Move, float]:
        """Return how an answer is moved, and with which probability, to reach a true share."""
        gap = 0.0 if share is None else share * self.mean(1) - self.mean(0)
        if gap >= 0:
            better = np.mean(
                [np.maximum(s[..., 1] - s[..., 0], 0).mean() for s in self.categories.values()]
            )
            chance = gap / better if better else 0.0
            if chance > 1:
                raise ValueError(f"{self.name}: no such candidate can be made of these answers")
            return (lambda judged, other, _: np.maximum(judged, other)), chance
        behind = np.concatenate([(s[..., 1] - s[..., 0]).ravel() for s in self.categories.values()])
        behind = behind[behind > 0]

        def loss(factor: float) -> float:
            """Return by how much the true score falls if every answer falls behind."""
            return float(
                np.mean(
                    [
                        np.minimum(s[..., 0].ravel()[:, None], factor * behind[None, :]).mean()
                        for s in self.categories.values()
                    ]
                )
            )

        factor = 1.0
        if loss(factor) < -gap:  # every answer has to fall behind, and by more than they really do
            low, high = 1.0, float(self.scale / behind.min())
            for _ in range(40):
                factor = (low + high) / 2
                low, high = (factor, high) if loss(factor) < -gap else (low, factor)

        def lose(judged: Array, _: Array, generator: np.random.Generator) -> Array:
            fallen = judged - factor * generator.choice(behind, judged.shape)
            return np.asarray(np.maximum(fallen, 0))

        return lose, -gap / loss(factor)


def populations(paths: Paths, names: list[str]) -> list[Population]:
    """Return the committed evaluation's prompts."""
    return [_population(read_evaluation(paths.evaluation(name), name)) for name in names]


def _population(evaluation: Evaluation) -> Population:
    tables = [
        {
            (row.category, row.uid, row.seed): row.score
            for row in evaluation.fields[name].rows
            if row.variant == STANDARD
        }
        for name in (STUDENT, evaluation.teacher)
    ]
    categories: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for key in tables[0]:
        prompts = categories.setdefault(key[0], {})
        prompts.setdefault(key[1], []).append((tables[0][key], tables[1][key]))
    arrays = {name: np.array(list(prompts.values())) for name, prompts in categories.items()}
    return Population(evaluation.capability, evaluation.scale, arrays)


def scored(population: Population, rows: list[Row]) -> Scored:
    """Return rows as evidence; they need no checks, which would take most of the time."""
    return Scored.model_construct(
        identity=_IDENTITY, scale=population.scale, teacher="teacher", rows=tuple(rows)
    )


def retention(
    population: Population, policy: GateParams, share: float | None, count: int, seed: int
) -> Counter[str]:
    """Return how often each decision on retention is taken."""
    generator = np.random.default_rng(seed)
    found: Counter[str] = Counter()
    for _ in range(count):
        item = scored(population, population.draw(share, generator))
        answer = verdict(
            Evidence.model_construct(capabilities={population.name: item}),
            None,
            _only(policy, population),
        )
        found[answer.decision] += 1
    return found


def regression(
    population: Population, policy: GateParams, share: float | None, count: int, seed: int
) -> Counter[str]:
    """Return how often each decision on the loss against the champion is taken."""
    generator = np.random.default_rng(seed)
    swapped = population.swapped()  # the teacher's answers, moved, against the student's
    found: Counter[str] = Counter()
    for _ in range(count):
        rows = swapped.draw(share, generator)
        ours = scored(population, rows)
        theirs = scored(
            population, [(c, uid, at, other or 0.0, None) for c, uid, at, _, other in rows]
        )
        rival = Rival("champion", Evidence.model_construct(capabilities={population.name: theirs}))
        answer = verdict(
            Evidence.model_construct(capabilities={population.name: ours}),
            rival,
            _only(policy, population),
        )
        found[answer.checks[-1].decision] += 1
    return found


def whole(rates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return each verdict's share from those of single conditions, which are drawn apart."""
    passed = math.prod(rate["pass"] for rate in rates)
    fails = 1.0 - math.prod(1.0 - rate["fail"] for rate in rates)
    found = {"pass": passed, "unknown": 1.0 - passed - fails, "fail": fails}
    return {name: round(share, 4) for name, share in found.items()}


def _only(policy: GateParams, population: Population) -> GateParams:
    limit = policy.min_retention[population.name]
    return policy.model_copy(update={"min_retention": {population.name: limit}, "min_score": {}})


def shares_of(found: Counter[str], count: int) -> dict[str, float]:
    """Return each decision's share."""
    return {name: round(found[name] / count, 4) for name in ("pass", "unknown", "fail")}


def table(result: Mapping[str, Any]) -> str:
    """Return the result as a Markdown table."""
    lines = [
        "| condition | capability | truly | pass | unknown | fail |",
        "|---|---|---|---|---|---|",
    ]
    for kind in ("retention", "regression"):
        for capability, rates in result[kind].items():
            for level, shares in rates.items():
                figures = " | ".join(f"{share:.1%}" for share in shares.values())
                lines.append(f"| {kind} | {capability} | {level} | {figures} |")
    for level, shares in result["whole"].items():
        figures = " | ".join(f"{share:.1%}" for share in shares.values())
        lines.append(f"| all | all | {level} | {figures} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Simulate, write the JSON file and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "gate_errors.json")
    arguments = parser.parse_args()
    paths, count = Paths(arguments.root), arguments.candidates
    params = load_params(paths.params)
    policy = params.gate
    found = populations(paths, list(params.capabilities))
    result: dict[str, Any] = {
        "candidates": count,
        "confidence": policy.confidence,
        "prompts": {p.name: sum(map(len, p.categories.values())) for p in found},
        "seeds": {p.name: next(iter(p.categories.values())).shape[1] for p in found},
        "retention": {},
        "regression": {},
        "whole": {},
    }
    tasks = []
    for number, population in enumerate(found):
        limits = {
            "retention": policy.min_retention[population.name],
            "regression": 1.0 - policy.max_regression,
        }
        for kind, simulate in (("retention", retention), ("regression", regression)):
            levels: dict[str, float | None] = {
                name: limits[kind] * level for name, level in LEVELS.items()
            }
            levels |= {"as good": 1.0} if kind == "regression" else {"as it is": None}
            tasks += [
                (kind, level, simulate, population, share, 100 * number + at)
                for at, (level, share) in enumerate(levels.items())
            ]
    with ProcessPoolExecutor(arguments.processes) as pool:
        jobs = [
            (kind, level, place.name, pool.submit(simulate, place, policy, share, count, seed))
            for kind, level, simulate, place, share, seed in tasks
        ]
        for kind, level, name, job in tqdm(jobs, desc="simulated"):
            result[kind].setdefault(name, {})[level] = shares_of(job.result(), count)
    kept = result["retention"]
    for name in ("3 % below the limit", "at the limit", "as it is"):
        result["whole"][f"every capability {name}"] = whole(
            [rates[name] for rates in kept.values()]
        )
    first = found[0].name
    others = [rates["as it is"] for name, rates in kept.items() if name != first]
    result["whole"][f"{first} at the limit, the others as they are"] = whole(
        [kept[first]["at the limit"], *others]
    )
    beside = [rates["as good"] for rates in result["regression"].values()]
    result["whole"]["as good as the champion, no loss anywhere"] = whole(beside)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(table(result))


if __name__ == "__main__":
    main()
