"""What a fine-grained Hub token lacks for a push, by what the Hub says of it in `whoami-v2`.

The answer as clients read it: `role` is `fineGrained`, and `fineGrained` has `global`, a list of permissions, and
`scoped`, a list of `{"entity": {"type": "user" | "org" | "model" | …, "name": …}, "permissions": […]}`. No page of the
Hub promises that shape, so whatever is not of it, or of a kind that is not known here, stops nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

__all__ = ["missing_permission"]

SETTINGS: Final = "huggingface.co/settings/tokens"
"""Where a token's permissions are set."""
_PLAIN: Final = {"user", "org", "model", "dataset", "space", "kernel", "collection", "bucket", "oauth-app"}
"""Entities that name what they are. A resource group's repositories are not told, so one may hold any."""


def missing_permission(token: Mapping[str, Any], repo_id: str, *, as_pull_request: bool = False) -> str | None:
    """Return what a token lacks to push to a repository and where that is set, or None where nothing says so.

    Args:
        token: `auth.accessToken` of the Hub's answer.
        repo_id: `owner/name`.
        as_pull_request: Whether a pull request is made, for which a token may also open discussions.

    >>> scope = {"entity": {"type": "user", "name": "me"}, "permissions": ["repo.content.read"]}
    >>> missing_permission({"role": "fineGrained", "fineGrained": {"scoped": [scope]}}, "me/sql")
    "lacks repo.write for me (has repo.content.read); tick 'Write access to contents/settings of all repos' under me \
at huggingface.co/settings/tokens"
    """
    scopes = _scopes(token)
    if scopes is None:
        return None
    owner = repo_id.partition("/")[0]
    here = {("user", owner.lower()), ("org", owner.lower()), ("model", repo_id.lower())}
    held = {permission for entity, permissions in scopes for permission in permissions if entity in here}
    if any(_writes(permission) for permission in held):
        return None
    told = f"(has {', '.join(sorted(held)) or 'nothing there'})"
    if not as_pull_request:
        wish = "'Write access to contents/settings of all repos'"
        return f"lacks repo.write for {owner} {told}; tick {wish} under {owner} at {SETTINGS}"
    if "discussion.write" in held | _everywhere(token):
        return None
    wish = "'Interact with discussions / Open pull requests'"
    return f"lacks discussion.write for {repo_id} {told}; tick {wish} at {SETTINGS}"


def _writes(permission: str) -> bool:
    """Tell `repo.write`, and whatever else may come to mean it."""
    return permission.startswith("repo.") and permission.endswith("write")


def _everywhere(token: Mapping[str, Any]) -> set[str]:
    """Return the permissions that hold for every repository that its user may see."""
    listed = token["fineGrained"].get("global")
    return {str(permission) for permission in listed} if isinstance(listed, list) else set()


_Scope = tuple[tuple[str, str], tuple[str, ...]]


def _scopes(token: Mapping[str, Any]) -> list[_Scope] | None:
    """Return the entities with their permissions, or None where the answer does not tell all of them."""
    fine = token.get("fineGrained")
    if token.get("role") != "fineGrained" or not isinstance(fine, Mapping) or not isinstance(fine.get("scoped"), list):
        return None
    if any(_writes(permission) for permission in _everywhere(token)):
        return None
    found = list(_understood(fine["scoped"]))
    return [scope for scope in found if scope is not None] if None not in found else None


def _understood(scoped: list[Any]) -> Iterator[_Scope | None]:
    """Yield each entity with its permissions, None for one that is not known here."""
    for scope in scoped:
        entity = scope.get("entity") if isinstance(scope, Mapping) else None
        permissions = scope.get("permissions") if isinstance(scope, Mapping) else None
        kind, name = (entity.get("type"), entity.get("name")) if isinstance(entity, Mapping) else (None, None)
        if kind not in _PLAIN or not isinstance(permissions, list):
            yield None
        elif isinstance(name, str):
            yield (kind, name.lower()), tuple(map(str, permissions))
        else:
            yield None if kind in {"user", "org", "model"} else ((kind, ""), ())
