"""What of a folder goes is on a list; whatever is not on it stays, with a reason."""

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lora_ext.push.release import outdated, sort_out, without_remarks


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def picture(*remarks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + b"".join(remarks) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "path",
    [
        "adapter_config.json", "adapter_model.safetensors", "README.md", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "additional_chat_templates/tool.jinja", "LICENSE", "NOTICE.md", "USE_POLICY.md",
        ".eval_results/gsm8k.yaml", "loss_curve.png", "rank_history.png", "facts.json", "rank_history.json",
        "spiece.model",
    ],
)  # fmt: skip
def test_what_an_adapter_needs_goes(path: str):
    assert sort_out([path]) == ([path], [])


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("training_args.bin", "code or secrets"), ("optimizer.pt", "code or secrets"),
        ("rng_state.pth", "code or secrets"), ("adapter_model.bin", "code or secrets"), (".env", "secrets"),
        (".env.local", "secrets"), ("id_rsa.pem", "secrets"), ("checkpoints/", "to resume from"),
        ("checkpoint-20/", "to resume from"), ("model.safetensors", "not on the list"),
        ("scheduler.pt", "code or secrets"), ("recipe.yaml", "not on the list"),
        ("trainer_state.json", "to resume from"), (".lock", "to resume from"),
        (".git/", "not on the list"), ("runs/", "not on the list"),
        ("notes.txt", "not on the list"), (".eval_results/../../x.yaml", "not on the list"),
        ("README.md.orig", "not on the list"), ("tokenizer.json~", "not on the list"), ("wandb/", "not on the list"),
    ],
)  # fmt: skip
def test_everything_else_stays_and_it_is_said_why(path: str, reason: str):
    go, stay = sort_out([path])
    assert go == []
    assert reason in stay[0].reason


@given(st.lists(st.text(min_size=1), unique=True))
def test_every_path_goes_or_stays(paths: list[str]):
    go, stay = sort_out(paths)
    assert sorted([*go, *(left.path for left in stay)]) == sorted(paths)


def test_a_picture_loses_its_texts_and_keeps_its_pixels():
    remarked = picture(chunk(b"tEXt", b"Source\0/home/ann/run.py"), chunk(b"tIME", b"\x07\xea\1\1\1\1\1"))
    assert without_remarks(remarked) == picture()
    assert without_remarks(picture()) == picture()


@pytest.mark.parametrize("broken", [b"", b"GIF89a", picture()[:-5], picture()[:20]])
def test_what_is_no_picture_is_refused(broken: bytes):
    with pytest.raises(ValueError, match=r"signature|middle"):
        without_remarks(broken)


@given(there=st.sets(st.sampled_from(["vocab.json", "README.md", "LICENSE", "a.txt", "adapter_model.bin", "facts.json",
                                      "plot.png", ".eval_results/a.yaml", "chat_template.jinja"])),
       release=st.sets(st.sampled_from(["vocab.json", "README.md", "facts.json"])))  # fmt: skip
def test_only_what_a_library_writes_anew_can_be_outdated(there: set[str], release: set[str]):
    assert set(outdated(there, release)) == (there & {"vocab.json", "facts.json", "chat_template.jinja"}) - release
