"""Whether a push would be let in: the repository's id, who pushes, and what the token and the roles allow."""

from __future__ import annotations

import re
from typing import Final

from ..errors import ConfigError, PushError
from ..hub.repository import Account, Repository
from .plan import PushRequest
from .token_scopes import missing_permission

__all__ = ["accessible", "check_access", "check_id"]

_REPOSITORY: Final = re.compile(r"(?!.*(--|\.\.))\w[\w.-]*(?<![.-])/\w[\w.-]*(?<![.-])(?<!\.git)", re.ASCII)
"""As huggingface_hub 2.4 checks it (`validate_repo_id`)."""


def check_access(repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Return a repository's full id, if a push to it would be let in as far as the Hub tells without one.

    Raises:
        ConfigError: If it is no repository's id.
        HubAway: If the Hub is out of reach.
        PushError: If there is no token or it does not suffice, or the repository has another visibility.
    """
    check_id(repo_id)
    return accessible(PushRequest(repo_id=repo_id, private=private), token)[1].id


def accessible(request: PushRequest, token: str | None) -> tuple[Account, Repository, bool | None]:
    """Return who pushes, where to, and whether that is private; None where there is no repository yet."""
    account = Repository.at(request.repo_id, token).account()
    full = request.repo_id if "/" in request.repo_id else f"{account.name}/{request.repo_id}"
    repository = Repository.at(full, token)
    is_private = repository.is_private()
    _check_roles(repository.id, account, request, is_private)
    return account, repository, is_private


def check_id(repo_id: str) -> None:
    """Refuse what is no repository's id, before it names a folder here or the Hub is asked."""
    full = repo_id if "/" in repo_id else f"owner/{repo_id}"
    if not _REPOSITORY.fullmatch(full) or len(full.rpartition("/")[2]) > 96:
        raise ConfigError(
            f"{repo_id!r} is no repository's id; give owner/name, of letters, digits, single dots and dashes"
        )


def _check_roles(repo_id: str, account: Account, request: PushRequest, is_private: bool | None) -> None:
    """Refuse what the Hub would refuse later: a token that only reads, somebody else's account, another visibility."""
    owner = repo_id.partition("/")[0]
    if account.role == "read":
        raise PushError(
            f"the token of {account.name} only reads; make one with the role write (huggingface.co/settings/tokens), "
            "then `hf auth login` or HF_TOKEN"
        )
    if is_private is None and owner not in {account.name, *account.organizations}:
        raise PushError(
            f"there is no repository {repo_id} that you may see, and {owner} is neither you ({account.name}) nor one "
            f"of your organisations ({', '.join(account.organizations) or 'none'}); push to {account.name}/"
            f"{repo_id.rpartition('/')[2]}"
        )
    if is_private is None and account.organizations.get(owner) == "read":
        raise PushError(
            f"{account.name} only reads in {owner}, and there is no repository {repo_id} yet; ask an admin of {owner} "
            f"for the role contributor or write, or push to {account.name}/{repo_id.rpartition('/')[2]}"
        )
    if lack := missing_permission(account.token, repo_id, as_pull_request=request.create_pr):
        raise PushError(f"the fine-grained token of {account.name} {lack}")
    if is_private is None and request.create_pr:
        raise PushError(
            f"there is no repository {repo_id} to make a pull request to; leave create_pr (--create-pr) out"
        )
    if None not in (is_private, request.private) and is_private != request.private:
        kinds = {True: "private", False: "public"}
        raise PushError(
            f"{repo_id} is {kinds[bool(is_private)]}, you asked for {kinds[bool(request.private)]}; change it in the "
            "repository's settings, or leave private= (--private, --public) out"
        )
