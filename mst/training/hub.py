"""A checkpoint folder to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import httpx2
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from mst.models.loading import CONFIG, METRICS, WEIGHTS
from mst.training.settings import TrainingError

FILES = [CONFIG, WEIGHTS, METRICS, "README.md"]


def check_repository(repository: str) -> None:
    """Checks the name of a repository before a long training run ends with it.

    Raises:
        TrainingError: it is not "owner/name".
    """
    try:
        validate_repo_id(repository)
        if repository.count("/") != 1:
            raise HFValidationError
    except HFValidationError as error:
        raise TrainingError(f"{repository!r} is no repository on the hub; write owner/name.") from error


def push(folder: Path, repository: str, private: bool = True) -> str:
    """Uploads a checkpoint with its model card; the repository is made where there is none.

    Args:
        folder: with config.json, model.safetensors, metrics.json and README.md.
        repository: "owner/name".
        private: of a new repository; one that is there stays as it is.

    Returns:
        the repository's address.

    Raises:
        TrainingError: no token, no right to write, or no connection. The folder stays as it is.
    """
    try:
        if not get_token():
            raise TrainingError(_not_pushed(folder, repository, "no access token is at hand", log_in=True))
        api = HfApi()
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=repository,
            allow_patterns=FILES,
            commit_message="Checkpoint with its model card",
        )
        return str(address)
    except HfHubHTTPError as error:
        status = error.response.status_code
        reasons = {
            401: "the hub does not accept the access token",
            403: "the access token may not write there",
        }
        reason = reasons.get(status, f"the hub answered {status}")
        raise TrainingError(_not_pushed(folder, repository, reason, log_in=status in reasons)) from error
    except (OfflineModeIsEnabled, httpx2.HTTPError, ConnectionError) as error:
        reason = "there is no connection to the hub, or it does not answer"
        raise TrainingError(_not_pushed(folder, repository, reason, log_in=False)) from error


def _not_pushed(folder: Path, repository: str, reason: str, log_in: bool) -> str:
    remedy = "log in with `hf auth login` or set HF_TOKEN, and run" if log_in else "later, run"
    return (
        f"{folder} is complete, but was not pushed to {repository}: {reason}. To push it, {remedy} the same "
        "command again; nothing is trained twice."
    )
