"""The page about an evaluation: one HTML file with everything in it, from the content of `evaluation.json` and the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import fer_ray
from fer_ray.models.metrics import LESS_IS_BETTER
from fer_ray.reporting.html import document, figure, table, text
from fer_ray.reporting.responsible_use import RESPONSIBLE_USE
from fer_ray.text import percent

FIGURES = {
    "accuracy": ("Accuracy", "share of faces labeled right"),
    "macro_f1": ("Macro F1", "mean F1 of the classes"),
    "weighted_f1": ("Weighted F1", "mean F1, weighted by faces"),
    "roc_auc": ("ROC AUC", "one class against the rest, mean of the classes"),
    "ece": ("ECE", "gap between confidence and accuracy, 15 bins; less is better"),
    "nll": ("NLL", "mean of -log p of the label; less is better"),
    "brier": ("Brier score", "squared error of the probabilities; less is better"),
}
PERCENT = ("accuracy",)
NO_FIGURE = "\N{EN DASH}"
_PICTURES = (
    (
        "confusion",
        "Confusion matrix",
        "Rows are labels, columns what the model said.",
        "",
    ),
    (
        "reliability",
        "Calibration",
        "An honest model is right as often as it says: bars on the dashed line. Where bars are below it, the model is too sure.",
        "",
    ),
    ("curves", "Training", "Dashed red lines: epochs whose learning rate fell at once to half or less.", "training_curves"),
    (
        "gradcam",
        "Where the model looks",
        "Grad-CAM (Selvaraju et al. 2017): red is where the evidence for the answer lies, in the last feature maps of the first network.",
        "The network has no convolutional feature maps before its classifier, so there is no Grad-CAM.",
    ),
    (
        "activations",
        "First layer",
        "What each filter of the first convolution makes of one face, each in its own range of values.",
        "The network has no convolution, so there are no activations to show.",
    ),
    (
        "predictions",
        "Random predictions",
        "Above each face the answer and its confidence, below it the label and the file; errors in red.",
        "",
    ),
    ("errors", "The most confident errors", "The wrong answers that the model was surest of.", "There are no errors."),
)
_RESPONSIBLE = " ".join(RESPONSIBLE_USE) + " The figures hold for pictures like these."


def render(content: Mapping[str, Any], pictures: Mapping[str, Mapping[str, bytes]], comparison: bytes | None) -> str:
    """The page. `pictures` are PNGs by the model's name and the file's; `comparison` is there for several models."""
    models = content["models"]
    title = "Evaluation of " + ", ".join(str(one["name"]) for one in models)
    several = _comparison(content, comparison) if len(models) > 1 else ""
    sections = "".join(_model(one, pictures[one["name"]], heading=len(models) > 1) for one in models)
    return document(title, f'{_data(content)}\n<p class="note">{text(_RESPONSIBLE)}</p>\n{several}{sections}{_footer(content)}')


def _data(content: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{text(name)} {count:,}" for name, count in content["class_counts"].items())
    findings = "".join(f"<li>{text(finding)}</li>" for finding in content["findings"])
    return (
        f"<p>{content['samples']:,} faces of the {text(content['split'])} split: {counts}.</p>\n"
        f'<p class="facts">Data set {text(content["config"]["dataset"]["dataset"])}, SHA-256 {text(content["data_sha256"])}</p>'
        + (f'\n<ul class="muted">{findings}</ul>' if findings else "")
    )


def _model(one: Mapping[str, Any], pictures: Mapping[str, bytes], heading: bool) -> str:
    networks = " and ".join(dict.fromkeys(one["networks"]))
    several = f"{len(one['networks'])} networks ({networks}), averaged" if len(one["networks"]) > 1 else networks
    mirrored = ", each face and its mirror image" if one["flip"] else ""
    return (
        (f"<h2>{text(one['name'])}</h2>\n" if heading else "")
        + f'<p class="facts">{text(one["model"])}: {text(one["model_version"])}; {text(several)}{mirrored}; '
        + f"{one['image_size']} x {one['image_size']} {text(one['color'])}; temperature {one['temperature']:.3f}; "
        + f"classes {text(', '.join(one['classes']))}</p>\n"
        + _cards(one)
        + _per_class(one)
        + "".join(_picture(one, pictures, *described) for described in _PICTURES)
        + _errors(one)
    )


def _cards(one: Mapping[str, Any]) -> str:
    cards = "".join(
        f'<div class="card"><span class="name">{label}</span><b>{_number(name, one["figures"][name])}</b>'
        f"<span>{_interval(name, one)}</span><span>{meaning}</span></div>\n"
        for name, (label, meaning) in FIGURES.items()
    )
    before = one["figures"]
    notes = f"Before calibration: ECE {before['ece_before_calibration']:.3f}, NLL {before['nll_before_calibration']:.3f}."
    if one["votes"]:
        votes = one["votes"]
        notes += (
            f" Against the votes of the people who labeled the faces: Brier score {votes['brier']:.3f}, "
            f"cross-entropy {votes['cross_entropy']:.3f}, Kullback-Leibler divergence {votes['kl_divergence']:.3f}."
        )
    return f'<div class="cards">\n{cards}</div>\n<p class="muted">{notes}</p>\n'


def _interval(name: str, one: Mapping[str, Any]) -> str:
    if name not in one["intervals"]:
        return "&nbsp;"
    low, high = (_number(name, limit) for limit in one["intervals"][name])
    return f"{low} to {high}"


def _number(name: str, value: float | None) -> str:
    if value is None:
        return NO_FIGURE
    return percent(value, 1) if name in PERCENT else f"{value:.3f}"


def _per_class(one: Mapping[str, Any]) -> str:
    names = ("precision", "recall", "f1", "roc_auc")
    rows = [
        [text(row["class"]), f"{row['images']:,}", f"{row['predicted']:,}", *(_number(name, row[name]) for name in names)]
        for row in one["per_class"]
    ]
    absent = [row["class"] for row in one["per_class"] if not row["images"]]
    without_area = [row["class"] for row in one["per_class"] if row["roc_auc"] is None]
    note = f"No faces of {text(', '.join(absent))} here: they count in no mean, and faces taken for them are errors. " if absent else ""
    note += f"The mean ROC AUC leaves out {text(', '.join(without_area))}." if without_area else ""
    shown = table(("class", "faces", "predicted", "precision", "recall", "F1", "ROC AUC"), rows)
    return f"<h3>Classes</h3>\n{shown}" + (f'<p class="muted">{note}</p>\n' if note else "")


def _picture(one: Mapping[str, Any], pictures: Mapping[str, bytes], name: str, title: str, caption: str, missing: str) -> str:
    png = pictures.get(f"{name}.png")
    if png is None:
        return f"<h3>{title}</h3>\n<p>{text(one.get(missing, missing))}</p>\n"
    return f"<h3>{title}</h3>\n" + figure(png, f"{title}: {one['name']}", caption)


def _errors(one: Mapping[str, Any]) -> str:
    errors = one["most_confident_errors"]
    if not errors:
        return ""
    rows = [[text(e["name"]), text(e["label"]), text(e["predicted"]), percent(e["confidence"], 1)] for e in errors]
    shown = table(("file", "label", "predicted", "confidence"), rows, text_columns=(1, 2))
    return f"<details><summary>The {len(errors)} most confident errors with their full names</summary>\n{shown}</details>\n"


def _comparison(content: Mapping[str, Any], picture: bytes | None) -> str:
    models = content["models"]
    rows = []
    for name, (label, _) in FIGURES.items():
        values = [one["figures"][name] for one in models]
        known = [value for value in values if value is not None]
        best = (min if name in LESS_IS_BETTER else max)(known, default=None)
        cells = []
        for one, value in zip(models, values, strict=True):
            interval = f" <small>{_interval(name, one)}</small>" if name in one["intervals"] else ""
            cells.append((f"<b>{_number(name, value)}</b>" if value == best else _number(name, value)) + interval)
        rows.append([label, *cells])
    shown = table(["", *(text(one["name"]) for one in models)], rows)
    drawn = figure(picture, "Accuracy and F1 of each class, by model", "The same faces for every model.") if picture else ""
    return f"<h2>Side by side</h2>\n{shown}{drawn}{_tests(content)}"


def _tests(content: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{text(row['first'])} and {text(row['second'])}",
            f"{row['accuracy_difference'] * 100:+.1f}",
            f"{row['only_first_correct']:,}",
            f"{row['only_second_correct']:,}",
            ("below 0.0001" if row["p_value"] < 1e-4 else f"{row['p_value']:.4f}") + (" (exact)" if row["exact"] else ""),
        ]
        for row in content["comparison"]
    ]
    shown = table(("McNemar's test", "difference in points", "only the first right", "only the second right", "p"), rows)
    note = (
        "p: how likely a split at least this uneven is among the faces that only one of the two labels right, if both erred equally often."
        + (" With several pairs, some p are small by chance: hold each against 0.05 divided by their number." if len(rows) > 1 else "")
    )
    return f'{shown}<p class="muted">{note}</p>\n'


def _footer(content: Mapping[str, Any]) -> str:
    config = content["config"]
    return (
        '<footer class="muted"><p>Ranges are 95 % intervals from 1,000 resamples of the faces (percentile bootstrap); '
        "those of the ECE tend to lie high, since resampling adds noise to every bin. "
        "ECE, NLL, Brier score and confidences are those after calibration by temperature. "
        f"Random choices with seed {config['seed']}. All figures are in evaluation.json, every answer in predictions.parquet.</p>"
        f"<p>fer_ray {text(fer_ray.__version__)}</p></footer>\n"
    )
