"""Whether what the Hub holds is what was sent, and an adapter that loads: found out by downloading it anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..adapters.peft_seam import adapter_tensors, load_saved
from ..adapters.stored_adapter import read_stored_adapter
from ..errors import PushError
from ..hub.landing import RemoteFile
from ..hub.repository import Repository
from .preflight import Release, ReleasedFile, identified
from .release import CONFIG, WEIGHTS, sort_out

__all__ = ["Verified", "verify_push", "verify_release"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A published adapter that was downloaded and found whole."""

    repo_id: str
    """Where."""
    commit: str
    """The commit."""
    files: Mapping[str, str]
    """Path → SHA-256 of what was downloaded."""
    parameters: int
    """Numbers in the adapter."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "repo_id": self.repo_id, "commit": self.commit, "files": dict(self.files), "parameters": self.parameters,
        }  # fmt: skip


def verify_release(repository: Repository, commit: str, release: Release, model: Any = None) -> tuple[str, ...]:
    """Download a commit into an empty cache and hold it against what was sent.

    Args:
        repository: Where it is.
        commit: What to download.
        release: What was sent.
        model: The model in memory that it came from, where there is one: its weights, and its answers with the
            downloaded ones in their place, must be the same.

    Returns:
        What was compared: `bytes`, `peft`, `weights`, `answers`.

    Raises:
        PushError: If a byte differs, or peft loads another adapter.
    """
    with TemporaryDirectory(prefix="hf-lora-verify-", ignore_cleanup_errors=True) as cache:
        folder = repository.download(commit, list(release.files), Path(cache))
        for path, file in release.files.items():
            if (found := identified(folder / path)).sha256 != file.sha256:
                raise PushError(
                    f"{repository.id} at {commit}: {path} came back with SHA-256 {found.sha256}, sent was "
                    f"{file.sha256}; the Hub holds something else: push again, and tell its support"
                )
        tensors = load_saved(folder)
        if (loaded := {name: tuple(t.shape) for name, t in tensors.items()}) != dict(release.stored.shapes):
            differ = sorted(set(loaded.items()) ^ set(release.stored.shapes.items()))[0][0]
            raise PushError(f"{repository.id} at {commit}: peft loads {differ} otherwise than it was sent")
        more = () if model is None else _compare_with_model(tensors, model, f"{repository.id} at {commit}")
    return ("bytes", "peft", *more)


def _compare_with_model(tensors: Mapping[str, torch.Tensor], model: Any, where: str) -> tuple[str, ...]:
    """Hold downloaded weights against a model's own: every number, and the answers where every weight has its place."""
    own = adapter_tensors(model)
    for name, tensor in own.items():
        if name in tensors and not torch.equal(tensors[name], tensor.detach().to("cpu", tensors[name].dtype)):
            raise PushError(f"{where}: {name} differs from the model in memory, which has changed since; push it again")
    compared = ("weights",) if own.keys() <= tensors.keys() else ()
    answers = _answers(model, _places(tensors, own, model))
    if answers is None:
        return compared
    if not torch.equal(*answers):
        raise PushError(f"{where}: the downloaded adapter answers otherwise than the model in memory; push it again")
    return (*compared, "answers")


def _answers(model: Any, places: Mapping[str, torch.Tensor] | None) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return a model's answers, its own and with other weights in their places, or None where they tell nothing.

    That is where a weight has no place, where it reads no token ids, and where it does not answer alike twice.
    """
    if places is None or getattr(model, "main_input_name", "input_ids") != "input_ids":
        return None
    ids = torch.tensor([[1, 2, 3, 4]], device=next(iter(model.parameters())).device)
    given = {"input_ids": ids}
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        given["decoder_input_ids"] = ids
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            own, again = model(**given)[0], model(**given)[0]
            published = torch.func.functional_call(model, dict(places), (), given)[0]
    finally:
        model.train(was_training)
    return (own, published) if torch.equal(own, again) else None


def _places(
    tensors: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], model: Any
) -> dict[str, torch.Tensor] | None:
    """Return the downloaded tensors under the model's own parameter names, or None where one has no place there.

    peft saves a parameter under another name than it has; that it is the same one shows in where its numbers lie.
    """
    at = {(p.data_ptr(), p.shape): (name, p) for name, p in model.named_parameters() if p.numel()}
    found = {name: at.get((tensor.data_ptr(), tensor.shape)) for name, tensor in own.items() if name in tensors}
    if not set(tensors) <= set(found) or None in found.values():
        return None
    named = ((tensors[key], *place) for key, place in found.items() if place is not None)
    return {name: tensor.to(parameter.device, parameter.dtype) for tensor, name, parameter in named}


def verify_push(
    repo_id: str, revision: str | None = None, folder: str | Path | None = None, *, token: str | None = None
) -> Verified:
    """Check an adapter that is on the Hub: whole, finite, loadable by peft, and as the Hub's own checksums say.

    Args:
        repo_id: `owner/name`.
        revision: Branch, tag or commit; `main` if left out.
        folder: A local folder whose weights must be the same.
        token: Hub token; the one that is logged in if left out.

    Returns:
        What was checked.

    Raises:
        PushError: If there is no such revision or adapter, or a byte differs.
        AdapterError: If the adapter itself is broken.
    """
    repository = Repository.at(repo_id, token)
    commit = repository.head(revision or "main")
    if commit is None:
        raise PushError(f"there is no {repo_id} at {revision or 'main'} that you may see; check id, revision and token")
    there = repository.files(commit)
    if missing := [name for name in (CONFIG, WEIGHTS) if name not in there]:
        raise PushError(f"{repo_id} at {commit} has no {' and no '.join(missing)}; it holds no adapter")
    ours, _ = sort_out(there)
    with TemporaryDirectory(prefix="hf-lora-verify-", ignore_cleanup_errors=True) as cache:
        downloaded = repository.download(commit, ours, Path(cache))
        found = {path: identified(downloaded / path) for path in ours}
        _compare_with_hub(found, there, f"{repo_id} at {commit}")
        if folder is not None:
            _compare_with_folder(found, Path(folder), f"{repo_id} at {commit}")
        stored = read_stored_adapter(downloaded / WEIGHTS)
        load_saved(downloaded)
    return Verified(
        repo_id=repo_id,
        commit=commit,
        files={path: file.sha256 for path, file in found.items()},
        parameters=stored.parameters,
    )


def _compare_with_hub(found: Mapping[str, ReleasedFile], there: Mapping[str, RemoteFile], where: str) -> None:
    for path, file in found.items():
        if not there[path].has_content_of(file.as_remote):
            raise PushError(f"{where}: {path} came back with other bytes than the Hub's own checksum; try again")


def _compare_with_folder(found: Mapping[str, ReleasedFile], folder: Path, where: str) -> None:
    if not (folder / WEIGHTS).is_file():
        raise PushError(f"{folder} holds no {WEIGHTS} to compare with; give the folder that was pushed")
    if (local := identified(folder / WEIGHTS)).sha256 != found[WEIGHTS].sha256:
        raise PushError(
            f"{where}: {WEIGHTS} has SHA-256 {found[WEIGHTS].sha256}, in {folder} it has {local.sha256}; they are two "
            "adapters"
        )
