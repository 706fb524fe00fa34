"""Which folder becomes which package, and what is compiled; all else stands in pyproject.toml.

Kept here because pyproject.toml can either search for packages or map folders, not both.
"""

from setuptools import Extension, find_packages, setup

fused = Extension(
    "neurtransformer.spiking._fused",
    ["neurtransformer/spiking/fused.c"],
    # floats are to be what torch makes of them, so nothing that changes a result
    extra_compile_args=["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"],
    optional=True,  # without a compiler neurtx is slower at generating, and otherwise the same
)

setup(
    ext_modules=[fused],
    packages=[
        *find_packages(include=["neurtransformer", "neurtransformer.*"]),
        "neurtransformer.configs",
        "neurtx",
    ],
    package_dir={"neurtransformer.configs": "configs", "neurtx": "cli"},
    # in an environment: share/neurtransformer/constraints.txt, for `pip install -c`
    data_files=[("share/neurtransformer", ["constraints.txt"])],
)
