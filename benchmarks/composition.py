"""Whether a student does two things at once that no teacher was ever asked to do together.

    python benchmarks/composition.py CHECKOUT --student FOLDER [FOLDER ...]

CHECKOUT holds the teachers of the embedded default. Each FOLDER is a student of them, as the stage
`distill` packs it. Two kinds of requests are made of test scenes: a local and a global edit in one
instruction ("make the red circle green and make it look like night"), and a new picture together
with a style. The students, every teacher alone, and the average of the teachers' weights get the
joined request. Students and teachers also get its two halves one after the other. Writes
docs/results/composition.json.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from finished_checkout import prepared
from torch import Tensor

from danceflow.capability import asked
from danceflow.fields import VelocityField, seed_for
from danceflow.models.memory import memory_of
from danceflow.models.package import Package, load_package
from danceflow.models.start import start_backbone
from danceflow.models.teachers import Teachers
from danceflow.ops.files import write_json
from danceflow.ops.runtime import set_logging_up
from danceflow.pictures import to_picture, to_pixels
from danceflow.registry.student import Student
from danceflow.scenes.parse import parse
from danceflow.scenes.prompts import CATEGORIES, Sample, draw_sample
from danceflow.scenes.render import render
from danceflow.scenes.score import edited_cell, found_objects, satisfies, score_edits
from danceflow.scenes.world import BACKGROUND_NAMES, STYLES, Scene

GLOBAL = ("background_change", "grayscale", "inverted", "sunset", "night")
KINDS = {"local_edit": CATEGORIES["local_edit"], "t2i": CATEGORIES["t2i"]}
MAX_WORDS = 12  # that the embedded default's text encoder reads
NUM_PAIRS = 8  # requests of each pair of categories
NUM_DRAWS = 200  # some pairs of categories have no words short enough
NUM_STEPS = 16  # of whoever is no student
LOG = logging.getLogger(__name__)
OUT = Path(__file__).parents[1] / "docs" / "results" / "composition.json"


@dataclass(frozen=True)
class Both:
    """A request of two parts, and the scene that it leads to."""

    first: Sample
    second: Sample
    target: Scene

    @property
    def prompt(self) -> str:
        """The joined request."""
        return f"{self.first.prompt} and {self.second.prompt}"


def join(first: Sample, second: Sample) -> Both:
    """Return a request and the global edit of what it leads to."""
    asks = second.request
    if asks.operation == "style":
        target = replace(first.target, style=second.target.style)
    else:
        target = replace(first.target, background=second.target.background)
    return Both(first, second, target)


def draw(kind: str) -> list[Both]:
    """Return requests: every category of a kind with every global one, in words that are read."""
    found = []
    for category in KINDS[kind]:
        for other in GLOBAL if kind == "local_edit" else GLOBAL[1:]:
            rng = Random(seed_for(0, f"composition/{category}/{other}", 0, 0))
            drawn = (
                join(draw_sample(rng, category, "test"), draw_sample(rng, other, "test"))
                for _ in range(NUM_DRAWS)
            )
            these = [
                both
                for both in drawn
                if both.first.target != both.target and len(both.prompt.split()) <= MAX_WORDS
            ][:NUM_PAIRS]
            if not these:
                LOG.info("%s and %s have no joined words that are read whole", category, other)
            found += these
    return found


def score(kind: str, images: Tensor, asks: Sequence[Both]) -> dict[str, float]:
    """Return the share of pictures in which each half, and both, were done, and what was kept.

    ``kept`` is the preservation of the local edit's score, against the exact scene that both lead
    to: its error over the cells that the local edit leaves alone, from 10 to 0.
    """
    free = parse(images)
    halves: dict[str, list[float]] = {"first": [], "second": [], "both": []}
    kept = []
    for row, both in enumerate(asks):
        image, target = images[row : row + 1], both.target
        reading = parse(image, style=target.style)
        if both.first.source is None:
            first = satisfies(found_objects(reading, 0), both.first.request)
        else:
            cell = edited_cell(both.first.source, both.first.target)
            there = [o for o in found_objects(reading, 0) if o.cell == cell]
            first = there == [o for o in target.objects if o.cell == cell]
            source = replace(both.first.source, style=target.style, background=target.background)
            asked_for = replace(both.first, source=source, target=target)
            kept.append(score_edits(image, [asked_for])[0].pq)
        if both.second.request.operation == "style":
            second = STYLES[int(free.style[row])] == target.style
        else:
            second = BACKGROUND_NAMES[int(reading.background[0])] == target.background
        for name, done in (("first", first), ("second", second), ("both", first and second)):
            halves[name].append(float(done))
    means = {name: sum(values) / len(values) for name, values in halves.items()}
    return means | ({"kept": sum(kept) / len(kept)} if kind == "local_edit" else {})


def answers(
    first: Student, second: Student | None, asks: Sequence[Both], num_steps: int | None
) -> Tensor:
    """Return the pictures of a model for joined requests, or of two for their halves in turn.

    Args:
        first: asked for the whole, or for the first half.
        second: asked for the second half; None: the first was asked for the whole.
        asks: the requests.
        num_steps: of an answer; None: as many as a student was made for.
    """
    scenes = [both.first.source for both in asks]
    sources = [None if scene is None else to_picture(render([scene])[0]) for scene in scenes]
    if second is None:
        images = first.run([both.prompt for both in asks], sources, 0, num_steps)
    else:
        half = first.run([both.first.prompt for both in asks], sources, 0, num_steps)
        images = second.edit(half, [both.second.prompt for both in asks], 0, num_steps)
    return torch.stack([to_pixels(image) for image in images])


def main() -> None:
    """Ask, score and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--student", type=Path, nargs="+", required=True)
    arguments = parser.parse_args()
    set_logging_up()
    params, paths = prepared(arguments.checkout)
    torch.set_num_threads(1)
    who = asked(params)
    memory = memory_of(params.run)
    teachers = Teachers(paths.teachers, params.family.name, who.teachers, memory)

    def model(field: VelocityField) -> Student:
        return Student(Package(teachers.family, field, torch.device("cpu"), {}), together=64)

    own = {
        name: model(teachers.field(item.teacher, item.guidance))
        for name, item in params.capabilities.items()
    }
    shares = {item.teacher: 1.0 for item in params.capabilities.values()}
    average = model(teachers.family.field(start_backbone(teachers, shares).eval()))
    students = {
        f"student {number}": Student(load_package(folder, "cpu"), together=64)
        for number, folder in enumerate(arguments.student)
    }
    found: dict[str, dict[str, Mapping[str, float]]] = {}
    for kind in KINDS:
        asks = draw(kind)
        mine: dict[str, tuple[Student, Student | None]] = {
            **{f"{name}, at once": (student, None) for name, student in students.items()},
            **{f"{name}, in turn": (student, student) for name, student in students.items()},
        }
        arms = {
            **mine,
            "teachers, in turn": (own[kind], own["global_edit"]),
            **{f"teacher of {name}, at once": (one, None) for name, one in own.items()},
            "average of the weights, at once": (average, None),
        }
        for arm, (first, second) in arms.items():
            with torch.no_grad():
                num_steps = None if arm in mine else NUM_STEPS
                scores = score(kind, answers(first, second, asks, num_steps), asks)
            found.setdefault(kind, {})[arm] = {
                key: round(value, 3) for key, value in scores.items()
            }
            LOG.info("%s, %s: %s", kind, arm, found[kind][arm])
        write_json(
            OUT,
            {"requests_of_a_pair": NUM_PAIRS, "num_steps_of_teachers": NUM_STEPS, "found": found},
        )


if __name__ == "__main__":
    main()
