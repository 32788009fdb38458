"""Optional packages: the error for one that is not installed."""

from __future__ import annotations

from minilm_cli.base.errors import MinilmError

#: Optional packages, and our extra that installs each.
EXTRAS = {
    "backports.zstd": "zstd",
    "datasets": "datasets",
    "sentencex": "sentences",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}


def missing_package(package: str, needed_by: str, *, where: str | None = None) -> MinilmError:
    """The error for what needs an optional package that is not installed.

    Its hint names the package instead of our extra: that is right in every shell, and if minilm runs from a clone.
    """
    assert package in EXTRAS, package
    return MinilmError(f"{needed_by} needs the package {package}", where=where, hint=f"pip install {package}")
