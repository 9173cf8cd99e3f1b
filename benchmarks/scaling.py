"""Step time and efficiency of data-parallel training, on paper: python -m benchmarks.scaling

The model and its limits are in docs/scaling.md.
"""

from typing import NamedTuple


class Job(NamedTuple):
    """What decides the time of a step. Bandwidths in bytes/s, of one device; times in s.

    images_per_second: of one device alone, with batch images of its own a step. link: of the slowest link in the ring
    of the all-reduce, per device. latency: of one hop of it. hidden: the fraction of the compute time behind which the
    all-reduce can run. host_images: decoded a second by one host.
    """

    parameters: float = 25.56e6
    gradient_bytes: int = 4
    batch: int = 128
    images_per_second: float = 2500.0
    devices_per_host: int = 8
    local_link: float = 300e9
    link: float = 25e9
    latency: float = 10e-6
    hidden: float = 0.0
    host_images: float = 24_000.0


class Step(NamedTuple):
    """Seconds of each part of a step, of all of it, and the speed as a fraction of that many devices alone."""

    compute: float
    all_reduce: float
    input: float
    total: float
    efficiency: float

    @property
    def limit(self) -> str:
        """What a faster part of would make the step faster."""
        if self.input >= self.total:
            return "input"
        return "all-reduce" if self.total - self.compute > self.compute else "compute"


def step(job: Job, devices: int) -> Step:
    """The step of ``devices`` devices.

    A ring of n devices sends 2 (n - 1) / n of the gradients over each of its links, in 2 (n - 1) hops (Patarasuk and
    Yuan, 2009). Beyond a host it is taken in two levels: within the hosts, and between them over the slower link.
    """
    compute = job.batch / job.images_per_second
    size = job.parameters * job.gradient_bytes
    local = min(devices, job.devices_per_host)
    hosts = -(-devices // job.devices_per_host)
    # Each of a host's devices sends its own part of the gradients between the hosts, over its own link.
    all_reduce = _ring(size, local, job.local_link, job.latency)
    all_reduce += _ring(size / local, hosts, job.link, job.latency)
    visible = max(all_reduce - job.hidden * compute, 0.0)
    read = job.batch * local / job.host_images
    total = max(compute + visible, read)
    return Step(compute, all_reduce, read, total, compute / total)


def _ring(size: float, members: int, link: float, latency: float) -> float:
    return 2 * (members - 1) / members * size / link + 2 * (members - 1) * latency


CASES = {
    "100 Gb/s a host": Job(link=12.5e9 / 8),
    "the same, gradients in bfloat16": Job(link=12.5e9 / 8, gradient_bytes=2),
    "a 200 Gb/s link for each device": Job(),
    "that link, 4,000 images/s of input a host": Job(host_images=4_000),
}


def table() -> str:
    """Markdown."""
    lines = ["| case | devices | compute, ms | all-reduce, ms | input, ms | step, ms | efficiency | limit |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, job in CASES.items():
        for devices in (8, 64, 256, 1024):
            found = step(job, devices)
            times = " | ".join(f"{1000 * value:.1f}" for value in found[:4])
            lines.append(f"| {name} | {devices} | {times} | {100 * found.efficiency:.0f} % | {found.limit} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
