"""Compiles the C++ files of this folder for this machine, once, and loads them as one library."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from selfmoe_ray.base_model.cache import cached

SOURCES = tuple(Path(__file__).with_name(name) for name in ("mixture.cpp", "top_p.cpp"))
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fPIC", "-fopenmp")
_OPENMP = re.compile(r"/\S*lib(?:iomp5|gomp|omp)[^/\s]*\.so[\d.]*$")
_LOG = logging.getLogger(__name__)


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """The compiled functions; None, with a warning, where they cannot be built or loaded.

    The library names no OpenMP runtime: it takes the one that torch has loaded, whose threads vLLM has
    bound to cores. A second runtime's threads would compete with them.
    """
    try:
        runtime = _openmp_runtime()
        ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(_compiled()))
    except (OSError, LookupError, subprocess.SubprocessError) as error:
        _LOG.warning("selfmoe_ray's CPU kernels are not in use, which makes this engine slower: %s", _reason(error))
        return None


def _openmp_runtime() -> str:
    """The file of the OpenMP runtime that this process computes with."""
    maps = Path("/proc/self/maps").read_text()
    loaded = dict.fromkeys(match[0] for line in maps.splitlines() if (match := _OPENMP.search(line)))
    # A preloaded one is mapped beside torch's own and has its calls.
    preloaded = [path for path in loaded if path in os.environ.get("LD_PRELOAD", "")]
    if not loaded:
        raise LookupError("torch has loaded no OpenMP runtime")
    return (preloaded or list(loaded))[0]


def _compiled() -> Path:
    """The library's file in the cache, named by all that it depends on."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise LookupError(f"there is no C++ compiler ({os.environ.get('CXX', 'g++')})")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    depends = "\n".join(
        [*(source.read_text() for source in SOURCES), *FLAGS, version, platform.machine(), _cpu_features()]
    )
    key = hashlib.sha256(depends.encode()).hexdigest()[:16]
    return cached(f"kernels/{key}.so", functools.partial(_compile, compiler))


def _compile(compiler: str, library: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        objects = [str(Path(scratch) / f"{source.stem}.o") for source in SOURCES]
        commands = [[*FLAGS, "-c", str(source), "-o", built] for source, built in zip(SOURCES, objects, strict=True)]
        # Two steps: linking with -fopenmp would name the compiler's own runtime.
        for command in (*commands, ["-shared", *objects, "-o", str(library)]):
            subprocess.run([compiler, *command], capture_output=True, text=True, check=True)


def _cpu_features() -> str:
    """What `-march=native` reads: a cache may lie on a disk that unlike machines share."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _reason(error: Exception) -> str:
    stderr = getattr(error, "stderr", None)
    return f"{error}\n{stderr}" if stderr else str(error)
