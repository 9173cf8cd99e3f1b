"""How long a program takes to its first training step: ``python -m benchmarks.first_step MODEL``.

Batch 8. Prints JSON: seconds from the start of Python to the end of the step, and of these what compiling took, or
loading where the persistent cache holds the program.
"""

import json
import os
import sys
import time
from pathlib import Path

import jax

from benchmarks.workload import Workload, training
from resnet_jax import parallel
from resnet_jax.kernels import fast_kernels
from resnet_jax.models import variant
from resnet_jax.programs import cli


def main() -> None:
    cli.use_compilation_cache()
    name = sys.argv[1]
    workload, mesh = Workload(name, batch_size=8, size=variant(name).image_size), parallel.data_mesh()
    step, new_state = training(workload, fast_kernels(jax.default_backend(), mesh.size), mesh)
    batch = parallel.to_global(workload.batch(), parallel.sharded_batch(mesh))
    state = new_state()
    lowered = jax.jit(step).lower(state, batch)
    start = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(compiled(state, batch))
    print(json.dumps({"start": time.clock_gettime(time.CLOCK_BOOTTIME) - _started(), "compile": compile_seconds}))


def _started() -> float:
    """When this process started, in seconds since the machine did (Linux)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
