"""The file that tools still look for: all of it stands in pyproject.toml."""

from setuptools import setup

setup()
