"""Only what pyproject.toml cannot say: the folder kernels/ is the package detsearch_kernels.

A top-level package called `kernels` would collide with a well-known one of that name.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["detsearch_cli*"]), "detsearch_kernels"],
    package_dir={"detsearch_kernels": "kernels"},
)
