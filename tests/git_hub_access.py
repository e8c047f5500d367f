"""Who may do what on the Hub stand-in: users, tokens, organisations; public, private and gated repositories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

WRITE_TOKEN: Final = "hf_write_token_of_me"
READ_TOKEN: Final = "hf_read_token_of_me"
FINE_TOKEN: Final = "hf_fine_grained_token_of_me"
STRANGER_TOKEN: Final = "hf_write_token_of_you"


class HubError(Exception):
    """An answer that is an error, with the headers that the client tells errors apart by."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: object):
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.body = body


@dataclass(frozen=True, slots=True)
class Account:
    """A token and whose it is."""

    user: str
    role: Literal["write", "read", "fineGrained"]
    organisations: Mapping[str, Literal["admin", "write", "contributor", "read"]] = field(default_factory=dict)
    """Role in each organisation."""
    scopes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Namespace or repository → what a fine-grained token may do there."""
    everywhere: tuple[str, ...] = ()
    """What a fine-grained token may do to whatever its user may see."""

    def may_write(self, namespace: str, repo_id: str | None = None) -> bool:
        """Say whether the token may write to a namespace, or to one repository in it."""
        if self.role == "read":
            return False
        if self.role == "fineGrained" and not self._is_granted("repo.write", namespace, repo_id):
            return False
        return namespace == self.user or self.organisations.get(namespace) in {"admin", "write"}

    def may_propose(self, namespace: str, repo_id: str) -> bool:
        """Say whether the token may open a pull request in a repository that it can read."""
        if self.role != "fineGrained":
            return self.role == "write"
        held = (self._is_granted(name, namespace, repo_id) for name in ("repo.write", "discussion.write"))
        return any(held) or "discussion.write" in self.everywhere

    def _is_granted(self, permission: str, namespace: str, repo_id: str | None) -> bool:
        return any(permission in self.scopes.get(name, ()) for name in (namespace, repo_id) if name)

    def may_see(self, namespace: str) -> bool:
        """Say whether the user belongs to a namespace."""
        return namespace == self.user or namespace in self.organisations

    def whoami(self) -> dict:
        """Return what `whoami-v2` answers."""
        token: dict = {"displayName": "test", "role": self.role, "createdAt": "2025-01-01T00:00:00.000Z"}
        if self.role == "fineGrained":
            token["fineGrained"] = {
                "canReadGatedRepos": True,
                "global": list(self.everywhere),
                "scoped": [
                    {"entity": {"_id": name, "type": self._kind(name), "name": name}, "permissions": list(permissions)}
                    for name, permissions in self.scopes.items()
                ],
            }
        orgs = [
            {"type": "org", "id": name, "name": name, "fullname": name, "roleInOrg": role, "isEnterprise": False}
            for name, role in self.organisations.items()
        ]
        return {
            "type": "user", "id": self.user, "name": self.user, "fullname": self.user, "isPro": False,
            "emailVerified": True, "orgs": orgs, "auth": {"type": "access_token", "accessToken": token},
        }  # fmt: skip

    def _kind(self, name: str) -> str:
        return "model" if "/" in name else "user" if name == self.user else "org"


def default_accounts() -> dict[str, Account]:
    """Return the tokens every stand-in starts with: those of `me`, who writes for `lab`, and of the stranger `you`."""
    mine = {"lab": "write", "library": "read"}
    return {
        WRITE_TOKEN: Account("me", "write", mine),
        READ_TOKEN: Account("me", "read", mine),
        FINE_TOKEN: Account("me", "fineGrained", mine, scopes={"me/allowed": ("repo.content.read", "repo.write")}),
        STRANGER_TOKEN: Account("you", "write"),
    }


def who(accounts: Mapping[str, Account], authorization: str | None) -> Account | None:
    """Return the account of an `Authorization` header, None without one.

    Raises:
        HubError: If the token is nobody's.
    """
    if authorization is None:
        return None
    account = accounts.get(authorization.removeprefix("Bearer "))
    if account is None:
        raise HubError(401, "Invalid credentials in Authorization header")
    return account


def check_sight(account: Account | None, namespace: str, private: bool, exists: bool) -> None:
    """Refuse whoever may not know that a repository exists.

    Raises:
        HubError: As the Hub says it: 401 to the nameless, 404 to others.
    """
    if exists and (not private or (account and account.may_see(namespace))):
        return
    if account is None:
        raise HubError(401, "Invalid username or password.", "RepoNotFound")
    raise HubError(404, "Repository not found", "RepoNotFound")


def check_gate(account: Account | None, namespace: str, repo_id: str, gated: object, admitted: list[str]) -> None:
    """Refuse whoever has not been let through a repository's gate.

    Raises:
        HubError: 401 to the nameless, 403 to others.
    """
    if not gated or (account and (account.may_see(namespace) or account.user in admitted)):
        return
    message = f"Access to model {repo_id} is restricted. You must have access to it and be authenticated to access it."
    raise HubError(403 if account else 401, message, "GatedRepo")


def check_token(account: Account | None) -> None:
    """Refuse whoever has no token that writes anywhere.

    Raises:
        HubError: 401 to the nameless, 403 to others.
    """
    if account is None:
        raise HubError(401, "Invalid username or password.")
    if account.role == "read":
        raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")


def check_write(account: Account | None, namespace: str, repo_id: str | None = None) -> None:
    """Refuse whoever may not write to a repository, or may not make one in a namespace.

    Raises:
        HubError: 401 to the nameless, 403 to others.
    """
    check_token(account)
    if not account.may_write(namespace, repo_id):
        if repo_id is None:
            raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        raise HubError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
