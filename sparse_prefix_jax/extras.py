"""Packages that only one command needs, imported when it needs them."""

import importlib
from typing import Any


class MissingExtraError(ImportError, ValueError):
  """A package of an extra is needed and is not installed.

  It is an ImportError by nature; it is a ValueError too, because the command
  line answers those with their one sentence.
  """


def optional(module: str, extra: str) -> Any:
  """Imports a module that an extra of this package installs.

  Args:
    module: The dotted name of the module.
    extra: The extra of `sparse-prefix-jax` that installs its package.

  Returns:
    The module.

  Raises:
    MissingExtraError: If the package is not installed, with what installs it.

  Example:
    >>> optional("no_such_package.figure", "plot")
    Traceback (most recent call last):
    sparse_prefix_jax.extras.MissingExtraError: no_such_package is not installed
  """
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    package = module.partition(".")[0]
    # A package that is there and lacks one of its own says so itself.
    if error.name not in (package, module):
      raise
    raise MissingExtraError(
      f"{package} is not installed; "
      f"`pip install 'sparse-prefix-jax[{extra}]'` installs it"
    ) from None
