"""A resumed run of adaptive rank ends in the bytes of the uninterrupted one, whatever optimizer and precision."""

import pytest
import resume_matrix
from resume_matrix import OPTIMIZERS, PRECISIONS, Case, resumed

DIAGONAL = [(optimizer, list(PRECISIONS)[n % len(PRECISIONS)]) for n, optimizer in enumerate(OPTIMIZERS)]
REST = [(o, p) for o in OPTIMIZERS for p in PRECISIONS if (o, p) not in DIAGONAL]


@pytest.mark.parametrize(
    ("optimizer", "precision"), [*DIAGONAL, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in REST)]
)
def test_every_resumed_run_ends_in_the_same_bits(optimizer: str, precision: str) -> None:
    assert set(resumed(Case(optimizer=optimizer, precision=precision)).values()) == {0.0}


def test_the_matrix_says_where_a_run_differs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"inside a probe": 0.0, "after an event": 2e-3}
    monkeypatch.setattr(resume_matrix, "PLACES", dict.fromkeys(found, 1))
    monkeypatch.setattr(resume_matrix, "resumed", lambda case: found)
    assert resume_matrix.main(["--optimizers", "sgd", "--precisions", "float32"]) == 1
    assert "| sgd | float32 | = | - 2e-03 |" in capsys.readouterr().out
