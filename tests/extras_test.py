"""Packages that may be missing: one sentence says what installs them."""

import math
import sys

import pytest

from sparse_prefix_jax.extras import MissingExtraError, optional


def test_what_is_installed_is_imported():
  assert optional("math", "plot") is math
  assert optional("os.path", "plot") is sys.modules["os.path"]


def test_what_is_missing_is_named_with_what_installs_it():
  with pytest.raises(ImportError, match=r"no_such_package") as caught:
    optional("no_such_package.inside", "plot")
  assert isinstance(caught.value, MissingExtraError | ValueError)
  assert str(caught.value) == (
    "no_such_package is not installed; "
    "`pip install 'sparse-prefix-jax[plot]'` installs it"
  )


def test_a_package_that_lacks_one_of_its_own_says_so_itself(
  tmp_path, monkeypatch
):
  (tmp_path / "broken_package.py").write_text("import no_such_package")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ModuleNotFoundError, match=r"named 'no_such_package'"):
    optional("broken_package", "plot")
