"""Optional packages: the error for one that is not installed."""

from __future__ import annotations

from importlib.util import find_spec

from minilm_cli.base.errors import MinilmError

#: Our extras, and the packages that each installs.
EXTRAS = {
    "datasets": ("datasets",),
    "evaluate": ("scikit-learn",),
    "mteb": ("mteb",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "sentence-transformers": ("sentence-transformers",),
    "sentences": ("sentencex",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "zstd": ("backports.zstd",),
}

#: Modules whose names are not those of their packages.
_MODULES = {"scikit-learn": "sklearn"}


def missing_package(extra: str, needed_by: str, *, where: str | None = None) -> MinilmError:
    """The error for what needs the packages of an extra that is not installed.

    Its hint names the packages instead of the extra: that is right in every shell, and if minilm runs from a clone.
    """
    packages = EXTRAS[extra]
    named = f"the package{'s' * (len(packages) > 1)} {', '.join(packages)}"
    return MinilmError(f"{needed_by} needs {named}", where=where, hint=f"pip install {' '.join(packages)}")


def is_installed(extra: str) -> bool:
    """Whether the packages of an extra are there."""
    return all(find_spec(_MODULES.get(package, package.replace("-", "_"))) for package in EXTRAS[extra])


def require(extra: str, needed_by: str) -> None:
    """Raise `MinilmError` if a package of an extra is not installed."""
    if not is_installed(extra):
        raise missing_package(extra, needed_by)
