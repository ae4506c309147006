"""Options of the commands: parameters annotated with their type, help and limits."""

import inspect
import typing
from collections.abc import Callable
from typing import Any


def options_of(owner: Callable) -> dict[str, tuple]:
  """Returns {name: (type, default, help, *more)} of a function's or class's parameters.

  Only those count that are annotated as Annotated[type, help, ...].
  """
  hints: dict[str, Any] = typing.get_type_hints(owner, include_extras=True)
  return {
    name: (hints[name].__origin__, parameter.default, *hints[name].__metadata__)
    for name, parameter in inspect.signature(owner).parameters.items()
    if hasattr(hints.get(name), '__metadata__')
  }
