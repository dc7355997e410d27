"""From staging to the tables: verified against the manifest, and visible in one step."""

from __future__ import annotations

import dataclasses
import datetime
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fer_ray.errors import PublishError
from fer_ray.io.storage import join
from fer_ray.label.incremental import gone, run_places
from fer_ray.label.incremental.forgotten import Forgotten
from fer_ray.label.plan import Part, Plan, gone_file, open_manifest, read_parts, read_plan, remove_work, staged_file
from fer_ray.label.run import Run, read_run
from fer_ray.label.views import write_views
from fer_ray.schema import CROPS, FACES, IMAGES, RUNS, SCHEMA_VERSION, STAGING, TRACKS, conform
from fer_ray.video.track_table import TrackTable

ROWS_PER_GROUP = 100_000
# Of these runs have files for each million images; crops only where they are kept.
TABLES = {"images": IMAGES, "faces": FACES, "tracks": TRACKS, "crops": CROPS}
TOP_ERRORS = 5  # sentences in the summary of a run
MAX_ERRORS = 1000  # sentences that one task counts


def publish_tables(run: Run, plan: Plan) -> Counter[str]:
    """Write `images`, `faces` and `tracks`; where there are several million images, in Ray tasks, one for each million.

    Gives the counts of the run: images_total, faces_total, faces_left_out, `status:<status>`, `emotion:<emotion>` and
    `error:<sentence>` (the commonest few).

    Raises:
        PublishError: staging does not hold every image of the manifest exactly once; nothing became visible.
    """
    parts = read_parts(run, plan)
    by_file = [[part for part in parts if part.file == file] for file in range(plan.files)]
    counts: Counter[str] = Counter()
    for found in [write_tables(run, plan, by_file[0])] if plan.files == 1 else _write_with_ray(run, plan, by_file):
        counts.update(found)
    if (planned := counts.pop("planned")) != plan.images:
        raise PublishError(f"Run {run.run_id} has {planned:,} rows for {plan.images:,} images: start it again.")
    remove_stray_tables(run, plan.files)
    errors = Counter({key: n for key, n in counts.items() if key.startswith("error:")})
    return counts - errors + Counter(dict(errors.most_common(TOP_ERRORS)))


def _write_with_ray(run: Run, plan: Plan, by_file: Sequence[Sequence[Part]]) -> list[Counter[str]]:
    import ray

    from fer_ray.cluster import connect

    connect()
    task = ray.remote(num_cpus=0)(write_tables)
    return list(ray.get([task.remote(run, plan, parts) for parts in by_file]))


def write_tables(run: Run, plan: Plan, parts: Sequence[Part]) -> Counter[str]:
    """Write the files of all tables for one file of the manifest; memory holds about 100,000 rows."""
    counts, tracks = Counter(planned=sum(part.rows for part in parts)), TrackTable()
    forgotten = Forgotten.read(run.storage, run.output)  # perhaps after the run was planned
    with ExitStack() as stack:
        tables = [table for table in TABLES if table != "crops" or run.config.keep_crops]
        paths = {table: stack.enter_context(run.storage.writing(table_file(run, table, parts[0].file))) for table in tables}
        writers = {table: stack.enter_context(_writer(path, TABLES[table])) for table, path in paths.items()}
        for rows in _without_repeated_troubles(_grouped(_verified(run, plan, parts, forgotten), writers.get("crops"))):
            faces = tracks.follow(rows, _flat_faces(rows))
            writers["images"].write_table(conform(rows, IMAGES), ROWS_PER_GROUP)
            writers["faces"].write_table(faces, ROWS_PER_GROUP)
            writers["tracks"].write_table(tracks.rows())
            _count(counts, rows, faces)
        writers["tracks"].write_table(tracks.rows(is_last=True))
    errors = Counter({key: n for key, n in counts.items() if key.startswith("error:")})
    return counts - errors + Counter(dict(errors.most_common(MAX_ERRORS)))


def commit(run: Run, row: dict[str, Any]) -> dict[str, Any]:
    """Write the run's row into `runs`, which makes its tables count, and remove the work that led to it.

    Gives the row: it is newer than those of all runs that were committed before, whatever their clocks said.
    """
    write_views(run.storage, run.output)
    newest = newest_run(run)
    row = row | {"latest_model_version": run.model_version}
    if newest:
        row = row | {"finished_at": max(row["finished_at"], newest["finished_at"] + datetime.timedelta(microseconds=1))}
        if not run.config.latest:
            row = row | {"latest_model_version": newest["latest_model_version"]}
    _keep_gone(run)
    with run.storage.writing(run.commit_file) as file:
        pq.write_table(pa.Table.from_pylist([row], schema=RUNS), file, compression="zstd")
    remove_work(run)
    return row


def _keep_gone(run: Run) -> None:
    """Put what the run's listing changed in what is gone beside the tables; the run's row makes it count."""
    plan = read_plan(run)
    try:
        content = run.storage.read(gone_file(run, plan)) if plan else b""
    except FileNotFoundError:
        return
    if content:
        run.storage.write(gone.file_of(run.output, run.run_id), content)


def newest_run(run: Run) -> dict[str, Any] | None:
    """The row of the run that was committed last beside this one; None where there is none."""
    others = [place for run_id, place in run_places(run.storage, run.output).items() if run_id != run.run_id]
    if not others:
        return None
    row = read_run(dataclasses.replace(run, run_id=max(others)[1]))
    return row | {"latest_model_version": row["latest_model_version"] or row["model_version"]}


def clean_up(run: Run, keep_days: float) -> list[str]:
    """Remove the work of runs that are published, or that nobody touched for `keep_days`; gives the ids of the latter.

    What half-published tables those left goes with it, and so do half-written files and uploads of that age.
    """
    before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=keep_days)
    last_touched: dict[str, datetime.datetime] = {}
    for kind in ("_manifest", "_staging"):
        folder = join(run.output, kind)
        for entry in run.storage.list_files(folder):
            inside = PurePosixPath(entry.image_uri[len(folder) :].lstrip("/"))
            if len(inside.parts) > 1 and entry.modified_at:
                last_touched[inside.parts[0]] = max(entry.modified_at, last_touched.get(inside.parts[0], entry.modified_at))
    removed = []
    for run_id, touched in last_touched.items():
        other = dataclasses.replace(run, run_id=run_id)
        if other.is_published():
            remove_work(other)
        elif touched < before and run_id != run.run_id:
            remove_work(other)
            remove_stray_tables(other, 0)
            removed.append(run_id)
    run.storage.remove_stale(run.output, before)
    return removed


def remove_stray_tables(run: Run, files: int) -> None:
    """Remove what an earlier plan of this run published in part: files beyond the first `files`, and those of other dates."""
    wanted = {table_file(run, table, number) for table in TABLES for number in range(files)}
    for table in TABLES:
        for entry in run.storage.list_files(join(run.output, table)):
            name = PurePosixPath(entry.image_uri)
            if name.suffix == ".parquet" and name.stem.rpartition("-")[0] == run.run_id and entry.image_uri not in wanted:
                run.storage.remove(entry.image_uri)


def table_file(run: Run, table: str, number: int) -> str:
    """The address of a file of a table."""
    return join(run.output, table, f"run_date={run.run_date.isoformat()}", f"{run.run_id}-{number}.parquet")


def _writer(path: Any, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema, compression="zstd")


def _verified(run: Run, plan: Plan, parts: Sequence[Part], forgotten: Forgotten) -> Iterator[pa.Table]:
    """The staged rows in the order of the manifest, part by part, each checked to be what was planned; without what was forgotten."""
    with open_manifest(run, plan, parts[0].file) as manifest:
        for part in parts:
            names = ["row_number", "image_uri", *(["start_ms"] if plan.stretches else [])]
            rows = _staged(run, plan, part)
            if not _is_whole(rows, manifest.read_row_group(part.group, columns=names)):
                raise PublishError(
                    f"Staging of run {run.run_id} does not match its manifest from row {part.first_row} on: "
                    f"remove {staged_file(run, plan, part)} and start the run again."
                )
            is_gone = forgotten.mask(rows["image_uri"].to_pylist()) if forgotten else np.zeros(len(rows), bool)
            yield rows.filter(pa.array(~is_gone)) if is_gone.any() else rows


def _grouped(parts: Iterator[pa.Table], crop_writer: pq.ParquetWriter | None) -> Iterator[pa.Table]:
    """About ROWS_PER_GROUP rows at a time; kept crops, which would fill the memory, are written as they come."""
    held: list[pa.Table] = []
    count = 0
    for rows in parts:
        if crop_writer:
            crop_writer.write_table(_flat_crops(rows))
        held.append(rows.select(STAGING.names))
        count += len(rows)
        if count + len(rows) > ROWS_PER_GROUP:
            yield pa.concat_tables(held)
            held, count = [], 0
    if held:
        yield pa.concat_tables(held)


def _is_whole(rows: pa.Table, expected: pa.Table) -> bool:
    """Whether every image that was planned is there, once and in order; a stretch that is not a film's first may have given no frame."""
    if "start_ms" not in expected.column_names or expected["start_ms"].null_count == len(expected):
        return bool(rows.select(["row_number", "image_uri"]).equals(expected.select(["row_number", "image_uri"])))
    places = rows["row_number"].to_numpy() - expected["row_number"][0].as_py()
    if len(places) and (places.min() < 0 or places.max() >= len(expected) or (np.diff(places) < 0).any()):
        return False
    found, starts = np.bincount(places, minlength=len(expected)), expected["start_ms"]
    is_image, is_first = starts.is_null().to_numpy(), pc.equal(starts, 0).fill_null(False).to_numpy()
    named = pc.coalesce(rows["video_uri"], rows["image_uri"])
    return bool((found[is_image] == 1).all() and (found[is_first] > 0).all() and named.equals(expected["image_uri"].take(pa.array(places))))


def _without_repeated_troubles(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows, with one at most for each film that says what is the matter with it: every stretch may have found it."""
    told = None
    for rows in tables:
        is_trouble = pc.and_(rows["video_uri"].is_valid(), rows["frame_time_ms"].is_null()).to_numpy()
        kept = np.ones(len(rows), bool)
        for place in np.flatnonzero(is_trouble):
            film = rows["video_uri"][int(place)].as_py()
            kept[place] = film != told
            told = film
        yield rows if kept.all() else rows.filter(pa.array(kept))


def _staged(run: Run, plan: Plan, part: Part) -> pa.Table:
    file = staged_file(run, plan, part)
    try:
        return pq.read_table(pa.BufferReader(run.storage.read(file)))
    except FileNotFoundError as error:
        raise PublishError(f"Staging of run {run.run_id} lacks the images from row {part.first_row} on: start the run again.") from error
    except pa.ArrowException as error:
        raise PublishError(f"The staged file {file} cannot be read: remove it and start the run again.") from error


def _flat_faces(rows: pa.Table) -> pa.Table:
    """One row per face from the images' lists of faces."""
    combined = rows.combine_chunks()
    faces = combined.column("faces")
    parents = combined.drop_columns(["faces"]).take(pc.list_parent_indices(faces))
    flat = pc.list_flatten(faces)
    own = {field.name: pc.struct_field(flat, field.name) for field in flat.type}
    return conform(pa.table({name: parents[name] for name in parents.column_names if name not in own} | own), FACES)


def _flat_crops(rows: pa.Table) -> pa.Table:
    """One row per kept crop, in the order of the faces."""
    combined = rows.select(["image_id", "run_id", "faces", "crops"]).combine_chunks()
    parents = pc.list_parent_indices(combined["crops"])
    flat = pc.list_flatten(combined["crops"])
    columns = {name: combined[name].take(parents) for name in ("image_id", "run_id")}
    columns |= {field.name: pc.struct_field(flat, field.name) for field in flat.type}
    columns["face_index"] = pc.struct_field(pc.list_flatten(combined["faces"]), "face_index")
    columns["schema_version"] = pa.array([SCHEMA_VERSION] * len(flat), pa.int32())
    return pa.table([columns[name] for name in CROPS.names], schema=CROPS)


def _count(counts: Counter[str], rows: pa.Table, faces: pa.Table) -> None:
    counts.update(images_total=len(rows), faces_total=len(faces), faces_left_out=pc.sum(rows["left_out_count"]).as_py() or 0)
    for prefix, column in (("status", rows["status"]), ("emotion", faces["emotion"]), ("error", rows["error"].drop_null())):
        counts.update({f"{prefix}:{entry['values']}": entry["counts"] for entry in pc.value_counts(column).to_pylist()})
