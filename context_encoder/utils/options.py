"""Names of options on the command line, and errors in their values in plain sentences."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError


def option(name: str) -> str:
    """A field's name as it is spelt on the command line."""
    return "--" + name.replace("_", "-")


def explain(error: ValidationError) -> list[str]:
    """One sentence for each thing that is wrong: the option, what is expected, what was given."""
    return [_explain(problem) for problem in error.errors()]


_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}


def _explain(problem: Any) -> str:
    kind, given, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "value_error":  # raised in this file: a sentence already
        return str(context["error"])
    name = option(str(problem["loc"][0])) if problem["loc"] else "the configuration"
    if kind == "extra_forbidden":
        return f"there is no option {name}"
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"{name} must be {words} {context[key]:g}, got {given}"
    if kind == "literal_error":
        return f"{name} must be {context['expected']}, got {given!r}"
    if kind == "finite_number":
        return f"{name} must be a finite number, got {given}"
    message = problem["msg"]
    return f"{name}: {message[0].lower()}{message[1:]}, got {given!r}"
