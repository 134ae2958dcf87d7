"""``farm push``."""

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli.output import say, say_error
from farm.errors import FarmError, InvalidInput, NotAllowed, Unavailable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_PLACE = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)/?")


def push(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="What farm export wrote.", show_default=False)
    ],
    place: Annotated[str, typer.Argument(metavar="hf://datasets/USER/NAME", show_default=False)],
    private: Annotated[
        bool, typer.Option("--private", help="If the repository is new, only you see it.")
    ] = False,
) -> None:
    """Upload an exported data set to the Hugging Face hub, as one commit. The token comes from
    HF_TOKEN or from hf auth login, the hub's address from HF_ENDPOINT. Files that are there
    already are not sent again, and shards that the data set no longer has are removed."""
    from farm.export.export import WHOLE, groups_of

    found = _PLACE.fullmatch(place)
    if found is None:
        raise InvalidInput(
            f"{place[:80]!r} is not a data set's place",
            field="PLACE",
            hint="write it like hf://datasets/USER/NAME",
        )
    groups = groups_of((folder / WHOLE).read_bytes()) if (folder / WHOLE).is_file() else None
    if groups is None:
        raise InvalidInput(
            f"{folder} is not a whole data set",
            field="FOLDER",
            hint="farm export JOB -o FOLDER --as parquet",
        )
    say(_upload(folder, found[1], private, set(groups)))
    say_error(f"{folder} is at {place}")


def _upload(folder: Path, repository: str, private: bool, groups: set[str]) -> str:
    """The commit's address; ``groups`` are the folders of the data set's shards."""
    from farm.export.export import WHOLE

    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalTokenNotFoundError,
        )

        # Of httpx2, and before version 2.0 of httpx.
        from huggingface_hub.errors import HTTPError as ClientError  # type: ignore[attr-defined]
    except ImportError:
        raise InvalidInput(
            "huggingface_hub is needed to reach the hub", hint="pip install huggingface-hub"
        ) from None
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="amused-farm")
    try:
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        # Only what an earlier push has left is deleted, not what somebody else keeps there.
        left = set()
        if WHOLE in api.list_repo_files(repository, repo_type="dataset"):
            left = groups | _groups_there(api, repository)
        commit = api.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=folder,
            commit_message="Data set of farm export",
            delete_patterns=sorted(f"{group}/*" for group in left) or None,
        )
    except HFValidationError as error:
        reason = str(error).splitlines()[0][:200]
        raise InvalidInput(f"the hub has no such name: {reason}", field="PLACE") from None
    except LocalTokenNotFoundError:
        raise NotAllowed("the hub wants a token", hint="hf auth login, or set HF_TOKEN") from None
    except HfHubHTTPError as error:
        raise _refused(repository, error.response.status_code) from None
    except (ClientError, OSError) as error:
        raise Unavailable(f"the hub cannot be reached: {error}") from None
    return str(commit.commit_url)


def _groups_there(api: "HfApi", repository: str) -> set[str]:
    """The folders of the shards of the data set that is on the hub; other splits are others."""
    from farm.export.export import WHOLE, groups_of

    with tempfile.TemporaryDirectory(prefix="farm-push-") as folder:
        file = api.hf_hub_download(repository, WHOLE, repo_type="dataset", local_dir=folder)
        return set(groups_of(Path(file).read_bytes()) or ())


def _refused(repository: str, status: int) -> FarmError:
    if status in (401, 403):
        return NotAllowed(
            f"the hub does not let you write to {repository}",
            hint="is HF_TOKEN one with write access to it?",
        )
    return Unavailable(f"the hub answers HTTP {status} for {repository}", hint="try again later")
