"""Which labeled faces a data set holds, in every layout people have FER-2013 and its relatives in."""

from __future__ import annotations

from dataclasses import replace

from fer_ray.config.dataset import DatasetConfig
from fer_ray.data.groups import group_samples
from fer_ray.data.layouts.file_names import read_file_names, read_voted
from fer_ray.data.layouts.folders import read_folders
from fer_ray.data.layouts.label_files import read_known_label_files, read_label_files
from fer_ray.data.layouts.parquet import read_parquet
from fer_ray.data.layouts.pixel_csv import read_pixel_csvs
from fer_ray.data.layouts.sidecars import read_json_sidecars, read_sidecars
from fer_ray.data.layouts.source import Source
from fer_ray.data.layouts.tree import File, Folder, read_tree
from fer_ray.data.sample import Layout
from fer_ray.errors import DatasetError, UsageError
from fer_ray.io.storage import Storage, absolute
from fer_ray.schema import ImageEntry

KAGGLE = "kaggle:"
# The first that finds its own counts.
_READERS = (
    read_known_label_files,
    read_sidecars,
    read_voted,
    read_folders,
    read_file_names,
    read_json_sidecars,
    read_pixel_csvs,
    read_parquet,
)


def with_absolute_paths(config: DatasetConfig) -> DatasetConfig:
    """The same data set for processes with another working directory, such as Ray's workers.

    Raises:
        UsageError: an address is neither a path nor one that can be read.
    """
    dataset = config.dataset if config.dataset.startswith(KAGGLE) else absolute(config.dataset, "data set")
    return replace(
        config,
        dataset=dataset,
        ferplus=tuple(absolute(file, "file of FER+ votes") for file in config.ferplus),
        labels=tuple(absolute(file, "label file") for file in config.labels),
    )


def find_layout(config: DatasetConfig, storage: Storage) -> Layout:
    """The samples of a data set: a folder, an archive or a table; local, in a store, or fetched from Kaggle.

    Raises:
        DatasetError: there is no such place, or nothing in it that is one of the layouts.
    """
    root = _download(config.dataset) if config.dataset.startswith(KAGGLE) else config.dataset
    try:
        uri = absolute(root, "data set")
        config = with_absolute_paths(config)
    except UsageError as error:
        raise DatasetError(str(error)) from error
    if uri.lower().endswith((".csv", ".parquet")) and not (config.labels and storage.stat(uri) is None):
        tree = Folder(files=[File(uri.rpartition("/")[2], storage.stat(uri) or ImageEntry(uri, None, None))])
    else:
        tree = read_tree(storage, uri, config.dataset)
    source = Source.of(config, storage, tree)
    layout = read_label_files(source) if config.labels else next((found for read in _READERS if (found := read(source))), None)
    if layout is None:
        raise _unknown_layout(source)
    if not layout.samples:
        raise DatasetError(f"Nothing labels the images of {config.dataset}: {' '.join(layout.findings)}")
    samples, findings = group_samples(layout.samples, config)
    return replace(layout, samples=samples, findings=(*layout.findings, *findings))


def _unknown_layout(source: Source) -> DatasetError:
    dataset = source.config.dataset
    images = list(source.tree.images())
    if not images:
        return DatasetError(
            f"The data set {dataset} holds no images and no fer2013.csv: give the folder that holds train/ and validation/."
        )
    folders = {file.path.split("/")[-2] for file in images if "/" in file.path}
    if folders and all(name.isdecimal() for name in folders):
        what = f"The folders of {dataset} are numbers"
        return source.labels.unknown(what, max(folders, key=int))
    return DatasetError(
        f"The data set {dataset} holds images but no emotion folders: put them into train/<emotion>/ and validation/<emotion>/, "
        "or name their labels with --labels FILE."
    )


def _download(dataset: str) -> str:
    """The folder that kagglehub keeps the data set in."""
    import kagglehub
    from kagglehub import exceptions

    failures = (
        OSError,
        ValueError,
        exceptions.BackendError,
        exceptions.CredentialError,
        exceptions.DataCorruptionError,
        exceptions.NotFoundError,
        exceptions.UnauthenticatedError,
    )
    handle = dataset.removeprefix(KAGGLE)
    try:
        return str(kagglehub.dataset_download(handle))
    except failures as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise DatasetError(
            f"The data set {dataset} cannot be fetched from Kaggle ({reason}): check its name, the network and the Kaggle login."
        ) from error
