"""What the command-line programs share: the config flag, and errors as one line."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections.config_flags import config_flags
from pydantic import ValidationError

from resnet_jax import config as schema
from resnet_jax import distributed, parallel
from resnet_jax.config import Config
from resnet_jax.data.cache import cache_dir
from resnet_jax.errors import UserError, one_line
from resnet_jax.host_memory import keep_freed_memory
from resnet_jax.launch import LAUNCHED, launch
from resnet_jax.train.signals import Stopped

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Recipe: a file of configs/, as in FILE.py or FILE.py:MEMBER. Any key can be set as --config.key=value.",
    lock_config=False,
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other processes of a job: found by itself on TPU pods, Slurm, Open MPI, Kubernetes."
)
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "Join a job by hand: HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes the job has.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "The number of this one, from 0.", lower_bound=0)
_LOCAL_PROCESSES = flags.DEFINE_integer("local_processes", None, "Start a job of so many on this host.", lower_bound=1)
_START_TIMEOUT = flags.DEFINE_float("start_timeout", 300, "Seconds to wait for the other processes.", lower_bound=1)
_LOST_AFTER = flags.DEFINE_float("lost_after", 60, "Seconds of silence after which one is lost.", lower_bound=2)


class _ConfigParser(config_flags.ConfigFileFlagParser):
    """Loads the typed config of a file, and shows ml_collections all the keys that may be set."""

    config: Config | None = None

    def parse(self, path: str) -> Any:
        self.config = None  # Of an earlier --config.
        loaded = super().parse(_installed(path))
        if isinstance(loaded, Config):
            self.config = loaded
            return schema.to_flags(loaded)
        getattr(loaded, "keys", None)  # A file that failed to load says so only when it is used.
        name = type(loaded).__name__.removesuffix("Type")
        raise UserError(f"get_config() of {path.partition(':')[0]} returns {name}; it must return a Config")


_PARSER = _ConfigParser("config", lock_config=False)
flags.FLAGS["config"].parser = _PARSER


def run(
    main: Callable[..., None],
    module: str,
    positional: str | None = None,
    config: bool = True,
    config_optional: bool = False,
    jobs: bool = True,
) -> None:
    """Parses the flags and calls ``main(config)``, or ``main(config, arguments)`` where ``positional`` names them.

    ``module`` is the program's, whose docstring and flags --help shows. Without ``config`` the program has no --config,
    and it is ``main(arguments)``; with ``config_optional`` the config is None where --config is not given. A program
    without ``config`` or ``jobs`` is for one process.

    A fault that the user can fix is one line on stderr and exit status 2; a run that a signal stopped with its state
    saved exits with 128 + the signal's number. Anything else is our own fault and keeps its traceback.
    """

    def checked_main(argv: list[str]) -> None:
        keep_freed_memory()
        use_compilation_cache()
        logging.set_verbosity(logging.FATAL)  # Orbax logs the errors that it raises, with tracebacks; we report them.
        try:
            joining = _DISTRIBUTED.value or any(
                flag.value is not None for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)
            )
            if not (config and jobs) and (joining or _LOCAL_PROCESSES.value is not None):
                raise UserError("this program is for one process; leave --distributed and the like out")
            # Those that it starts have the flag, too, maybe out of a --flagfile.
            if _LOCAL_PROCESSES.value is not None and LAUNCHED not in os.environ:
                if any(flag.value is not None for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)):
                    raise UserError("--local_processes starts a job of its own; leave the other job's address out")
                launch(_LOCAL_PROCESSES.value, sys.orig_argv)
            if positional and len(argv) == 1:
                raise UserError(f"{positional} is missing; name at least one after the flags")
            if not positional and len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}; flags begin with --")
            if not config:
                main(argv[1:])
                return
            chosen = _chosen_config()
            if chosen is None and not config_optional:
                raise UserError("--config is missing; give a file of configs/, such as configs/quickstart.py")
            if joining:
                job = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
                distributed.start(*job, _START_TIMEOUT.value, _LOST_AFTER.value)
            main(chosen, *([argv[1:]] if positional else []))
            distributed.finish()
        except UserError as error:
            _fail(str(error))
        except OSError as error:  # A full disk, a folder where a file should be, a share that went away.
            _fail(f"{one_line(error)}; fix that and run the same command again")
        except Stopped as stopped:
            if parallel.is_main_process():
                print(stopped, file=sys.stderr)
            distributed.finish()
            sys.exit(128 + stopped.signum)
        except Exception as error:
            if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
                _fail(
                    f"the memory of a device is full ({one_line(error)}); lower config.batch_size (in an evaluation "
                    f"config.eval_batch_size), or set config.accumulate_steps or config.model.remat"
                )
            if not distributed.active():
                raise
            if isinstance(error, jax.errors.JaxRuntimeError):
                distributed.wait_for_news()
            distributed.fail(f"it crashed ({one_line(error)}), see its own messages", 1, traceback.print_exc)
            _leave(1)

    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # The shell closed it.
            setattr(sys, stream, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", errors="replace"))
    sys.unraisablehook = _report
    if {"--help", "-help", "--helpshort", "-h"} & set(sys.argv[1:]):
        print(f"{(sys.modules[module].__doc__ or '').strip()}\n\nFlags:\n{flags.FLAGS.module_help(module)}")
        sys.exit(0)  # absl's own status is 1.
    app.run(checked_main, flags_parser=_parse_flags)


def _chosen_config() -> Config | None:
    """The file's config with what the command line changes; None without --config."""
    if not flags.FLAGS["config"].present or _PARSER.config is None:
        return None
    given = config_flags.get_override_values(flags.FLAGS["config"])
    return schema.from_flags(_PARSER.config, {key: str(value) for key, value in given.items()})


def _installed(path: str) -> str:
    """The recipe that comes along, for FILE.py or configs/FILE.py, with or without the suffix, where there is none."""
    file, colon, member = path.partition(":")
    bare = Path(file).parent in (Path(), Path("configs"))  # Another folder is a mistake.
    if bare and not os.path.isfile(file):  # Unlike pathlib's it raises nothing for names that no file can have.
        package = Path(schema.__file__).parent
        for folder in (package / "configs", package.parent / "configs"):  # Of a wheel, and of a checkout.
            for name in (Path(file).name, f"{Path(file).name}.py"):
                if os.path.isfile(folder / name):
                    return f"{folder / name}{colon}{member}"
    return path


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk for the next start, unless JAX_COMPILATION_CACHE_DIR says where already."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except Exception as error:  # A config file is Python code, and ml_collections parses overrides while flags are.
        _fail(_explain(argv, error))


def _explain(argv: list[str], error: Exception) -> str:
    """What went wrong: in the config file, with a flag, with the file's path, or with the name of a key."""
    given = []
    for arg, after in zip(argv, [*argv[1:], ""], strict=True):
        flag, equals, value = arg.lstrip("-").partition("=")
        if arg.startswith("-"):
            given.append((flag, value if equals else after))
    paths = [value for flag, value in given if flag == "config" and value]
    file, _, member = paths[-1].partition(":") if paths else ("", "", "")
    path = Path(file)
    root: BaseException = error
    while root.__cause__ or root.__context__:  # absl and ml_collections wrap what the file raised.
        root = root.__cause__ or root.__context__ or root
    trace = traceback.extract_tb(root.__traceback__)
    lines = [frame.lineno for frame in trace if os.path.realpath(frame.filename) == os.path.realpath(path)]
    if lines:
        if isinstance(root, UserError):  # It may be of the member, and says what to do.
            return f"{path}, line {lines[-1]}: {root}"
        said = schema.explain(root) if isinstance(root, ValidationError) else f"{type(root).__name__}: {one_line(root)}"
        return f"{path}, line {lines[-1]}: {said}; fix the file"
    if isinstance(root, UserError):
        return str(root)
    if isinstance(root, TypeError) and "get_config()" in str(root) and member:
        return schema.no_members(str(path), member)
    for flag, value in given:
        key = flag.removeprefix("config.")
        if flag.startswith("config.") and schema.is_section(key):
            return schema.whole_section(key, value)
        if flag.startswith("config.") and not schema.is_key(key):
            return schema.unknown_key(key)
    if not paths and any(flag.startswith("config.") for flag, _ in given):
        return "--config is missing, whose keys --config.key=value sets; give a file of configs/"
    if paths and not os.path.isfile(path) and not isinstance(error, flags.UnrecognizedFlagError):
        return f"there is no config file {path}; the recipes are in configs/"
    if isinstance(error, flags.Error) or not paths:
        return one_line(error)
    return f"{type(error).__name__}: {one_line(error)}; correct {path} or the --config.key=value flags"


def _report(unraisable: Any) -> None:
    """Prints what Python cannot raise, but where TensorStore's threads have no one to tell of a failed write.

    The write's own error is reported by the thread that waits for it.
    """
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)


def _fail(message: str) -> NoReturn:
    message = " ".join(message.split())
    distributed.fail(message, 2, lambda: print(f"error: {message}", file=sys.stderr, flush=True))
    if distributed.active():
        _leave(2)
    sys.exit(2)


def _leave(status: int) -> NoReturn:
    """Ends the process without JAX's farewell to the others, which waits for them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
