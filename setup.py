"""Builds the native core. All metadata is in pyproject.toml.

No instruction set is assumed: files under csrc/kernels carry their own, and the best one is
chosen when the module is imported. OpenBLAS comes from the scipy-openblas32 wheel, at build and at
run time.
"""

import os
import sys
from pathlib import Path

import numpy
import scipy_openblas32
from setuptools import Extension, setup

HERE = Path(__file__).parent
SOURCES = sorted(str(path.relative_to(HERE)) for path in (HERE / "csrc").rglob("*.c"))

flags = [
    "-std=c11",
    "-D_GNU_SOURCE",
    "-O3",
    "-fopenmp",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
]
flags += os.environ.get("QWEN35_CFLAGS", "").split()  # CI: -Werror, sanitizers

blas_library_dir = scipy_openblas32.get_lib_dir()
# An installed package finds the wheel of OpenBLAS beside it in site-packages, a build in place
# where it is now.
in_place = {"--inplace", "-i", "editable_wheel", "develop"} & set(sys.argv)
run_paths = ["$ORIGIN/../scipy_openblas32/lib", *([blas_library_dir] if in_place else [])]

setup(
    ext_modules=[
        Extension(
            "qwen35._core",
            SOURCES,
            depends=[str(path.relative_to(HERE)) for path in (HERE / "csrc").rglob("*.[hi]*")],
            include_dirs=[numpy.get_include()],
            library_dirs=[blas_library_dir],
            libraries=[scipy_openblas32.get_library(), "m"],
            extra_compile_args=flags,
            extra_link_args=[
                "-fopenmp",
                *os.environ.get("QWEN35_LDFLAGS", "").split(),
                *(f"-Wl,-rpath,{path}" for path in run_paths),
            ],
        )
    ]
)
