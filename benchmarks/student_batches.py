"""What a batch of the student costs by its size, and whether its company changes a picture.

    python benchmarks/student_batches.py [--from models/student] [--threads 1]

Prints, for batches of 1, 2, 4, 8 and 16 rows: milliseconds of one step of one picture alone in its
batch, and in a full one, and how many of 32 pictures differ in any bit when other rows stand beside
them.
"""

import argparse
import random
import sys
import time
from pathlib import Path

import torch

from danceflow.models.package import load_package
from danceflow.registry.student import Row, Student

WIDTHS = (1, 2, 4, 8, 16)
NUM_ROWS, NUM_STEPS, NUM_REPEATS = 32, 8, 3


def seconds(student: Student, calls: list[list[Row]]) -> float:
    """Return the least of some times of the calls."""
    found = []
    for _ in range(NUM_REPEATS):
        began = time.perf_counter()
        for rows in calls:
            student.make(rows, NUM_STEPS)
        found.append(time.perf_counter() - began)
    return min(found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="source", type=Path, default=Path("models/student"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    package = load_package(arguments.source)
    size = package.image_sizes[0]
    rows = [Row(f"a red circle {place}", None, place, 0, size) for place in range(NUM_ROWS)]
    sys.stdout.write("rows  ms alone  ms in full  other bits\n")
    rng = random.Random(0)
    for width in WIDTHS:
        student = Student(package, width)
        alone = [student.tensors([row], NUM_STEPS)[0] for row in rows]
        shuffled = rng.sample(range(NUM_ROWS), NUM_ROWS)
        together = student.tensors([rows[place] for place in shuffled], NUM_STEPS)
        other = sum(
            not torch.equal(alone[place], found)
            for place, found in zip(shuffled, together, strict=True)
        )
        count = NUM_ROWS * NUM_STEPS
        one = 1e3 * seconds(student, [[row] for row in rows]) / count
        full = 1e3 * seconds(student, [rows]) / count
        sys.stdout.write(f"{width:4}  {one:8.2f}  {full:10.2f}  {other:10}\n")


if __name__ == "__main__":
    main()
