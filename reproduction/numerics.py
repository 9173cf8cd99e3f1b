"""Which code made a number: a hash of the modules that compute, which comments and docstrings do not change."""

import ast
import hashlib
import subprocess
from functools import cache, partial
from pathlib import Path

PACKAGES = ("models", "kernels", "data", "detection", "tasks", "train", "evaluation", "interop", "analysis")


@cache
def numerics_hash(root: Path) -> str:
    """Twelve hexadecimal digits for the code of ``PACKAGES`` under ``root``/resnet_jax.

    It changes with any statement of theirs, also with one that changes no number: it tells what may differ.
    """
    found = hashlib.sha256()
    for package in PACKAGES:
        folder = root / "resnet_jax" / package
        for path in sorted(folder.rglob("*.py")):
            found.update(f"{path.relative_to(root)}\n{_code(ast.parse(path.read_text()))}\n".encode())
    return found.hexdigest()[:12]


def commit(root: Path) -> str | None:
    """The commit of a checkout, with "+changes" if resnet_jax/ differs from it; None without one, or without git."""
    git = partial(subprocess.check_output, cwd=root, text=True, stderr=subprocess.DEVNULL)
    try:
        found = git(["git", "rev-parse", "HEAD"]).strip()
        changed = git(["git", "status", "--porcelain", "--", "resnet_jax"])
        return f"{found}{'+changes' if changed else ''}"
    except (OSError, subprocess.CalledProcessError):
        return None


def short(commit: str | None) -> str:
    """A commit as it is shown."""
    return "unknown" if commit is None else commit[:7] + ("+changes" if commit.endswith("+changes") else "")


def _code(node: object) -> str:
    """A syntax tree as text, without docstrings; the same in every version of Python, unlike ``ast.dump``."""
    if isinstance(node, list):
        return f"[{','.join(map(_code, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value is not None and value != []}
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node):
        fields["body"] = node.body[1:]
    return f"{type(node).__name__}({','.join(f'{name}={_code(value)}' for name, value in fields.items())})"
