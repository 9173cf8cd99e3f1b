"""What many saves cost a training process in memory: one after the other, in one process.

python -m benchmarks.saves --saves 6000 [--out saves.csv]

The state is a small network's with its momentum, 0.6 MB, in a temporary folder. Prints the resident memory as it goes;
``--out`` gets all of it, a line of saves, MiB and seconds each.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import jax

from benchmarks.soak import usage
from resnet_jax import parallel
from resnet_jax.models import create_model
from resnet_jax.tasks.classification import ClassificationTask
from resnet_jax.train import checkpoint
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.state import init_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saves", type=int, default=6000)
    parser.add_argument("--every", type=int, default=100, help="saves between two readings")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    task = ClassificationTask(create_model("resnet20", stage_sizes=(1, 1, 1)))
    state = init_state(task, SGD().make(), 0, 0.0, 0.0, (32, 32, 3), parallel.data_mesh())
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    print(f"a state of {size / 1e6:.2f} MB")
    begun = time.monotonic()
    lines = ["saves,mib,seconds"]
    with tempfile.TemporaryDirectory() as folder:
        manager = checkpoint.open_checkpoints(Path(folder), 2, "top1_error")
        for step in range(1, args.saves + 1):
            checkpoint.save(manager, step, state, {"top1_error": 50.0})
            if step % args.every == 0:
                checkpoint.wait(manager)
                lines.append(f"{step},{usage(os.getpid())['memory_mib']},{time.monotonic() - begun:.0f}")
                print(lines[-1], flush=True)
        checkpoint.close(manager)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
