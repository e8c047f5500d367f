"""A fine-grained token that cannot push is known before the push; what is not understood stops nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lora_ext.push.token_scopes import missing_permission

WRITES = ["repo.content.read", "repo.write"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


def fine(*scoped: object, everywhere: object = ()) -> dict:
    return {"role": "fineGrained", "fineGrained": {"global": list(everywhere), "scoped": list(scoped)}}


def scope(kind: str, name: str | None, permissions: list[str]) -> dict:
    return {"entity": {"_id": "1", "type": kind} | ({"name": name} if name else {}), "permissions": permissions}


@pytest.mark.parametrize(("kind", "name"), [("user", "Me"), ("org", "me"), ("model", "me/sums"), ("model", "Me/Sums")])
def test_write_access_to_the_owner_or_the_repository_suffices(kind: str, name: str):
    assert missing_permission(fine(scope(kind, name, WRITES)), "me/sums") is None


@pytest.mark.parametrize(
    "scoped", [(), (("user", "you"),), (("model", "me/other"),), (("dataset", "me/sums"),), (("space", "me/sums"),)]
)
def test_write_access_elsewhere_does_not(scoped: tuple):
    token = fine(*(scope(kind, name, WRITES) for kind, name in scoped))
    lack = missing_permission(token, "me/sums")
    assert lack is not None
    assert "repo.write for me (has nothing there)" in lack


def test_a_pull_request_asks_for_less():
    opens = fine(scope("user", "you", ["discussion.write"]))
    assert missing_permission(opens, "you/sums", as_pull_request=True) is None
    assert missing_permission(opens, "you/sums") is not None
    assert missing_permission(fine(everywhere=["discussion.write"]), "you/sums", as_pull_request=True) is None
    assert "discussion.write for you/sums" in (missing_permission(fine(), "you/sums", as_pull_request=True) or "")


@pytest.mark.parametrize(
    "token",
    [
        {},
        {"role": "write"},
        {"role": "read"},
        {"role": "fineGrained"},
        {"role": "fineGrained", "fineGrained": None},
        {"role": "fineGrained", "fineGrained": {"scoped": None}},
        {"role": "fineGrained", "fineGrained": {"scoped": {"me": "write"}}},
        fine("me"),
        fine(scope("resource-group", None, WRITES)),
        fine(scope("something-new", "me", ["repo.content.read"])),
        fine(scope("user", None, ["repo.content.read"])),
        fine({"entity": {"type": "user", "name": "me"}, "permissions": "all"}),
        fine(scope("user", "me", ["repo.everything.write"])),
        fine(everywhere=["repo.write"]),
    ],
)
def test_what_is_not_understood_stops_nothing(token: dict):
    assert missing_permission(token, "me/sums") is None


@given(JSON, st.booleans())
def test_no_answer_of_the_hub_breaks_the_push(answer: object, as_pull_request: bool):
    for token in ({"role": "fineGrained", "fineGrained": answer}, {"role": answer}, fine(answer)):
        said = missing_permission(token, "me/sums", as_pull_request=as_pull_request)
        assert said is None or "lacks" in said
