"""A space file, line by line: from YAML that people edit to parameters, or a sentence that names the line that is wrong."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import yaml

from fer_ray.config.flat import convert
from fer_ray.config.options import OptionSpec
from fer_ray.errors import UsageError
from fer_ray.tune.space.parameter import CHOICE, CONSTANT, RANGES, Parameter

WHEN = "when"
STEP = "step"
MAX_CHOICES = 100  # values of a choice
MAX_ALTERNATIVES = 20  # cases of a setting
_MAX_NUMBER = 1e15
_FORM = "{choice: [a, b]}, or {uniform: [low, high]}, or log, integer or log_integer instead of uniform"


class _Document:
    """A YAML text whose every value knows its line. Only plain values are ever made of it, and no tag is obeyed but YAML's own."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        try:
            self._loader = yaml.SafeLoader(text)
            self.root = self._loader.get_single_node()
        except yaml.YAMLError as error:
            reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "it does not read"
            raise UsageError(f"{file}:{_wrong_line(error, text)}: this is no YAML ({reason}): correct the line.") from error
        except RecursionError as error:
            raise UsageError(f"{file} is nested too deeply to be a search space: write one `setting: values` a line.") from error

    def place(self, node: yaml.Node) -> str:
        """File and line, as editors understand them."""
        return f"{self.file}:{node.start_mark.line + 1}"

    def refuse(self, node: yaml.Node, sentence: str) -> NoReturn:
        raise UsageError(f"{self.place(node)}: {sentence}")

    def items(self, node: yaml.MappingNode) -> list[tuple[str, yaml.Node, yaml.Node]]:
        """(key, its node, the value's node) of a mapping, with `_` for `-` as in the flags."""
        found: list[tuple[str, yaml.Node, yaml.Node]] = []
        for key_node, value_node in node.value:
            key = str(self.scalar(key_node)).replace("-", "_")
            first = next((other for name, other, _ in found if name == key), None)
            if first is not None:
                self.refuse(key_node, f"{key!r} stands already in line {first.start_mark.line + 1}: keep one of the two.")
            found.append((key, key_node, value_node))
        return found

    def scalar(self, node: yaml.Node) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            self.refuse(node, "a single value belongs here, not a list or a mapping.")
        try:
            value = self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            raise UsageError(f"{self.place(node)}: the value {node.value[:40]!r} does not read: write a number or a word.") from error
        if isinstance(value, (int, float)) and not abs(value) < _MAX_NUMBER:
            self.refuse(node, f"the number {node.value[:40]} cannot be used: take one below {_MAX_NUMBER:g}.")
        return value

    def plain(self, node: yaml.Node) -> Any:
        """A single value, or a list of such values."""
        return [self.scalar(item) for item in node.value] if isinstance(node, yaml.SequenceNode) else self.scalar(node)


def _wrong_line(error: yaml.YAMLError, text: str) -> int:
    """Where a bracket or quote was opened, if it was never closed; else where the reader stumbled."""
    opened, stumbled = getattr(error, "context_mark", None), getattr(error, "problem_mark", None)
    mark = stumbled if stumbled and (not opened or "block" in str(getattr(error, "context", ""))) else opened
    return mark.line + 1 if mark else text.count("\n", 0, getattr(error, "position", 0)) + 1


class SpaceFile:
    """The parameters of each setting, in the order of the file: `read` gives one group of alternatives for each setting."""

    def __init__(self, text: str, file: str, options: Mapping[str, OptionSpec]) -> None:
        self._document = _Document(text, file)
        self._options = options
        self._groups: dict[str, tuple[Parameter, ...]] = {}

    def read(self) -> tuple[tuple[Parameter, ...], ...]:
        """The groups of parameters.

        Raises:
            UsageError: what is wrong, and in which line.
        """
        root = self._document.root
        if not isinstance(root, yaml.MappingNode):
            raise UsageError(f"{self._document.file}:1: a search space is one `setting: values` a line.")
        for name, key_node, node in self._document.items(root):
            if name not in self._options:
                self._document.refuse(key_node, f"{name!r} is no setting of a recipe: {_suggest(name, self._options)}")
            self._groups[name] = self._alternatives(name, node)
        if all(parameter.fixed for group in self._groups.values() for parameter in group):
            self._document.refuse(root, "the space has nothing to search: give one setting a choice or a range.")
        return tuple(self._groups.values())

    def _alternatives(self, name: str, node: yaml.Node) -> tuple[Parameter, ...]:
        if not isinstance(node, yaml.SequenceNode) or not any(isinstance(item, yaml.MappingNode) for item in node.value):
            return (self._parameter(name, node),)
        if len(node.value) > MAX_ALTERNATIVES:
            self._document.refuse(node, f"{name} has more than {MAX_ALTERNATIVES} alternatives: leave some out.")
        parameters = [self._parameter(name, item) for item in node.value]
        for parameter, item in zip(parameters[:-1], node.value, strict=False):
            if not parameter.conditions:
                self._document.refuse(item, f"every alternative of {name} but the last needs a `{WHEN}`, or the next would never apply.")
        named = [f"{name}[{parameter.condition() or 'otherwise'}]" for parameter in parameters]
        for index, item in enumerate(node.value):
            if named[index] in named[:index]:
                self._document.refuse(item, f"{name} has this `{WHEN}` already further up: this line would never apply.")
        return tuple(dataclasses.replace(parameter, name=full) for parameter, full in zip(parameters, named, strict=True))

    def _parameter(self, name: str, node: yaml.Node) -> Parameter:
        line = node.start_mark.line + 1
        if not isinstance(node, yaml.MappingNode):
            if isinstance(node, yaml.SequenceNode) and self._many(name, node):
                self._document.refuse(node, f"{name} takes one of these values: write {{choice: [...]}} around them to search all.")
            return Parameter(name, name, CONSTANT, (self._value(name, node),), line=line, lines=(line,))
        given = {key: (key_node, value) for key, key_node, value in self._document.items(node)}
        for key, (key_node, _) in given.items():
            if key not in (CHOICE, *RANGES, WHEN, STEP):
                self._document.refuse(key_node, f"{key!r} is no kind of values: {_suggest(key, (CHOICE, *RANGES, WHEN, STEP))}")
        kinds = [key for key in given if key not in (WHEN, STEP)]
        if len(kinds) != 1:
            self._document.refuse(node, f"{name} needs exactly one kind of values: {_FORM}.")
        conditions = self._conditions(name, given[WHEN][1]) if WHEN in given else ()
        step = given[STEP][1] if STEP in given else None
        parameter = self._choice(name, given[CHOICE][1], step) if kinds == [CHOICE] else self._range(name, kinds[0], *given[kinds[0]], step)
        return dataclasses.replace(parameter, conditions=conditions, line=line)

    def _value(self, name: str, node: yaml.Node) -> Any:
        value = convert(self._document.plain(node), self._options[name], self._document.place(node))
        if isinstance(value, float) and not math.isfinite(value):
            self._document.refuse(node, f"{name} needs a number here, not {value}.")
        return value

    def _choice(self, name: str, node: yaml.Node, step: yaml.Node | None) -> Parameter:
        if step is not None:
            self._document.refuse(step, f"a choice has no `{STEP}`: write its values into the list.")
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self._document.refuse(node, f"the choice for {name} needs a list of one value or more: [a, b].")
        if len(node.value) > MAX_CHOICES:
            self._document.refuse(node, f"the choice for {name} has more than {MAX_CHOICES} values: use a range, or leave some out.")
        values: list[Any] = []
        for item in node.value:
            values.append(self._value(name, item))
            if values[-1] in values[:-1]:
                self._document.refuse(item, f"the choice for {name} has {self._document.plain(item)} twice: leave one out.")
        return Parameter(name, name, CHOICE, tuple(values), lines=tuple(item.start_mark.line + 1 for item in node.value))

    def _range(self, name: str, kind: str, key_node: yaml.Node, node: yaml.Node, step_node: yaml.Node | None) -> Parameter:
        field_kind = self._options[name].kind
        if field_kind not in (int, float):
            self._document.refuse(key_node, f"{name} takes no numbers between two ends: use {{choice: [a, b]}}.")
        draft = Parameter(name, name, kind, real=field_kind is float)
        if not draft.whole and not draft.real:
            self._document.refuse(
                key_node, f"{name} takes whole numbers: use {'log_integer' if draft.log else 'integer'} instead of {kind}."
            )
        if not isinstance(node, yaml.SequenceNode) or len(node.value) != 2:
            self._document.refuse(node, f"{kind} needs two numbers: [low, high].")
        low, high = (self._number(name, item, draft.whole) for item in node.value)
        if low >= high:
            self._document.refuse(node, f"the range of {name} runs from {low} to {high}: the first number must be the lower one.")
        if draft.log and low <= 0:
            self._document.refuse(node, f"{kind} for {name} must begin above 0, not at {low}: the logarithm of 0 is no number.")
        step = self._step(name, draft, step_node, high - low) if step_node is not None else None
        lines = tuple(item.start_mark.line + 1 for item in node.value)
        return dataclasses.replace(draft, low=low, high=high, step=step, lines=lines)

    def _number(self, name: str, node: yaml.Node, whole: bool) -> Any:
        value = self._value(name, node)
        if whole and value != int(value):
            self._document.refuse(node, f"{name} needs a whole number here, not {value}.")
        return int(value) if whole else value

    def _step(self, name: str, draft: Parameter, node: yaml.Node, width: float) -> Any:
        if draft.log:
            self._document.refuse(node, f"{draft.kind} has no `{STEP}`: use {{choice: [...]}} for chosen values of {name}.")
        step = self._number(name, node, draft.whole)
        if not 0 < step <= width or abs(width / step - round(width / step)) > 1e-9:
            self._document.refuse(node, f"the `{STEP}` of {name} must go evenly into its range: {step} does not.")
        return step

    def _conditions(self, name: str, node: yaml.Node) -> tuple[tuple[str, tuple[Any, ...]], ...]:
        if not isinstance(node, yaml.MappingNode) or not node.value:
            self._document.refuse(node, f"`{WHEN}` needs {{setting: value}} or {{setting: [value, value]}}.")
        return tuple((other, self._condition(name, other, key, value)) for other, key, value in self._document.items(node))

    def _condition(self, name: str, other: str, key_node: yaml.Node, node: yaml.Node) -> tuple[Any, ...]:
        if other not in self._options:
            self._document.refuse(key_node, f"{other!r} is no setting of a recipe: {_suggest(other, self._options)}")
        group = self._groups.get(other)
        if not group or other == name:
            self._document.refuse(key_node, f"{name} depends on {other}, which must stand further up in the file, with a choice.")
        if all(parameter.kind == CONSTANT for parameter in group):
            self._document.refuse(
                key_node, f"{name} depends on {other}, which has one value only: give {other} a choice, or drop the `{WHEN}`."
            )
        if any(parameter.kind in RANGES and not parameter.whole for parameter in group):
            self._document.refuse(
                key_node, f"{name} depends on {other}, a range of any numbers: only a choice or whole numbers can be met."
            )
        items = node.value if self._many(other, node) else [node]
        values = tuple(self._value(other, item) for item in items)
        for item, value in zip(items, values, strict=True):
            if not any(parameter.takes(value) for parameter in group):
                known = "; ".join(parameter.text() for parameter in group)
                self._document.refuse(item, f"{other} is never {self._document.plain(item)} in this file, but one of: {known}.")
        if not values:
            self._document.refuse(node, f"{name} depends on {other} but names none of its values.")
        return values

    def _many(self, other: str, node: yaml.Node) -> bool:
        """A list of values; for a setting that is itself a list, a list of lists."""
        if not isinstance(node, yaml.SequenceNode):
            return False
        return not self._options[other].many or any(isinstance(item, yaml.SequenceNode) for item in node.value)


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(known)}."
