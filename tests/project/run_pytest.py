"""Runs pytest on the files that it is given: what a Bazel test starts."""

import sys

import pytest

if __name__ == "__main__":
  sys.exit(pytest.main(sys.argv[1:]))
