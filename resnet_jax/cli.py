"""What the command-line programs share: the config flag, and errors as one line."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from resnet_jax import parallel, recipes
from resnet_jax.config import flatten, unknown_key
from resnet_jax.data.cache import cache_dir
from resnet_jax.errors import UserError, one_line
from resnet_jax.host_memory import keep_freed_memory
from resnet_jax.train.signals import Stopped

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment: a file of configs/. Any key can be set as --config.key=value.", lock_config=False
)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes of a multi-host job.")


def run(main: Callable[..., None], positional: str | None = None, config: bool = True) -> None:
    """Parses the flags and calls ``main(config)``, or ``main(config, arguments)`` where ``positional`` names them.

    Without ``config`` the program has no --config, and it is ``main(arguments)``.

    A fault that the user can mend is one line on stderr and exit status 2; a run that a signal stopped in good order
    exits with 128 + the signal's number. Anything else is our own fault and keeps its traceback.
    """

    def checked_main(argv: list[str]) -> None:
        keep_freed_memory()
        use_compilation_cache()
        logging.set_verbosity(logging.FATAL)  # Orbax logs the errors that it raises, with tracebacks; we report them.
        try:
            if positional and len(argv) == 1:
                raise UserError(f"{positional} is missing; name at least one after the flags")
            if not positional and len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}; flags begin with --")
            if not config:
                if _DISTRIBUTED.value:
                    raise UserError("this program is for one host; leave --distributed out")
                main(argv[1:])
                return
            if not flags.FLAGS["config"].present:
                raise UserError("--config is missing; give a file of configs/, such as configs/quickstart.py")
            if not isinstance(_CONFIG.value, ConfigDict):
                path, kind = config_flags.get_config_filename(flags.FLAGS["config"]), type(_CONFIG.value).__name__
                raise UserError(
                    f"get_config() of {path} returns {kind.removesuffix('Type')}; it must return a ConfigDict"
                )
            if _DISTRIBUTED.value:
                parallel.start_distributed()
            main(_CONFIG.value, *([argv[1:]] if positional else []))
        except UserError as error:
            _fail(str(error))
        except OSError as error:  # A full disk, a folder where a file should be, a share that went away.
            _fail(f"{one_line(error)}; mend that and run the same command again")
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            sys.exit(128 + stopped.signum)

    app.run(checked_main, flags_parser=_parse_flags)


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk for the next start, unless JAX_COMPILATION_CACHE_DIR says where already."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        remaining = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _CONFIG.value.items()  # A file that failed to load says so only when it is used.
        return remaining
    except Exception as error:  # A config file is Python code, and ml_collections parses overrides while flags are.
        _fail(_explain(argv, error))


def _explain(argv: list[str], error: Exception) -> str:
    """What went wrong: in the config file, with a flag, with the file's path, or with the name of a key."""
    paths = []
    for arg, after in zip(argv, [*argv[1:], ""], strict=True):
        flag, equals, value = arg.lstrip("-").partition("=")
        if arg.startswith("-") and flag == "config":
            paths.append(value if equals else after)
    path = Path(paths[-1]) if paths else Path()
    root: BaseException = error
    while root.__cause__ or root.__context__:  # absl and ml_collections wrap what the file raised.
        root = root.__cause__ or root.__context__ or root
    trace = traceback.extract_tb(root.__traceback__)
    lines = [frame.lineno for frame in trace if Path(frame.filename).resolve() == path.resolve()]
    if lines:
        kind = "" if isinstance(root, UserError) else f"{type(root).__name__}: "
        return f"{path}, line {lines[-1]}: {kind}{one_line(root)}; mend the file"
    if isinstance(error, flags.Error):
        return one_line(error)
    if not path.is_file():
        return f"there is no config file {path}; the experiments are in configs/"
    for arg in argv:
        key = arg.lstrip("-").split("=")[0].removeprefix("config.")
        if arg.lstrip("-").startswith("config.") and key not in flatten(recipes.base()):
            return unknown_key(key)
    return f"{type(error).__name__}: {one_line(error)}; correct {path} or the --config.key=value flags"


def _fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
