"""Builds the native core. All metadata is in pyproject.toml.

No instruction set is assumed: files under csrc/kernels carry their own, and the best one is
chosen when the module is imported. OpenBLAS comes from the scipy-openblas32 wheel, at build and at
run time.
"""

import os
import sysconfig
from pathlib import Path

import numpy
import scipy_openblas32
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
SOURCES = sorted(str(path.relative_to(HERE)) for path in (HERE / "csrc").rglob("*.c"))

flags = [
    "-std=c11",
    "-D_GNU_SOURCE",
    "-O3",
    "-pthread",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
]
flags += os.environ.get("QWEN35_CFLAGS", "").split()  # CI: -Werror, sanitizers

blas_library_dir = scipy_openblas32.get_lib_dir()
# An installed package finds the wheel of OpenBLAS beside it in site-packages; the copy in the
# source tree finds it in the environment that this build is for.
wheel = "scipy_openblas32/lib"
run_paths = [f"$ORIGIN/../{wheel}", f"{sysconfig.get_paths()['platlib']}/{wheel}"]


class BuildExt(build_ext):
    """Leaves the module in the source tree as well: after `pip install .` Python started there
    finds the package in the tree first, and it works."""

    def run(self) -> None:
        super().run()
        if not self.inplace:
            self.copy_extensions_to_source()


setup(
    cmdclass={"build_ext": BuildExt},
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
                "-pthread",
                *os.environ.get("QWEN35_LDFLAGS", "").split(),
                *(f"-Wl,-rpath,{path}" for path in run_paths),
            ],
        )
    ],
)
