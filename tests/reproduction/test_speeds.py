from reproduction import speeds
from reproduction.document import Table, to_markdown
from reproduction.ledger import imported


def benchmark(suite, comparisons, device="1 x cpu"):
    environment = {"device": device, "processor": "2 cores of X", "versions": {"jax": "1.2"}}
    printed = {"suite": suite, "environment": environment}
    return imported(suite, printed | {"images_per_second": comparisons}, "python -m b", "", "0123456789", "1")


def test_steps_are_a_table_and_what_it_shows():
    sides = {
        "ours": [20.0, 20.0],
        "PyTorch": [10.0, 10.0],
        "PyTorch, compiled": [9.0, 9.0],
        "naive Flax": [8.0, 8.0],
        "ours, whole trainer": [19.0, 19.0],
    }
    record = benchmark("cpu", {"training, resnet20, batch 4": sides, "inference, resnet20": {"ours": [3.0]}})
    (table,) = [block for block in speeds.steps([record]) if isinstance(block, Table)]
    assert table.header == ["images/s (min-max), ratio", "resnet20, batch 4"]
    assert table.rows[0] == ["ours", "20.0 (20.0-20.0), 2.00"]
    text = to_markdown(speeds.steps([record]))
    assert (
        "resnet_jax trains resnet20 at 2.00 times the speed of the fastest PyTorch as installed, 2.50 times the speed "
        "of naive Flax; the whole trainer runs at 0.95 of the bare step." in text
    )
    assert "Medians of 2 rounds" in text and "PyTorch. 2 cores of X, jax 1.2; commit 0123456: `python -m b`" in text
    assert speeds.steps([]) == []


def test_steps_on_an_accelerator_say_on_which_and_that_a_side_was_left_out():
    sides = {"ours": [30.0], "PyTorch": [20.0]}
    record = benchmark("gpu", {"training, resnet50, bfloat16": sides}, device="1 x GPU Y")
    text = to_markdown(speeds.steps([record]))
    assert "1.50 times the speed of PyTorch, which was not compiled." in text
    assert "PyTorch. 1 x GPU Y, 2 cores of X, jax 1.2; commit" in text


def test_a_comparison_without_others_or_without_ours_is_a_table_alone():
    loops = {"1 step in a call": [30.0], "10 steps in a call": [60.0], "PyTorch": [20.0]}
    record = benchmark("gpu", {"training, resnet50": {"ours": [5.0]}, "training, resnet20": loops})
    text = to_markdown(speeds.steps([record]))
    assert "| 10 steps in a call |  | 60.0 (60.0-60.0), 3.00 |" in text and "| ours | 5.0 (5.0-5.0), 1.00 |  |" in text
    assert "resnet_jax trains" not in text


def test_input_is_decoding_and_the_trainer():
    trainer = {"bare step": [100.0], "bare loader": [500.0], "whole trainer": [90.0]}
    speeds_of = {
        "input_pipeline": {
            "title": "1 core",
            "images_per_second": {"JPEG": [200.0], "tf.data": [100.0]},
            "disk_kB": {"JPEG": 112, "tf.data": 112},
        },
        "streaming_train": {"title": "resnet18", "images_per_second": trainer},
    }
    text = to_markdown(speeds.inputs([benchmark("input", speeds_of)]))
    assert "| JPEG | 200 (200-200), 2.00 | 112 kB |" in text
    assert "resnet18: " in text and "the trainer reaches 0.90 of its slower part" in text
    assert speeds.inputs([benchmark("cpu", {"training, resnet20": {"ours": [1.0]}})]) == []
