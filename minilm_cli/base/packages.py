"""Optional packages: the error for one that is not installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from minilm_cli.base.errors import MinilmError

#: Optional packages, and our extra that installs each.
EXTRAS = {
    "backports.zstd": "zstd",
    "datasets": "datasets",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "sentence-transformers": "sentence-transformers",
    "sentencex": "sentences",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}


def missing_package(package: str, needed_by: str, *, where: str | None = None) -> MinilmError:
    """The error for what needs an optional package that is not installed.

    Its hint names the package instead of our extra: that is right in every shell, and if minilm runs from a clone.
    """
    assert all(name in EXTRAS for name in package.split()), package
    return MinilmError(f"{needed_by} needs the package {package}", where=where, hint=f"pip install {package}")


def require(packages: Sequence[str], needed_by: str) -> None:
    """Raise `MinilmError` if an optional package, whose module has the same name, is not installed."""
    missing = [package for package in packages if find_spec(package.replace("-", "_")) is None]
    if missing:
        raise missing_package(" ".join(missing), needed_by)
