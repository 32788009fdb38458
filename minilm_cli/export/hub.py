"""Uploading exports to the Hub."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, is_offline_mode
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is of httpx, or of httpx2 later
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it is not among its exports

from minilm_cli.base.errors import Interrupted, MinilmError, RunError
from minilm_cli.models.hub import quiet, reason

_CARD = "README.md"

_LOG_IN = "Log in with hf auth login, or set HF_TOKEN to a token that may write."

#: What to do about a status that the Hub answers with.
_REMEDIES = {
    401: _LOG_IN,
    402: "See the billing settings of the account.",
    403: "The token may lack the right to write there, or the account has no storage left.",
    404: "Check the name. A token without access does not see the repository.",
    413: "The Hub accepts no more data; see the storage of the account.",
    429: "Wait a while: there were too many requests.",
}


def check_access(repository: str) -> None:
    """Find out before the work whether the upload can succeed, as far as the Hub tells.

    Raises `MinilmError` if the name, the offline mode or the token rules it out, `RunError` if the Hub cannot be asked.
    """
    where = f"--push-to-hub {repository}"
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise MinilmError(str(error), where=where) from None
    if is_offline_mode():
        hint = "Unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, or leave out --push-to-hub."
        raise MinilmError("offline mode allows no upload", where=where, hint=hint)
    try:
        user = HfApi().whoami()
    except LocalTokenNotFoundError:
        raise MinilmError("an upload needs a token for the Hub", where=where, hint=_LOG_IN) from None
    except Exception as error:  # besides the Hub's, the errors of a token's renewal
        message, remedy = _explain(error)
        refused = isinstance(error, HfHubHTTPError) and error.response.status_code == HTTPStatus.UNAUTHORIZED
        raise (MinilmError if refused else RunError)(message, where=where, hint=remedy) from error
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise MinilmError("the token may only read", where=where, hint=_LOG_IN)
    owner = repository.rpartition("/")[0]
    owners = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
    # Only of an ordinary token is it known where it may write.
    if role == "write" and owner and owner.lower() not in map(str.lower, owners):
        hint = f"Instead of {owner}, give one of: {', '.join(owners)}"
        raise MinilmError(f"the token of {user['name']} may not write in {owner}", where=where, hint=hint)


def upload(exports: Mapping[str, Path], repository: str, *, private: bool) -> str:
    """Upload the folders of exports, by format, into one repository in one commit; returns the repository's address.

    private: of a repository that does not exist yet. Raises `RunError` if it fails.
    """
    options = " --private" if private else ""
    commands = [f"    hf upload {repository} {shlex.quote(str(folder))}{options}" for folder in _in_order(exports)]
    kept = "\n".join(("The export is complete. To upload it:", *commands))
    api = HfApi()
    try:
        with quiet():
            created = api.create_repo(repository, private=private, exist_ok=True)
            additions = [CommitOperationAdd(path, file) for path, file in files_of(exports).items()]
            api.create_commit(created.repo_id, additions, commit_message="Upload the distilled student")
    except KeyboardInterrupt:
        raise Interrupted(f"uploading to {repository}", signal.SIGINT, hint=kept) from None
    except Exception as error:  # nothing of ours runs inside; the errors are those of HTTP, of the Hub and of hf_xet
        message, remedy = _explain(error)
        hint = "\n".join(filter(None, (remedy, kept)))
        raise RunError(f"the upload to {repository} failed: {message}", hint=hint) from error
    return str(created)


def files_of(exports: Mapping[str, Path]) -> dict[str, Path]:
    """The files of exports by their path in a repository that holds all of them, with the last export's model card."""
    files = {
        file.relative_to(folder).as_posix(): file
        for folder in _in_order(exports)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    card = [*exports.values()][-1] / _CARD
    return files | ({_CARD: card} if card.exists() else {})


def _in_order(exports: Mapping[str, Path]) -> list[Path]:
    """The folders of exports, such that a later one's files may replace those of an earlier one.

    The formats agree on what they share, except on the tokenizer: that of `hf` may set a fixed length.
    """
    return [exports[name] for name in sorted(exports, key=lambda name: name != "hf")]


def _explain(error: BaseException) -> tuple[str, str | None]:
    """In a line, why the Hub cannot be used; and what to do about it, if that is known."""
    # The failed upload of a single file is wrapped.
    while not isinstance(error, HTTPError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        said = (error.server_message or "").partition("\n")[0].rstrip(".")
        answer = f"the Hub answered {status} {error.response.reason_phrase}".rstrip()
        return f"{answer}: {said}" if said else answer, _REMEDIES.get(status)
    if isinstance(error, HTTPError):
        return f"no connection to {constants.ENDPOINT}: {reason(error)}", "Check the network, HF_ENDPOINT and proxies."
    return reason(error), None
