"""What must be set before JAX is imported."""

import os
import sys

_OF_JOBS = ("distributed", "coordinator_address", "num_processes", "process_id", "local_processes")


def quiet_runtime() -> None:
    """In a job of several processes the C++ runtime writes nothing unless TF_CPP_MIN_LOG_LEVEL says otherwise.

    When another process is gone it would dump its stacks; ``distributed`` says what has happened instead.
    """
    of_job = any(word.lstrip("-").partition("=")[0] in _OF_JOBS for word in sys.argv if word.startswith("-"))
    # JAX sets 1 itself, and a program that another with JAX starts inherits it.
    if of_job and os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "4"
