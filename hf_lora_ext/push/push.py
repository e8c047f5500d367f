"""`push_adapter`: an adapter on the Hub, checked before, committed exactly once, verified after.

Gather → check → show → commit → verify → tag. Every step can be repeated: a push that was interrupted anywhere is
finished by the same call, and identical bytes make no second commit.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import PushError, UnfitError
from ..hub import cache_folder
from ..hub.failures import NO_TOKEN, HubAway
from ..hub.landing import RemoteFile, differing
from ..hub.repository import Change, Landed, Repository, stored_token
from .access import accessible, check_id
from .gathering import Gathered, gathered
from .plan import MAIN, MESSAGE, PushPlan, PushRequest, PushResult
from .preflight import Release, prepare
from .release import outdated
from .verification import verify_release

__all__ = ["push_adapter"]

Say = Callable[[str], None]


def push_adapter(
    source: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
    message: str | None = None,
    verify: bool = True,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    allow: Sequence[str] = (),
    confirm: Callable[[PushPlan], bool] | None = None,
    say: Say | None = None,
) -> PushResult:
    """Publish an adapter on the Hub, and return when the Hub is known to hold exactly its bytes.

    Only what an adapter needs goes, never optimizer states, pickles or checkpoints. A secret in any text stops the
    push before anything is sent. Safe to call from a thread, and again after any failure.

    Args:
        source: A folder with an adapter, a run folder of `hf-lora train`, a PeftModel, or a trainer of one; from
            callbacks, what was laid aside.
        repo_id: `owner/name`; a bare name is one in your own account.
        private: Whether a new repository is private. For one that exists it must agree with what it is.
        revision: Branch, `main` if left out; a new one is made from `main`.
        create_pr: Make a pull request instead of a commit on `main`.
        tag: Name that the commit gets after it is verified.
        token: Hub token; the one that is logged in if left out.
        dry_run: Find out everything, and stop before the Hub is written to; without a token, or where the Hub is
            away, what can be told here.
        message: Title of the commit.
        verify: Download what landed into an empty cache, compare every byte, and load it with peft.
        license: The adapter's licence by its Hub identifier; else the card's, else the base's.
        license_name: Its name, where `license` is `other`.
        license_link: Where its text is, where `license` is `other`.
        allow: Logins, hosts, dataset ids, a private base's id and paths that may be published, word for word; never a
            secret.
        confirm: Called with the plan before anything is written; False stops there.
        say: Takes one line of progress.

    Raises:
        ConfigError: If an argument, the folder or the licence is not right.
        AdapterError: If there is no whole adapter, or it holds a NaN.
        UnfitError: If something private would leak, the card is bad, or a duty of the base's licence is not done.
        PushError: If the Hub refuses, or somebody else committed meanwhile; UnfitError is one too.

    Example:
        >>> push_adapter("out/sql", "me/llama-sql", dry_run=True)  # doctest: +SKIP
    """
    say = say or (lambda line: None)
    check_id(repo_id)
    if not _is_main_process(source):
        return PushResult(status="left to the main process", repo_id=repo_id)
    terms = {"license": license, "license_name": license_name, "license_link": license_link}
    request = PushRequest(
        repo_id=repo_id,
        private=private,
        revision=revision or MAIN,
        create_pr=create_pr,
        tag=tag,
        message=message or MESSAGE,
        verify=verify,
        terms=terms,
        allow=tuple(allow),
    )
    say("gather")
    with gathered(source) as found:
        try:
            return _push(found, request, token, dry_run, confirm, say)
        except PushError as error:
            raise type(error)(f"{error}\nagain: {_again(error, found, request, dry_run)}") from error


def _again(error: PushError, found: Gathered, request: PushRequest, dry_run: bool) -> str:
    """Return how to push again; a model in memory is kept on disk for it, if it may leave this process."""
    if isinstance(error, UnfitError):  # its title may be what must not be told
        if found.model is not None:
            return "push the same object again"
        request = replace(request, message=MESSAGE)
    return f"`{request.command(_kept(found, request))}{' --dry-run' * dry_run}`"


def _kept(found: Gathered, request: PushRequest) -> Path:
    """Return the folder to push again from: the user's own, or a copy of what was only in memory.

    What has a leak is not copied: it would lie about, unmended.
    """
    if found.model is None:
        return found.origins[0]
    folder = cache_folder() / "pushes" / request.repo_id.replace("/", "--")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(found.folder, folder)
    return folder


def _is_main_process(source: Any) -> bool:
    """Return whether this process pushes: of a trainer's, the first alone."""
    asked = getattr(source, "is_world_process_zero", None)
    return bool(asked()) if callable(asked) else True


def _push(
    found: Gathered,
    request: PushRequest,
    token: str | None,
    dry_run: bool,
    confirm: Callable[[PushPlan], bool] | None,
    say: Say,
) -> PushResult:
    say("check")
    if dry_run and not (token or stored_token()):
        return _looked_at_here(found, request, token, NO_TOKEN)
    try:
        account, repository, is_private = accessible(request, token)
    except HubAway as away:
        if not dry_run:
            raise
        return _looked_at_here(found, request, token, str(away))
    request = replace(request, repo_id=repository.id)
    release = prepare(found, request if is_private is None else replace(request, private=is_private), token)
    head = None if is_private is None else repository.head(request.revision)
    seen = head or (None if is_private is None else repository.head(MAIN))  # which a new branch begins as
    there = repository.files(seen) if seen else {}
    if request.tag and is_private is not None:
        _check_tag(repository, request.tag, release, there, seen)
    plan = _plan(request, release, is_private, there)
    say("show")
    if dry_run:
        return PushResult(status="dry run", repo_id=repository.id, plan=plan)
    if confirm is not None and not confirm(plan):
        return PushResult(status="declined", repo_id=repository.id, plan=plan)
    sent = sum(size for path, size in plan.files.items() if path not in plan.unchanged)
    say(f"commit {sent:,} bytes" if sent or plan.outdated else "commit nothing: the Hub holds the same bytes")
    landed = _commit(repository, request, release, account.name, head, there, say)
    checked = _verified(repository, request, release, landed, found.model, say)
    say("done")
    return PushResult(
        status="pushed" if landed.is_new else "already there",
        repo_id=repository.id,
        plan=plan,
        commit=landed.commit,
        pull_request=landed.pull_request,
        is_verified=request.verify,
        checked=checked,
        tag=request.tag,
    )


def _verified(
    repository: Repository, request: PushRequest, release: Release, landed: Landed, model: Any, say: Say
) -> tuple[str, ...]:
    """Verify and tag what landed, and return what was checked."""
    checked: tuple[str, ...] = ()
    if request.verify:
        say(f"verify {landed.commit}")
        with _told_as(f"{repository.id} holds commit {landed.commit}, which is not verified"):
            checked = verify_release(repository, landed.commit, release, model)
    if request.tag:
        say(f"tag {request.tag}")
        with _told_as(f"{repository.id} holds commit {landed.commit}, verified; its tag is not certain"):
            repository.tag(request.tag, landed.commit)
    return checked


def _looked_at_here(found: Gathered, request: PushRequest, token: str | None, why: str) -> PushResult:
    """Return a dry run of what can be told without asking the Hub about the repository."""
    release = prepare(found, request, token, may_guess=True)
    plan = replace(_plan(request, release, None, {}), is_new=None, unasked=why)
    return PushResult(status="dry run", repo_id=request.repo_id, plan=plan)


@contextmanager
def _told_as(state: str) -> Iterator[None]:
    """Begin a failure's message with what the Hub holds by then."""
    try:
        yield
    except PushError as error:
        raise PushError(f"{state}: {error}") from error


def _plan(request: PushRequest, release: Release, is_private: bool | None, there: Mapping[str, RemoteFile]) -> PushPlan:
    missing = set(differing(release.wanted, there))
    base = release.base
    revision = f" at {base.revision}" if base and base.revision else ", revision not recorded" if base else ""
    gate = ", gated: its owner decides who may load it" if release.is_base_gated else ""
    return PushPlan(
        repo_id=request.repo_id,
        revision=request.revision,
        is_private=request.private if is_private is None else is_private,
        is_new=is_private is None,
        files={path: file.size for path, file in release.files.items()},
        unchanged=tuple(path for path in release.files if path not in missing),
        outdated=tuple(outdated(there, release.files)),
        left_out=release.left_out,
        changes=release.changes,
        doubts=release.doubts,
        allowed=request.allow,
        license=release.terms.id,
        base=f"{base.name}{revision}{gate}" if base else None,
        parameters=release.stored.parameters,
        as_pull_request=request.create_pr,
        tag=request.tag,
    )


def _check_tag(
    repository: Repository, tag: str, release: Release, there: Mapping[str, RemoteFile], head: str | None
) -> None:
    """Refuse a tag that another commit has, before anything is written."""
    at = repository.tags().get(tag)
    wanted = _wanted(release, there)
    if at is None or (at == head and not differing(wanted, there)):
        return
    if differing(wanted, there) or differing(release.wanted, repository.files(at)):
        raise PushError(f"tag {tag} of {repository.id} is taken, by {at}; choose another tag")


def _wanted(release: Release, there: Mapping[str, RemoteFile]) -> dict[str, RemoteFile | None]:
    """Return the files as they are to be: the release, and nothing outdated beside it."""
    return release.wanted | dict.fromkeys(outdated(there, release.files))


def _commit(
    repository: Repository,
    request: PushRequest,
    release: Release,
    user: str,
    head: str | None,
    there: Mapping[str, RemoteFile],
    say: Say,
) -> Landed:
    """Return the commit that holds the release: one that is there, or a new one."""
    if head is None:
        head = _made(repository, request)
        there = repository.files(head)
    wanted = _wanted(release, there)
    missing = differing(wanted, there)
    if not missing:
        return Landed(commit=_tagged_twin(repository, request) or head, is_new=False)
    if request.create_pr and (waiting := repository.open_pull_request(user, wanted)) is not None:
        return waiting
    return repository.commit_once(
        Change(
            added={path: release.folder / path for path in missing if path in release.files},
            deleted=tuple(path for path in missing if path not in release.files),
        ),
        wanted,
        parent=head,
        revision=request.revision,
        message=request.message,
        pull_request_of=user if request.create_pr else None,
        say=say,
    )


def _tagged_twin(repository: Repository, request: PushRequest) -> str | None:
    """Return the commit that has the tag already, where a later one changed none of the adapter's files."""
    return repository.tags().get(request.tag) if request.tag else None


def _made(repository: Repository, request: PushRequest) -> str:
    """Make the repository and the branch where they are missing, and return the branch's head."""
    if repository.is_private() is None:
        repository.create(request.private)
        if request.private is not None and (found := repository.is_private()) != request.private:
            raise PushError(
                f"{repository.id} was made meanwhile, by somebody else, and is {'private' if found else 'public'}; "
                "nothing was sent: look at it, and run the same again"
            )
    if request.revision != MAIN and repository.head(request.revision) is None:
        repository.create_branch(request.revision)
    head = repository.head(request.revision)
    if head is None:
        raise PushError(f"{repository.id} was made and has no commit on {request.revision}; run the same again")
    return head
