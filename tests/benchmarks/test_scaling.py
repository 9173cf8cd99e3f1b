"""The model of docs/scaling.md against figures worked out by hand."""

from pathlib import Path

import pytest

from benchmarks.scaling import Job, step, table

ROOT = Path(__file__).resolve().parent.parent.parent


def test_one_device_has_no_all_reduce():
    found = step(Job(batch=100, images_per_second=1000), 1)
    assert found.total == pytest.approx(0.1) and found.all_reduce == 0 and found.efficiency == 1


def test_a_ring_within_a_host():
    # 4 devices: 2 * 3/4 of 100 MB over 1 GB/s is 150 ms, and 6 hops of 1 ms.
    job = Job(parameters=25e6, batch=100, images_per_second=1000, local_link=1e9, latency=1e-3, host_images=1e9)
    found = step(job, 4)
    assert found.all_reduce == pytest.approx(0.156)
    assert found.total == pytest.approx(0.256) and found.limit == "all-reduce"


def test_between_hosts_each_device_sends_its_own_part():
    # 2 hosts of 4: 150 ms within, then 2 * 1/2 of 25 MB over 0.5 GB/s is 50 ms between them.
    job = Job(parameters=25e6, devices_per_host=4, local_link=1e9, link=0.5e9, latency=0.0)
    assert step(job, 8).all_reduce == pytest.approx(0.2)


def test_input_is_the_limit_where_a_host_reads_too_slowly():
    found = step(Job(batch=100, images_per_second=1000, host_images=4000), 8)
    assert found.input == pytest.approx(0.2) == found.total and found.limit == "input"
    assert found.efficiency == pytest.approx(0.5)


def test_a_part_of_the_compute_time_can_hide_the_all_reduce():
    job = Job(parameters=25e6, batch=100, images_per_second=1000, local_link=1e9, latency=1e-3, host_images=1e9)
    # 156 ms of all-reduce beside 100 ms of compute.
    assert step(job._replace(hidden=0.5), 4).total == pytest.approx(0.1 + 0.106)
    assert step(job._replace(hidden=1.0), 4).total == pytest.approx(0.1 + 0.056)
    assert step(job._replace(hidden=1.0, local_link=2e9), 4).efficiency == 1


def test_the_table_of_the_document_is_the_models():
    assert table() in (ROOT / "docs" / "scaling.md").read_text()
