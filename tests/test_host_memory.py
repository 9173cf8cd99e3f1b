import subprocess
import sys

import pytest

from resnet_jax import host_memory

# Takes and returns 64 MiB a few times from a thread, as XLA does, and counts the pages that the kernel had to clear.
PROGRAM = """
import ctypes, resource, sys, threading
from resnet_jax.host_memory import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
libc = ctypes.CDLL(None)
PR_SET_THP_DISABLE = 41
libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)  # With pages of 2 MiB there are few faults either way.
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def take():
    for _ in range(10):
        place = libc.malloc(64 << 20)
        ctypes.memset(place, 1, 64 << 20)
        libc.free(place)

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=take)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of the GNU C library")
@pytest.mark.extensive
def test_memory_that_is_freed_is_kept(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    faults = {}
    for mode in ("keep", "plain"):
        command = [sys.executable, "-c", PROGRAM, mode]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        done, count = result.stdout.split()
        assert done == ("True" if mode == "keep" else "None")
        faults[mode] = int(count)
    assert faults["keep"] < faults["plain"] / 4


@pytest.mark.parametrize("platforms", ["cuda", "tpu", "cuda,cpu"])
def test_nothing_is_done_for_an_accelerator(monkeypatch, platforms):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(host_memory.ctypes, "CDLL", None)
    assert not host_memory.keep_freed_memory()


def test_nothing_is_done_where_an_accelerators_plugin_is_installed(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(host_memory.ctypes, "CDLL", None)
    monkeypatch.setattr(host_memory.importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    assert not host_memory.keep_freed_memory()


def test_nothing_is_done_on_another_system(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(host_memory.sys, "platform", "darwin")
    monkeypatch.setattr(host_memory.ctypes, "CDLL", None)
    assert not host_memory.keep_freed_memory()
