"""The one seam to the Hugging Face Hub: every network call of the package is here.

This file reads models and datasets; `repository` is one repository that is written to; `failures` says what a failed
call means.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError
from .failures import failure_of, is_network_failure

__all__ = [
    "HubModel",
    "cache_folder",
    "cached_model_folder",
    "download_files",
    "download_model",
    "download_texts",
    "find_model",
    "load_hub_dataset",
    "model_config",
    "model_files",
    "show_no_progress",
    "stored_elements",
    "weights_index",
    "without_bars",
]

PATIENCE_SECONDS: Final = 10.0
"""How long one look-up may take; the client's own downloads retry for about 25 s when there is no network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A model repository as the Hub describes it."""

    name: str
    """Repository id."""
    revision: str
    """Commit."""
    license: str | None
    """Licence identifier from the card."""
    license_name: str | None = None
    """Its name, where the identifier is `other`."""
    license_link: str | None = None
    """Where its text is, where the identifier is `other`."""
    is_private: bool = False
    """Whether only some accounts may know of it."""
    is_gated: bool = False
    """Whether its owner decides who may load it; its name and card are public all the same."""


def find_model(name: str, revision: str | None = None, token: str | None = None) -> HubModel | None:
    """Return what the Hub knows of a model, or None when the Hub is out of reach.

    Raises:
        ConfigError: If the Hub answers that there is no such model or revision, or no access to it.
    """
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi(token=token).model_info(name, revision=revision, timeout=PATIENCE_SECONDS)
    except errors.HFValidationError as error:
        raise ConfigError(f"model {name!r} is neither a folder here nor a Hub id such as owner/name") from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"model {name} has no revision {revision!r} on the Hub; see its list of commits") from error
    except errors.GatedRepoError as error:
        raise ConfigError(
            f"model {name} is gated; accept its terms on its Hub page and log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ConfigError(
            f"model {name} is not on the Hub, or is private; check the spelling, or log in with `hf auth login`"
        ) from error
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError):
        return None
    except Exception as error:
        if is_network_failure(error):
            return None
        raise
    if info.sha is None:
        raise ConfigError(f"the Hub names no commit for {name}; it has no files yet")
    card = info.card_data
    return HubModel(
        name=info.id,
        revision=info.sha,
        license=card.license if card else None,
        license_name=card.license_name if card else None,
        license_link=card.license_link if card else None,
        is_private=bool(info.private),
        is_gated=bool(info.gated),
    )


def download_texts(name: str, revision: str | None, wanted: re.Pattern[str], token: str | None = None) -> list[Path]:
    """Return the top-level files of a Hub model whose names are wanted, downloaded; none where it cannot be had."""
    from huggingface_hub import HfApi, errors, hf_hub_download

    try:
        listed = [
            file for file in HfApi(token=token).list_repo_files(name, revision=revision) if wanted.fullmatch(file)
        ]
        return [Path(hf_hub_download(name, file, revision=revision, token=token)) for file in listed]
    except (errors.HfHubHTTPError, errors.EntryNotFoundError, errors.OfflineModeIsEnabled, OSError):
        return []
    except Exception as error:
        if is_network_failure(error):
            return []
        raise


def model_files(name: str, revision: str | None = None, token: str | None = None) -> list[str] | None:
    """Return the files of a Hub model, or None when the Hub is out of reach.

    Raises:
        ConfigError: If the Hub answers that there is no such model or revision, or no access to it.
    """
    from huggingface_hub import HfApi

    model = find_model(name, revision, token)
    if model is None:
        return None
    with _told(f"the files of {name}"):
        return sorted(HfApi(token=token).list_repo_files(name, revision=model.revision))


def download_files(
    name: str, files: Sequence[str], revision: str | None = None, token: str | None = None, *, cached: bool = False
) -> Path:
    """Return the folder of the Hub's cache that holds these files of a model, all of one commit.

    Args:
        name: Repository id.
        files: Top-level files.
        revision: Branch, tag or commit; `main` if left out.
        token: Hub token.
        cached: Look into the cache alone, without the Hub.

    Raises:
        ConfigError: If one cannot be had.
    """
    from huggingface_hub import errors, hf_hub_download

    for file in files:
        try:
            with _told(f"{file} of {name}"):
                got = hf_hub_download(name, file, revision=revision, token=token, local_files_only=cached)
        except errors.LocalEntryNotFoundError as error:
            raise ConfigError(
                f"{name} is no folder here; as a Hub id, the Hub is out of reach and its cache has no {file} of it; "
                "check the path, or try again later"
            ) from error
        revision = Path(got).parent.name  # the cache's folder of a commit, whatever the branch is at by now
    return Path(got).parent


_WEIGHTS: Final = (".safetensors", ".bin")
_BESIDE_WEIGHTS: Final = (".json", ".model", ".txt", ".jinja")
"""Suffixes of a model's weights, the better kind first, and of its config, index and tokenizer."""


def download_model(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of the Hub's cache with all that loads a model and its tokenizer; None out of the Hub's reach.

    Raises:
        ConfigError: If a file cannot be had.
    """
    files = model_files(name, revision)
    if files is None:
        return None
    top = [file for file in files if "/" not in file]
    weights: list[str] = next((kind for suffix in _WEIGHTS if (kind := [f for f in top if f.endswith(suffix)])), [])
    return download_files(name, [*(f for f in top if f.endswith(_BESIDE_WEIGHTS)), *weights], revision)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Say in one line why something of the Hub could not be had."""
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalEntryNotFoundError:
        raise
    except Exception as error:
        if (failure := failure_of(error)) is None:
            raise
        raise ConfigError(f"{what} cannot be had: {failure.told}") from error


def model_config(name: str, revision: str | None = None) -> dict[str, Any] | None:
    """Return a Hub model's `config.json`, from the cache or by download, or None when it cannot be had.

    Raises:
        ConfigError: If the Hub answers that there is no such model.
    """
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(cached, str):
        return _read_config(Path(cached))
    model = find_model(name, revision)
    if model is None:
        return None
    try:
        return _read_config(Path(hf_hub_download(name, "config.json", revision=model.revision)))
    except (errors.EntryNotFoundError, errors.GatedRepoError):
        return None


def stored_elements(name: str, revision: str | None = None) -> dict[str, int] | None:
    """Return how many elements of each dtype a Hub model's safetensors files hold, or None when that is not known."""
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi().model_info(name, revision=revision, timeout=PATIENCE_SECONDS, expand=["safetensors"])
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.OfflineModeIsEnabled, OSError):
        return None
    except Exception as error:
        if is_network_failure(error):
            return None
        raise
    return dict(info.safetensors.parameters) if info.safetensors else None


def weights_index(name: str, revision: str | None = None) -> tuple[str, dict[str, Any]] | None:
    """Return the file name and content of a sharded Hub checkpoint's index, or None when there is none in reach."""
    from huggingface_hub import errors, hf_hub_download

    if find_model(name, revision) is None:
        return None
    for file_name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        try:
            return file_name, _read_config(Path(hf_hub_download(name, file_name, revision=revision)))
        except errors.EntryNotFoundError:
            continue
        except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError, ValueError):
            return None
        except Exception as error:
            if is_network_failure(error):
                return None
            raise
    return None


def _read_config(file: Path) -> dict[str, Any]:
    config = json.loads(file.read_text(encoding="utf8"))
    if not isinstance(config, dict):
        raise ConfigError(f"{file} holds no JSON object, so it is no model config")
    return config


def cached_model_folder(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of a wholly downloaded model in the Hub's cache, or None."""
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    has_weights = any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
    return folder if has_weights and (folder / "config.json").is_file() else None


def show_no_progress() -> None:
    """Leave the screen to our own lines: no bars of the client, and only its errors."""
    import logging

    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep the client from drawing bars meanwhile, across those of a training."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def cache_folder() -> Path:
    """Return this package's folder beside the Hub's cache (`HF_HOME`)."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "hf_lora_ext"


def load_hub_dataset(name: str, split: str, revision: str | None = None) -> tuple[Any, str | None]:
    """Return a split of a Hub dataset (cached or downloaded) and its commit, where that is known.

    Raises:
        ConfigError: If there is no such dataset, split or revision, or the Hub is out of reach.
    """
    from datasets import load_dataset
    from datasets.config import HF_DATASETS_CACHE
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import HfApi, errors

    known = "give a .jsonl, .csv or .parquet file, `builtin:python-docstrings`, or a Hub dataset id"
    try:
        commit = HfApi().dataset_info(name, revision=revision, timeout=PATIENCE_SECONDS).sha
    except (errors.HFValidationError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ConfigError(
            f"data {name!r}{at} is not a file here nor a dataset on the Hub you may read; {known}"
        ) from error
    except Exception as error:
        if not isinstance(
            error, (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError)
        ) and not is_network_failure(error):
            raise
        commit = None
    away = f"data {name!r} is not a file here, and the Hub is out of reach; {known}"
    # datasets keeps `owner/name` as `owner___name`; asking it for what is not there costs 25 s of retries.
    if commit is None and not (Path(HF_DATASETS_CACHE) / name.replace("/", "___")).is_dir():
        raise ConfigError(away)
    try:
        return load_dataset(name, split=split, revision=commit or revision), commit
    except ValueError as error:
        raise ConfigError(f"data {name}: {str(error).splitlines()[0]}; set data.split") from error
    except (DatasetNotFoundError, ConnectionError, OSError) as error:
        raise ConfigError(away) from error
