"""Package discovery, the one thing that pyproject.toml cannot express.

`kernels/` stands at the top of a checkout, one folder per operation, and ships
as `sparse_prefix_jax.kernels`. In a checkout a symbolic link makes that name
work as it stands; an unpacked source distribution, or a checkout on a machine
without symbolic links, has no link. So the packages are found on both sides
and joined by `package_dir`, and no list has to be kept when a folder is added.
Folders of data are found too (as namespace packages), with the files that
`package-data` names.
"""

from setuptools import find_namespace_packages, setup

NAME = "sparse_prefix_jax"
KERNELS = f"{NAME}.kernels"


def discover() -> list[str]:
  """Returns the dotted name of every folder that ships."""
  ours = find_namespace_packages(
    include=[NAME, f"{NAME}.*"],
    exclude=[KERNELS, f"{KERNELS}.*", "*__pycache__*"],
  )
  kernels = find_namespace_packages("kernels", exclude=["*__pycache__*"])
  return [*ours, KERNELS, *(f"{KERNELS}.{name}" for name in kernels)]


setup(packages=discover(), package_dir={KERNELS: "kernels"})
