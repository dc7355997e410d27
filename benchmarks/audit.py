"""Whether the truth lies inside of what `fer-ray audit` says: FER+ faces of other mixtures of emotions, a sample of 300 answered by FER+.

PYTHONPATH=. python benchmarks/audit.py --dataset DIR --ferplus CSV [--model ferplus] [--resamplings 200]
"""

import argparse
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from fer_ray.audit.estimates import LEVEL, Stratum, estimate
from fer_ray.audit.sample import draw
from fer_ray.config.dataset import DatasetConfig
from fer_ray.data.dataset import load_dataset
from fer_ray.emotions import EMOTIONS
from fer_ray.models import bundle
from fer_ray.models.calibration import fit_to_archive
from fer_ray.typing import Float64Array, Int64Array

FACES = 3000  # of an archive
SAMPLE = 300


def main(dataset: str, ferplus: str, model: str, resamplings: int) -> None:
    loaded = bundle.load(bundle.resolve(model))
    data = load_dataset(DatasetConfig(dataset, ferplus=(ferplus,)), loaded.image_size, loaded.color, splits=("validation",))
    told = loaded.probabilities(data.validation.images)
    probabilities = np.zeros((len(told), len(EMOTIONS)))
    probabilities[:, [EMOTIONS.index(name) for name in loaded.classes]] = told
    truth = np.array([EMOTIONS.index(name) for name in data.classes])[data.validation.labels]
    rows = [resample(probabilities, truth, seed) for seed in range(resamplings)]
    inside, widths, errors, nll = (np.array(column) for column in zip(*rows, strict=True))
    print(f"{len(truth):,} faces, {resamplings} archives of {FACES:,} with other mixtures, {SAMPLE} answers each")
    print(f"truth inside the {LEVEL:.0%} interval: {inside[:, :-1].mean():.1%} of shares, {inside[:, -1].mean():.1%} of accuracies")
    for name, share in zip(EMOTIONS, inside.mean(axis=0), strict=False):
        print(f"  {name:9} {share:.1%}")
    print(f"mean width of an interval {widths.mean():.1%}")
    print("mean error of a share: counted {:.2%}, probabilities {:.2%}, corrected {:.2%}".format(*errors.mean(axis=0)))
    print("NLL of the faces that were not asked about: {:.3f}, with the calibration for the archive {:.3f}".format(*nll.mean(axis=0)))


def resample(probabilities: Float64Array, truth: Int64Array, seed: int) -> tuple[list[bool], list[float], list[float], list[float]]:
    """One archive: whether each truth is inside, how wide the intervals are, the errors of shares, and the NLL before and after."""
    generator = np.random.default_rng(seed)
    weights = generator.dirichlet(np.full(len(EMOTIONS), 1.5))[truth] / np.bincount(truth, minlength=len(EMOTIONS))[truth]
    chosen = generator.choice(len(truth), FACES, p=weights / weights.sum())
    told, true = probabilities[chosen], truth[chosen]
    numbers = np.arange(FACES)
    columns: dict[str, Any] = {f"prob_{emotion}": told[:, place] for place, emotion in enumerate(EMOTIONS)}
    columns |= {"image_id": [f"{n:032d}" for n in numbers], "image_uri": [f"/{n}.jpg" for n in numbers], "confidence": told.max(axis=1)}
    with duckdb.connect() as connection:
        connection.register("columns", pa.table(columns))
        connection.execute("""
            CREATE TABLE faces_latest AS SELECT *, 0 AS face_index, now() AS labeled_at, '' AS crops_run_id, 'm' AS model_version,
                'm' AS model_name, 0 AS bbox_x, 0 AS bbox_y, 48 AS bbox_width, 48 AS bbox_height FROM columns""")
        sample, _ = draw(connection, SAMPLE, seed)
    asked = np.array([int(face.image_id) for face in sample.faces])
    of_stratum = np.array([face.stratum for face in sample.faces])
    answers = np.zeros((len(sample.strata), len(EMOTIONS)), np.int64)
    np.add.at(answers, (of_stratum, true[asked]), 1)
    strata = [Stratum(EMOTIONS.index(one.predicted), one.faces, np.array(one.mean), answers[i]) for i, one in enumerate(sample.strata)]
    found = estimate(strata, seed)
    shares = np.bincount(true, minlength=len(EMOTIONS)) / FACES
    inside = [one.low <= share <= one.high for one, share in zip(found.shares, shares, strict=True)]
    inside.append(found.accuracy.low <= (told.argmax(axis=1) == true).mean() <= found.accuracy.high)
    estimates = (np.bincount(told.argmax(axis=1), minlength=len(EMOTIONS)) / FACES, told.mean(axis=0), [one.value for one in found.shares])
    sizes = np.array([one.faces for one in strata])[of_stratum] / answers.sum(axis=1)[of_stratum]
    after = fit_to_archive(told[asked], true[asked], sizes / sizes.mean()).apply(told)
    rest = np.setdiff1d(numbers, asked)
    nll = [-float(np.log(np.maximum(p[rest, true[rest]], 1e-7)).mean()) for p in (told, after)]
    return inside, [one.high - one.low for one in found.shares], [float(np.abs(one - shares).mean()) for one in estimates], nll


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--ferplus", required=True)
    parser.add_argument("--model", default="ferplus")
    parser.add_argument("--resamplings", type=int, default=200)
    arguments = parser.parse_args()
    main(arguments.dataset, arguments.ferplus, arguments.model, arguments.resamplings)
