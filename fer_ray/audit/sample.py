"""A stratified sample of the faces of an archive, and how many faces each stratum has."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import duckdb
import numpy as np

from fer_ray.emotions import EMOTIONS
from fer_ray.errors import UsageError
from fer_ray.typing import Int64Array

FORMAT_VERSION = 1
EQUAL_SHARE = 0.5  # of the faces are divided equally among the strata, so that rare emotions are seen, the rest by their sizes
_PROBABILITIES = ", ".join(f"coalesce(prob_{emotion}, 0) AS p_{emotion}" for emotion in EMOTIONS)
_TOP = f"greatest({', '.join(f'p_{emotion}' for emotion in EMOTIONS)})"
_PREDICTED = " ".join(f"WHEN p_{emotion} = {_TOP} THEN '{emotion}'" for emotion in EMOTIONS)
_MEANS = ", ".join(f"avg(p_{emotion})" for emotion in EMOTIONS)
# Emotion and confidence make the strata; inside of them every k-th face is taken by size and then by address, which goes through
# the folders.
_STRATA = f"""
    CREATE TEMP TABLE strata AS
    WITH faces AS (
        SELECT image_id, face_index, image_uri, labeled_at, crops_run_id, bbox_x, bbox_y, bbox_width, bbox_height, confidence,
            {_PROBABILITIES}
        FROM faces_latest
    ), predicted AS (SELECT *, CASE {_PREDICTED} END AS predicted FROM faces),
    halves AS (
        SELECT *, ntile(2) OVER (PARTITION BY predicted ORDER BY confidence, image_id, face_index) AS half,
            ntile(3) OVER (PARTITION BY predicted ORDER BY bbox_width * bbox_height, image_id, face_index) AS size
        FROM predicted
    )
    SELECT *, row_number() OVER (PARTITION BY predicted, half ORDER BY size, image_uri, face_index) - 1 AS place FROM halves
"""  # noqa: S608 - constants of this module


@dataclass(frozen=True)
class SampledStratum:
    """Faces that the model calls alike, with like confidence: how many, and their mean probabilities in the order of EMOTIONS."""

    predicted: str
    half: int
    faces: int
    mean: list[float]


@dataclass(frozen=True)
class SampledFace:
    """A face that a person shall judge; `stratum` is the place of its stratum."""

    image_id: str
    face_index: int
    image_uri: str
    stratum: int
    probabilities: list[float]

    @property
    def key(self) -> str:
        return f"{self.image_id}-{self.face_index}"


@dataclass(frozen=True)
class Sample:
    """What is to be judged, and whom it stands for."""

    model_version: str
    model_name: str
    strata: list[SampledStratum]
    faces: list[SampledFace]

    @property
    def audit_id(self) -> str:
        """Names the sample, so that answers find it again."""
        keys = "".join(face.key for face in self.faces)
        return hashlib.sha256(f"{self.model_version} {len(self.strata)} {keys}".encode()).hexdigest()[:16]

    def to_json(self) -> bytes:
        return (json.dumps({"format_version": FORMAT_VERSION, "audit": self.audit_id, **asdict(self)}, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> Sample:
        """What `to_json` gave.

        Raises:
            ValueError: it is broken, or of another version.
        """
        try:
            read = json.loads(content)
            if read["format_version"] != FORMAT_VERSION:
                raise ValueError(f"its format is {read['format_version']}")
            strata = [SampledStratum(**one) for one in read["strata"]]
            faces = [SampledFace(**one) for one in read["faces"]]
            sample = cls(str(read["model_version"]), str(read["model_name"]), strata, faces)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(str(error)) from error
        if sample.audit_id != read["audit"]:
            raise ValueError("it was changed")
        return sample


def draw(connection: duckdb.DuckDBPyConnection, count: int, seed: int) -> tuple[Sample, list[dict[str, Any]]]:
    """So many faces of `faces_latest`, in random order, with their rows.

    Raises:
        UsageError: there are no faces, or those of several models.
    """
    models = connection.sql("SELECT DISTINCT model_version, model_name FROM faces_latest ORDER BY 1").fetchall()
    if len(models) != 1:
        found = ", ".join(version for version, _ in models) or "none"
        raise UsageError(
            f"The faces of these tables are of {len(models)} models ({found}), and an audit is about one: label with one first."
        )
    connection.execute(_STRATA)
    found = connection.sql(f"SELECT predicted, half, count(*), {_MEANS} FROM strata GROUP BY 1, 2 ORDER BY 1, 2").fetchall()  # noqa: S608 - constants of this module
    strata = [SampledStratum(predicted, half, faces, list(means)) for predicted, half, faces, *means in found]
    generator = np.random.default_rng(seed)
    wanted = []
    for number, (stratum, size) in enumerate(zip(strata, _allocate(np.array([one.faces for one in strata]), count), strict=True)):
        step = stratum.faces / max(size, 1)
        places = np.floor((generator.random() + np.arange(size)) * step).astype(int)
        wanted += [(number, stratum.predicted, stratum.half, place) for place in places.tolist()]
    values = ", ".join(f"({number}, '{predicted}', {half}, {place})" for number, predicted, half, place in wanted)
    query = f"SELECT * FROM strata JOIN (VALUES {values}) AS wanted(stratum, predicted, half, place) USING (predicted, half, place)"  # noqa: S608 - numbers and names of emotions
    rows = connection.sql(query).to_arrow_table().to_pylist()
    rows.sort(key=lambda row: (row["image_id"], row["face_index"]))
    rows = [rows[place] for place in generator.permutation(len(rows))]
    faces = [
        SampledFace(row["image_id"], row["face_index"], row["image_uri"], row["stratum"], [row[f"p_{emotion}"] for emotion in EMOTIONS])
        for row in rows
    ]
    return Sample(models[0][0], models[0][1] or models[0][0], strata, faces), rows


def _allocate(sizes: Int64Array, count: int) -> list[int]:
    """How many faces to take of each stratum: a part equally, the rest by size, never more than there are."""
    wanted = np.minimum(sizes, np.floor(count * (EQUAL_SHARE / len(sizes) + (1 - EQUAL_SHARE) * sizes / sizes.sum())).astype(int))
    while wanted.sum() < min(count, sizes.sum()):
        room = sizes - wanted
        wanted[int(np.argmax(room))] += 1
    return [int(one) for one in wanted]
