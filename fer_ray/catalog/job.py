"""The list of a team's models with their figures, and the names that stand for some of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fer_ray.config.jobs.models import ModelsConfig
from fer_ray.errors import BundleError, StorageError, TooLargeError, UsageError
from fer_ray.io.storage import Storage, absolute, join
from fer_ray.models import bundle
from fer_ray.text import sanitize

LOGGER = logging.getLogger(__name__)
COLUMNS = ("model", "accuracy", "macro F1", "faces", "data", "version", "alias")
NO_FIGURE = "-"
DATA_DIGITS = 8  # of the hash of a data set: figures are compared where it is the same


@dataclass(frozen=True)
class Listed:
    """A bundle below the folder: its name there, and what its metadata says, or what is wrong with it."""

    name: str
    content: Mapping[str, Any]
    trouble: str = ""

    def row(self, aliases: Mapping[str, str]) -> tuple[str, ...]:
        """The bundle as a line of COLUMNS."""
        names = ", ".join(f"@{alias}" for alias, name in sorted(aliases.items()) if name == self.name)
        if self.trouble:
            return (self.name, self.trouble, *[""] * 4, names)
        figures, lineage = self.content["metrics"]["validation"], self.content["lineage"]
        shown = (_figure(figures, "accuracy", ".4f"), _figure(figures, "macro_f1", ".4f"), _figure(figures, "samples", ",.0f"))
        data = str(lineage.get("data_sha256") or NO_FIGURE)[:DATA_DIGITS]
        return (self.name, *shown, data, str(self.content["model_version"]), names)


def models(config: ModelsConfig) -> dict[str, Any]:
    """List the bundles below a folder, after names were given or removed.

    Returns:
        The summary: each model with its figures on validation, and what the aliases stand for.

    Raises:
        UsageError: there is no such folder or model, or a name that cannot be one.
    """
    storage, place = Storage.of(config), absolute(config.models, "folder of models").rstrip("/")
    try:
        aliases = bundle.read_aliases(storage, place)
        changed = _with_changes(storage, place, aliases, config)
        if changed != aliases:
            storage.write(join(place, bundle.ALIASES_FILE), (json.dumps(changed, indent=2, sort_keys=True) + "\n").encode())
        found = sorted(_find(storage, place), key=lambda one: one.name)
    except StorageError as error:
        raise UsageError(str(error)) from error
    if not found:
        raise UsageError(f"There is no model bundle below {config.models}: name the folder that holds them.")
    rows = [COLUMNS, *(one.row(changed) for one in found)]
    widths = [max(len(row[index]) for row in rows if row[index] or index) for index in range(len(COLUMNS))]
    for row in rows:
        LOGGER.info("%s", sanitize("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()))
    listed = [{"name": one.name, **_summary(one)} for one in found]
    return {"models": listed, "aliases": changed, "place": config.models}


def _with_changes(storage: Storage, place: str, aliases: Mapping[str, str], config: ModelsConfig) -> dict[str, str]:
    """The aliases as they shall be; a bundle that gets a name is checked as `label` would."""
    changed = dict(aliases)
    for alias in config.remove_alias:
        if changed.pop(alias, None) is None:
            raise UsageError(f"There is no alias {alias} in {config.models}: it has {', '.join(aliases) or 'none'}.")
    for alias, name in config.aliases().items():
        bundle.check_alias(alias, name)
        with bundle.local_copy(storage, join(place, name)) as folder:
            bundle.check_labels(bundle.read_metadata(folder), join(place, name))
        changed[alias] = name
    return changed


def _find(storage: Storage, place: str) -> Iterator[Listed]:
    """Every bundle below the folder; those in the checkpoints of trainings are none yet."""
    for entry in storage.list_files(place):
        name, _, file = entry.image_uri[len(place) + 1 :].rpartition("/")
        if file != bundle.METADATA_FILE or not name or any(part.startswith("checkpoint_") for part in name.split("/")):
            continue
        try:
            content = json.loads(storage.read(entry.image_uri, bundle.MAX_METADATA_BYTES))
            one = Listed(name, content)
            one.row({})  # what it says can be shown
            yield one
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, TooLargeError, BundleError):
            yield Listed(name, {}, "cannot be read")


def _figure(figures: Mapping[str, Any], name: str, form: str) -> str:
    value = figures.get(name)
    return NO_FIGURE if value is None else format(float(value), form)


def _summary(one: Listed) -> dict[str, Any]:
    if one.trouble:
        return {"trouble": one.trouble}
    figures = one.content["metrics"]["validation"]
    return {"model_version": one.content["model_version"], **{name: figures.get(name) for name in ("accuracy", "macro_f1", "ece", "nll")}}
