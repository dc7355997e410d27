"""Answers about a sample, as the page saves them and as Label Studio exports them."""

from __future__ import annotations

import json
from typing import Any

from fer_ray.audit.sample import Sample
from fer_ray.emotions import EMOTIONS
from fer_ray.errors import UsageError

UNCLEAR = "unclear"  # no face, or nobody could tell


def read_answers(content: bytes, sample: Sample, name: str) -> dict[str, str]:
    """The answer of each face that has one, by its key.

    Raises:
        UsageError: they do not read, or are about another sample.
    """
    try:
        read = json.loads(content)
        audit, answers = _of_label_studio(read) if isinstance(read, list) else (read["audit"], dict(read["answers"]))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"The answers {name} cannot be read ({str(error)[:100]}): give what the page saved or Label Studio exported."
        ) from error
    if audit != sample.audit_id:
        raise UsageError(f"The answers {name} are about another audit ({str(audit)[:40]}, not {sample.audit_id}): give those for this one.")
    keys = {face.key for face in sample.faces}
    for key, answer in answers.items():
        if key not in keys or answer not in (*EMOTIONS, UNCLEAR):
            raise UsageError(f"The answers {name} hold {str(answer)[:40]!r} for {str(key)[:60]!r}, which this audit does not know.")
    return answers


def label_studio_tasks(sample: Sample, pictures: dict[str, str]) -> bytes:
    """The tasks to import there; `pictures` are addresses by the faces' keys."""
    tasks = [{"data": {"image": pictures[face.key], "key": face.key, "audit": sample.audit_id}} for face in sample.faces]
    return json.dumps(tasks).encode()


def label_studio_interface() -> bytes:
    """The labeling interface to paste there."""
    choices = [*((emotion, number) for number, emotion in enumerate(EMOTIONS, 1)), (UNCLEAR, 0)]
    lines = [f'    <Choice value="{value}" hotkey="{key}"/>' for value, key in choices]
    return "\n".join(
        [
            "<View>",
            '  <Image name="face" value="$image"/>',
            '  <Choices name="emotion" toName="face" choice="single">',
            *lines,
            "  </Choices>",
            "</View>",
            "",
        ]
    ).encode()


def _of_label_studio(tasks: list[Any]) -> tuple[Any, dict[str, str]]:
    """The last annotation of each task that was not cancelled."""
    audits = {task["data"]["audit"] for task in tasks}
    answers = {}
    for task in tasks:
        for annotation in task["annotations"]:
            if not annotation.get("was_cancelled") and annotation["result"]:
                answers[task["data"]["key"]] = annotation["result"][0]["value"]["choices"][0]
    return (audits.pop() if len(audits) == 1 else f"{len(audits)} audits"), answers
