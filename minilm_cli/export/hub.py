"""Uploading an export to the Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it is not among its exports

from minilm_cli.base.errors import MinilmError, RunError


def check_repository(name: str) -> None:
    """Raise `MinilmError` if no repository can have this name."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise MinilmError(str(error), where=f"--push-to-hub {name}") from None


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a folder, making the repository if need be; returns its address. Raises `RunError` if that fails."""
    api = HfApi()
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload the distilled student")
    except (HfHubHTTPError, OSError) as error:
        raise RunError(
            f"the upload to {repository} failed: {str(error).splitlines()[0]}",
            hint=f"The export itself is complete, in {folder}. Log in with hf auth login, or set HF_TOKEN.",
        ) from error
    return str(url)
