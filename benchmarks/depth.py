"""What depth costs: compile time, memory and step time, unrolled against scanned, with and without remat.

    python -m benchmarks.depth --models resnet56 resnet110
    python -m benchmarks.depth --models resnet1202 --batch_size 8 --layouts scanned scanned+remat

Random images of 32 x 32, float32. Memory is what XLA plans for temporaries of one training step.
"""

import argparse
import statistics
import time
from typing import Any

import jax

from benchmarks.workload import Workload, training
from resnet_jax import parallel
from resnet_jax.host_memory import keep_freed_memory
from resnet_jax.kernels import fast_kernels

LAYOUTS: dict[str, dict[str, Any]] = {
    "unrolled": {"scan_blocks": False, "remat": False},
    "unrolled+remat": {"scan_blocks": False, "remat": True},
    "scanned": {"scan_blocks": True, "remat": False},
    "scanned+remat": {"scan_blocks": True, "remat": True},
}


def measure(name: str, layout: str, batch_size: int, num_steps: int) -> tuple[float, float, float | None]:
    """Seconds to trace and compile, MiB of temporaries, and the median seconds a step (None for no steps)."""
    workload, mesh = Workload(name, batch_size, 32, **LAYOUTS[layout]), parallel.data_mesh()
    step, new_state = training(workload, fast_kernels(jax.default_backend(), mesh.size), mesh)
    batch = parallel.to_global(workload.batch(), parallel.sharded_batch(mesh))
    state = new_state()

    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    seconds_to_compile = time.perf_counter() - start
    plan = compiled.memory_analysis()
    memory = plan.temp_size_in_bytes / 2**20 if plan else float("nan")
    times = []
    for _ in range(num_steps and num_steps + 3):  # The first ones grow the process.
        start = time.perf_counter()
        state, _ = compiled(state, batch)
        jax.block_until_ready(state)
        times.append(time.perf_counter() - start)
    return seconds_to_compile, memory, statistics.median(times[3:]) if times else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56", "resnet110"])
    parser.add_argument("--layouts", nargs="+", default=["unrolled", "scanned", "scanned+remat"], choices=LAYOUTS)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3, help="timed steps; 0 to compile only")
    arguments = parser.parse_args()
    keep_freed_memory()
    print(f"batch {arguments.batch_size}, {jax.devices()[0].device_kind}, jax {jax.__version__}\n")
    print("| network | blocks | compile (s) | temporaries (MiB) | step (s) |\n|---|---|---|---|---|")
    for name in arguments.models:
        for layout in arguments.layouts:
            seconds, memory, step = measure(name, layout, arguments.batch_size, arguments.steps)
            timed = "" if step is None else f"{step:.2f}"
            print(f"| {name} | {layout} | {seconds:.1f} | {memory:.0f} | {timed} |", flush=True)


if __name__ == "__main__":
    main()
