"""Option names on the command line, and sentences for values that pydantic refuses.

Messages of the library name a parameter in backquotes, as users of Python know it:
`` `batch_size` ``. A command shows it as its option: ``--batch-size``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from context_encoder.utils.text import shortened

_PARAMETER = re.compile(r"(?<!`)`([a-z][a-z0-9_]*)`(?!`)")


def option(name: str) -> str:
    """A field's name as it is spelt on the command line."""
    return "--" + name.replace("_", "-")


def with_options(message: str, renamed: Mapping[str, str] | None = None) -> str:
    """Replace parameters by options in a message of the library, for the command line.

    Args:
        message: names parameters in backquotes.
        renamed: parameters whose option has another name, and that name.
    """
    names = renamed or {}
    return _PARAMETER.sub(lambda found: option(names.get(found[1], found[1])), message)


def explain(error: ValidationError) -> list[str]:
    """One sentence per error, with the parameter, what is expected and what was given.

    There may be many errors, and long values, if a file is not a configuration at all.
    """
    problems = error.errors()
    sentences = [_explain(problem) for problem in problems[:_MOST]]
    if len(problems) > _MOST:
        sentences.append(f"and {len(problems) - _MOST} more errors")
    return sentences


# Errors that are explained; the others are counted.
_MOST = 8
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}


def _explain(problem: Any) -> str:
    kind, given, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "value_error":  # raised by this package: a sentence already
        return shortened(context["error"], 600)
    name = f"`{shortened(problem['loc'][0], 60)}`" if problem["loc"] else "the configuration"
    given = shortened(repr(given), 80)
    if kind == "extra_forbidden":
        return f"there is no option {name}"
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        bound = context[key]
        shown = f"{bound:g}" if isinstance(bound, float) else str(bound)
        return f"{name} must be {words} {shown}, got {given}"
    if kind == "literal_error":
        return f"{name} must be {context['expected']}, got {given}"
    if kind == "finite_number":
        return f"{name} must be a finite number, got {given}"
    message = problem["msg"]
    return f"{name}: {message[0].lower()}{message[1:]}, got {given}"
