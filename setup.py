"""Which folder becomes which package; everything else stands in pyproject.toml.

Kept here because pyproject.toml can either search for packages or map folders, not both.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["neurtransformer", "neurtransformer.*"]),
        "neurtransformer.configs",
        "neurtx",
    ],
    package_dir={"neurtransformer.configs": "configs", "neurtx": "cli"},
    # in an environment: share/neurtransformer/constraints.txt, for `pip install -c`
    data_files=[("share/neurtransformer", ["constraints.txt"])],
)
