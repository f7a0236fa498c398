"""Exported encoders on the Hugging Face hub: a repository has the files of an encoder's folder, as timm reads them."""

from collections.abc import Mapping
from pathlib import Path

from ssl_equi.errors import EncoderError, UserError, described
from ssl_equi.export.folder import CONFIG_FILE, WEIGHTS_FILE

_NO_TOKEN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def download_encoder(repository: str) -> Path:
    """Local copy of a repository's two files; `OWNER/NAME`, perhaps with `@REVISION`."""
    from huggingface_hub import snapshot_download

    name, _, revision = repository.partition("@")
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except Exception as error:  # whatever the network, the hub's client or the disk raise
        raise EncoderError(
            f"hub:{repository} can't be downloaded ({described(error)}): check its name, connect to the network, or "
            "give a local folder of it"
        ) from error
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise EncoderError(f"hub:{repository} has no {file}: choose a repository that timm saved")
    return folder


def push_files(repository: str, files: Mapping[str, bytes], *, private: bool, message: str) -> str:
    """Puts files into a model repository as one commit, and makes the repository if there is none.

    Args:
        repository: `OWNER/NAME`.
        files: content by name; those of the same name are replaced, others stay.
        private: whether a repository that is made can be seen by its owner alone.

    Returns:
        the address of the repository.

    Raises:
        UserError: the name is none, there is no token, it may not write there, or the hub can't be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    owner, _, name = repository.partition("/")
    if not owner or not name:
        raise UserError(f"--repo is {repository!r}: give OWNER/NAME")
    if get_token() is None:
        raise UserError(f"{repository} can't be written without a token of the Hugging Face hub: {_NO_TOKEN}")
    api = HfApi()
    additions = [CommitOperationAdd(path, content) for path, content in files.items()]
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.create_commit(repository, additions, commit_message=message)
    except HFValidationError as error:
        raise UserError(f"--repo is {repository!r} ({described(error)}): give OWNER/NAME") from error
    except ValueError as error:  # what the hub has against the card's first lines
        reason = " ".join(str(error).split())
        raise UserError(
            f"the Hugging Face hub refuses what should go to {repository} ({reason}): export with --to timm, and push "
            "that folder once it is mended"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise UserError(f"the Hugging Face hub does not accept the token: {_NO_TOKEN}") from error
        if status in (403, 404):
            raise UserError(
                f"the token may not write to {repository} on the Hugging Face hub: {_NO_TOKEN} there, or give another "
                "--repo"
            ) from error
        raise UserError(f"{repository} can't be written ({described(error)}): try again later") from error
    except Exception as error:  # whatever the network, the hub's client or the disk raise
        raise UserError(
            f"the Hugging Face hub can't be reached ({described(error)}): connect to the network, or export with "
            "--to timm and push that folder later"
        ) from error
    return str(address)
