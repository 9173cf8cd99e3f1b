"""How the C library hands out memory, which decides a third of a training step's time on a CPU."""

import ctypes
import importlib.util
import os
import sys

# Of <malloc.h> of the GNU C library.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Where JAX computes on the CPU, keeps memory that is freed for the next step. Returns whether it was done.

    XLA takes the memory for a step's activations anew in every step. The C library gets blocks of that size from the
    kernel and returns them at once, so that the kernel clears every page again: for ResNet-20, 200 MB a step. Kept,
    they cost nothing, but the process stays as large as it once was. Memory is kept only where threads share it, so
    this has to come before JAX starts its own. Not done where an accelerator's plugin is installed: the host's threads
    that decode would have to wait for each other.
    """
    platforms = os.environ.get("JAX_PLATFORMS")
    accelerator = any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
    if not sys.platform.startswith("linux") or (platforms != "cpu" if platforms else accelerator):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # Another C library.
        return False
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_ARENA_MAX, 1)])
