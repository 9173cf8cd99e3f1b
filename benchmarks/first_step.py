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

from benchmarks.task import Task
from resnet_jax import cli, parallel
from resnet_jax.config import make_model
from resnet_jax.models import create_model
from resnet_jax.train.schedules import make_schedule
from resnet_jax.train.state import init_state
from resnet_jax.train.step import train_step


def main() -> None:
    cli.use_compilation_cache()
    name = sys.argv[1]
    task = Task(name, batch_size=8, size=create_model(name).image_size)
    config, mesh = task.config(), parallel.data_mesh()
    model, schedule = make_model(config, 1000 if task.imagenet else 10), make_schedule(config)
    batch = parallel.to_global(task.batch(), parallel.sharded_batch(mesh))
    state = init_state(config, model, (task.size, task.size, 3), mesh)
    lowered = jax.jit(lambda state, batch: train_step(config, model, schedule, state, batch)).lower(state, batch)
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
