"""Checkpoints from the Hugging Face hub, through huggingface_hub and its cache; nothing is ever run
from them.

First the small files, so that a model of another kind is refused before its weights are downloaded;
then the weights that the index names.
"""

import re
from pathlib import Path
from typing import Any

from .config import read_config
from .errors import ModelFormatError
from .json_file import read_json
from .load_progress import LoadProgress, hub_bar
from .weight_files import INDEX, SINGLE

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    INDEX,
)

# Packages whose errors are the connection's, in one or another version of huggingface_hub.
_TRANSPORTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "hf_xet")


def download(
    hub_id: str, *, revision: str | None, local_files_only: bool, progress: LoadProgress
) -> Path:
    """The folder of a snapshot in the hub's cache (HF_HOME, HF_HUB_OFFLINE and HF_TOKEN are
    honoured).

    Raises OSError that says what to do: no such model or no access, no such revision, offline and
    not in the cache, connection trouble; and what `read_config` raises for a model of another kind.
    """
    fetch = _Fetcher(hub_id, revision, local_files_only, progress)
    folder = fetch(list(SMALL_FILES), revision)
    read_config(folder / "config.json")
    return fetch(_weight_files(folder), folder.name)


def _weight_files(folder: Path) -> list[str]:
    """Names of the weight files: model.safetensors when there is no index."""
    if not (folder / INDEX).exists():
        return [*SMALL_FILES, SINGLE]
    names = read_json(folder / INDEX).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ModelFormatError(f"{folder / INDEX}: weight_map must map tensor names to file names")
    # A pattern character would match other files of the repository; no real shard has one.
    return [
        *SMALL_FILES,
        *sorted({name for name in names.values() if not set(name) & set("*?[]/\\")}),
    ]


class _Fetcher:
    def __init__(
        self, hub_id: str, revision: str | None, local_files_only: bool, progress: LoadProgress
    ) -> None:
        self.hub_id, self.revision = hub_id, revision
        self.local_files_only, self.progress = local_files_only, progress

    def __call__(self, names: list[str], revision: str | None) -> Path:
        from huggingface_hub import errors, snapshot_download

        at = f" at revision {self.revision!r}" if self.revision else ""
        try:
            folder = snapshot_download(
                self.hub_id,
                revision=revision,
                allow_patterns=names,
                local_files_only=self.local_files_only,
                tqdm_class=self._bar(),
            )
        except errors.GatedRepoError as error:
            raise OSError(
                f"{self.hub_id!r}: access is gated; accept its conditions on huggingface.co and "
                "log in (`hf auth login`, or set HF_TOKEN)"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise OSError(
                f"{self.hub_id!r}: no such model on the hub, or it is private; check the name, or "
                "log in (`hf auth login`, or set HF_TOKEN)"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise OSError(
                f"{self.hub_id!r}: no such revision {self.revision!r}; give a branch, a tag or a "
                "commit"
            ) from error
        except errors.LocalEntryNotFoundError as error:
            raise OSError(self._absent(at, error)) from error
        except errors.HFValidationError as error:
            raise ValueError(f"{self.hub_id!r}: not a valid hub id or revision: {error}") from error
        except errors.HfHubHTTPError as error:
            raise OSError(
                f"{self.hub_id!r}{at}: the hub answered with an error ({error}); try again later, "
                "it resumes"
            ) from error
        except Exception as error:
            if type(error).__module__.split(".")[0] not in _TRANSPORTS:
                raise
            raise OSError(
                f"{self.hub_id!r}{at}: the connection failed ({error}); run it again, it resumes"
            ) from error
        return Path(folder)

    def _bar(self) -> Any:
        return hub_bar(self.progress)

    def _absent(self, at: str, error: Exception) -> str:
        from huggingface_hub import constants

        if self.local_files_only:
            why, advice = "local_files_only=True", "load it once without local_files_only"
        elif constants.HF_HUB_OFFLINE:
            why, advice = "HF_HUB_OFFLINE is set", "load it once with HF_HUB_OFFLINE=0"
        else:
            why, advice = (
                f"the hub could not be reached ({error})",
                "check the connection and try again",
            )
        return (
            f"{self.hub_id!r}{at} is not (completely) in the cache {constants.HF_HUB_CACHE} and "
            f"{why}; {advice}, or give the path of a folder that holds the model"
        )
