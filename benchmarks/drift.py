"""How often the drift alarm is right: false alarms over nights of changing folder mixes, and moves of a folder that it finds.

    python benchmarks/drift.py

Nights are counts drawn from simulated shares, which differ from folder to folder as those of portraits and crowds do; they go
through the function that the job calls, with the job's own threshold. "Events" are nights whose shares differ by themselves, as a
wedding's from a funeral's; there a rule that knows only sampling would ring all the time.
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np

from fer_ray.config.jobs.label import LabelConfig
from fer_ray.emotions import EMOTIONS
from fer_ray.label.report.aggregates import FolderNight, add_up
from fer_ray.label.report.nightly import Change, compare_folders
from fer_ray.typing import Float64Array

FOLDERS = 8
EARLIER = 20  # nights before the one that is judged
NIGHTS = 200
MOVE = 0.10  # of the faces get another emotion
Night = dict[str, FolderNight]


def draw_night(
    generator: np.random.Generator, shares: Float64Array, faces: int, events: float = 0.0, sizes: Float64Array | None = None
) -> Night:
    """One night with a mix of folders of its own, or with `sizes` faces in each folder."""
    drawn = generator.multinomial(faces, generator.dirichlet(np.ones(FOLDERS)))
    night = {}
    for number, (own, size) in enumerate(zip(shares, drawn if sizes is None else sizes, strict=True)):
        tonight = generator.dirichlet(own / events) if events else own
        counts = generator.multinomial(int(size), tonight).tolist()
        night[f"{number}/"] = FolderNight(Counter(dict(zip(EMOTIONS, counts, strict=True))), int(size))
    return night


def judge(night: Night, earlier: list[Night]) -> Change:
    """As the job does."""
    history = {name: [one[name] for one in earlier if one[name].images] for name in night}
    return compare_folders(night, history, add_up(one.emotions for before in earlier for one in before.values()))


def moved(shares: Float64Array, source: int, target: int) -> Float64Array:
    """The first folder's shares with MOVE of them gone from one emotion to another."""
    changed = shares.copy()
    changed[0, source] -= MOVE
    changed[0, target] += MOVE
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    generator = np.random.default_rng(parser.parse_args().seed)
    limit = LabelConfig(output="out").max_drift
    shares = generator.dirichlet(np.full(len(EMOTIONS), 1.5), FOLDERS)
    print(f"max_drift {limit:g}, {FOLDERS} folders, {EARLIER} earlier nights")
    for name, events in (("", 0.0), (" with events", 0.02)):
        for faces in (300, 1000, 10_000):
            alarms = [
                (judge(draw_night(generator, shares, faces, events), earlier).drift_psi or 0) > limit
                for earlier in ([draw_night(generator, shares, faces, events) for _ in range(EARLIER)] for _ in range(NIGHTS))
            ]
            print(f"false alarms, nights of {faces:,} faces{name}: {sum(alarms)} of {NIGHTS}")
    for others in (0, 3500):
        found = []
        for _ in range(NIGHTS):
            earlier = [draw_night(generator, shares, 5000) for _ in range(EARLIER)]
            source = int(generator.choice(np.flatnonzero(shares[0] > MOVE)))
            target = int(generator.choice([place for place in range(len(EMOTIONS)) if place != source]))
            sizes = np.array([1000, *[others / (FOLDERS - 1)] * (FOLDERS - 1)])
            found.append((judge(draw_night(generator, moved(shares, source, target), 0, sizes=sizes), earlier).drift_psi or 0) > limit)
        print(f"found, a folder's shares moved by 10 points at 1,000 faces, {others:,} others: {sum(found) / NIGHTS:.1%}")


if __name__ == "__main__":
    main()
