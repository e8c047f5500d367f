"""`make bench`: what is run, when it is run again, what is kept, and that the tables of the texts are of it."""

import json
from pathlib import Path
from typing import Any

import bench
import bench_tables
import pytest
from bench_records import DETERMINES, Table, determined, is_current, markdown, read_output, record_of, tables_of
from bench_suite import GIVEN, SUITE, Benchmark
from bench_tables import MARKED, PAGES, RESULTS, VIEWS, filled, kept_records, out_of_date
from code_hashes import hash_of_all
from hypothesis import given
from hypothesis import strategies as st
from test_readme import in_a_checkout

HERE = Path(bench.__file__).parent
CELLS = st.text(st.characters(blacklist_characters="|", blacklist_categories=("C", "Z")), max_size=6)
NOW = {"command": "python x.py", "code": "abc", "versions": {"torch": "2"}, "given": {}}
RESULT_FILES = sorted(RESULTS.glob("*.json"))


@given(st.integers(1, 4).flatmap(lambda n: st.tuples(
    st.lists(CELLS.filter(bool), min_size=n, max_size=n), st.lists(st.lists(CELLS, min_size=n, max_size=n), max_size=4),
)), st.sampled_from(["", "load 0.4 on 2 cores", "seeds 0 to 2:"]))  # fmt: skip
def test_a_printed_table_is_read_back_as_it_was(parts: tuple[list[str], list[list[str]]], above: str):
    head, rows = parts
    tables, notes = read_output(f"{above}\n\n{markdown(head, rows)}\n\nafterwards")
    assert tables == [Table(above, tuple(head), tuple(map(tuple, rows)))]
    assert notes == [line for line in (above, "afterwards") if line]


def test_lines_with_bars_that_are_no_table_are_no_table():
    assert read_output("| a | b |\n| 1 | 2 |\ndone")[0] == []


@pytest.mark.parametrize("key", DETERMINES)
def test_a_result_is_current_until_anything_that_determines_it_changes(key: str):
    assert is_current(NOW | {"seconds": 3}, NOW)
    assert not is_current(NOW | {key: "other"}, NOW)
    assert not is_current(None, NOW)


def test_a_code_hash_knows_what_code_does_and_not_how_it_is_told(tmp_path: Path):
    hashes = []
    for name, text in (("a", "x = 1\n"), ("b", '"""Told."""\nx = 1  # so\n'), ("c", "x = 2\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.py").write_text(text, encoding="utf8")
        hashes.append(hash_of_all([tmp_path / name / "m.py"], tmp_path / name))
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_suite_names_scripts_that_are_there_and_inputs_that_are_described():
    assert len({benchmark.name for benchmark in SUITE}) == len(SUITE) > 5
    for benchmark in SUITE:
        assert (HERE / benchmark.script).is_file()
        assert benchmark.needs is None or benchmark.needs in GIVEN
        places = {"work": "w"} | ({benchmark.needs: "g"} if benchmark.needs else {})
        assert all("{" not in argument.format(**places) for argument in benchmark.arguments)
        assert "{" not in determined(benchmark, code="", versions={}, given={})["command"]


def suite_of(monkeypatch: pytest.MonkeyPatch, folder: Path, **texts: str) -> Path:
    """Put scripts in place of the suite; return the folder of results."""
    suite = []
    for name, text in texts.items():
        script = folder / f"{name}.py"
        script.write_text(text, encoding="utf8")
        arguments, needs = (("{model}",), "model") if "argv" in text else ((), None)
        suite.append(Benchmark(name=name, script=str(script), arguments=arguments, needs=needs, minutes=0, seeds=(3,)))
    monkeypatch.setattr(bench, "SUITE", tuple(suite))
    monkeypatch.setattr(bench, "code_now", lambda: "code")
    return folder / "results"


COUNTS = (
    "from pathlib import Path\nimport sys\nwith open({file!r}, 'a') as f: f.write('x')\nprint('| a |\\n|---|\\n| 1 |')"
)


def test_a_finished_benchmark_runs_again_only_if_asked_or_if_the_code_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    count = tmp_path / "count"
    results = suite_of(monkeypatch, tmp_path, one=COUNTS.format(file=str(count)))
    for arguments, code, runs in (([], "code", 1), ([], "code", 1), (["--again"], "code", 2), ([], "new", 3)):
        monkeypatch.setattr(bench, "code_now", lambda code=code: code)
        assert bench.main([*arguments, "--results", str(results)]) == 0
        assert len(count.read_text()) == runs
    record = json.loads((results / "one.json").read_text(encoding="utf8"))
    assert tables_of(record) == [Table("", ("a",), (("1",),))]
    assert {"machine", "seconds", "load", "seeds", *DETERMINES} <= record.keys()
    assert "kept" in capfd.readouterr().err


def test_what_a_broken_off_benchmark_had_finished_is_there_for_the_next_run_unless_all_shall_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    text = "import sys; from pathlib import Path; w = Path(sys.argv[1]); w.mkdir(parents=True, exist_ok=True)\n"
    text += (
        "old = (w / 'part').exists(); (w / 'part').touch(); print('old' if old else 'new')\nsys.exit(0 if old else 3)"
    )
    script = tmp_path / "parts.py"
    script.write_text(text, encoding="utf8")
    one = Benchmark(name="parts", script=str(script), arguments=("{work}",), minutes=0)
    monkeypatch.setattr(bench, "SUITE", (one,))
    monkeypatch.setattr(bench, "code_now", lambda: "code")
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    assert bench.main(["--results", str(tmp_path / "results")]) == 1
    assert bench.main(["--results", str(tmp_path / "results")]) == 0
    assert bench.main(["--again", "--results", str(tmp_path / "results")]) == 1


def test_one_that_fails_leaves_no_result_and_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    results = suite_of(monkeypatch, tmp_path, bad="print('| a |'); raise SystemExit(3)", good="print('fine')")
    assert bench.main(["--results", str(results)]) == 1
    assert [file.name for file in results.iterdir()] == ["good.json"]


def test_what_only_the_caller_has_is_left_out_or_refused_and_never_named_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    results = suite_of(monkeypatch, tmp_path, real="import sys; print('of', sys.argv[1])")
    assert bench.main(["--results", str(results)]) == 0
    assert f"left out, it needs --model: {GIVEN['model']}" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        bench.main(["real", "--results", str(results)])
    assert "real needs --model" in capfd.readouterr().err
    (tmp_path / "secret-place").mkdir()
    assert bench.main(["real", "--model", str(tmp_path / "secret-place"), "--results", str(results)]) == 0
    assert "secret-place" not in (results / "real.json").read_text(encoding="utf8")
    assert json.loads((results / "real.json").read_text(encoding="utf8"))["notes"] == ["of MODEL"]


def test_an_unknown_name_ends_with_the_known_ones(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        bench.main(["nonsense"])
    assert "no benchmark nonsense; there are presets" in capsys.readouterr().err


def planted_output() -> str:
    """What adaptive_rank.py prints, of made up values."""
    from rank_report import Arm, tables

    cell = {"parameters": 10291, "mean_parameters": 1, "peak_parameters": 1, "max_rank": 8, "seconds": 1,
            "extra_seconds": 1, "binds": True, "supervised_tokens": 9}  # fmt: skip
    arms = []
    methods = dict.fromkeys([*bench_tables.CARD_METHODS, *bench_tables.CHANGES])
    for number, method in enumerate(methods):
        results = {seed: cell | {"value": 0.02 + 0.01 * number + 0.001 * seed * number} for seed in (0, 1, 2)}
        arms.append(Arm(method=method, budget=17408 if method == "uniform" else 10445, learning_rate=0.1, scale=1,
                        results=results))  # fmt: skip
    return tables(arms, "KL", [0.1])


def compress_output() -> str:
    """What compress.py prints, of made up values."""
    from compress import Outcome, loss_table

    methods = ("PEFT", "ours, svd", "ours, whitened")
    found = {(asked, method): [Outcome(8704, 0.1, 1.0)] for asked in bench_tables.ASKED for method in methods}
    return loss_table(found, [0.05])


def quickstart_output() -> str:
    """What quickstart_seeds.py prints: its own head, of made up values."""
    lines = (HERE / "quickstart_seeds.py").read_text(encoding="utf8").splitlines()
    printed = [line.split('"')[1] for line in lines if line.strip().startswith('print("|')]
    return "\n".join([*printed, "| 0 |" + " 1.000 |" * 7])


def presets_output() -> str:
    """What plan_time.py prints, of made up values."""
    from plan_time import BARE, times_table

    return times_table({BARE: [(0.02, 0.01)], "import peft": [(3.0, 2.0)]})


OUTPUTS = {"planted": planted_output, "planted-changes": planted_output, "compress": compress_output,
           "quickstart": quickstart_output, "presets": presets_output}  # fmt: skip


def marked() -> dict[str, str]:
    """The tables of the texts by name."""
    found = [(name, table) for page in PAGES for _, name, table, _ in MARKED.findall(page.read_text(encoding="utf8"))]
    assert (
        len(dict(found)) == len(found) == sum(page.read_text(encoding="utf8").count("<!-- bench: ") for page in PAGES)
    )
    return dict(found)


@in_a_checkout
def test_every_marked_table_is_known_and_every_known_table_is_in_a_text():
    assert marked().keys() == VIEWS.keys()


@in_a_checkout
@pytest.mark.parametrize("name", VIEWS)
def test_what_a_benchmark_prints_becomes_the_table_that_the_text_has(name: str):
    """The head and the first column are those of the text, so that a benchmark cannot print past its reader."""
    record = record_of(SUITE[0], NOW, OUTPUTS[VIEWS[name].result]())
    made = VIEWS[name].of(tables_of(record))
    (there,), _ = read_output(marked()[name])
    (new,), _ = read_output(made)
    assert new.head == there.head
    assert made.splitlines()[1] == marked()[name].splitlines()[1]
    if VIEWS[name].result not in ("quickstart", "presets"):  # the others have a row for each seed, or process
        assert [row[0] for row in new.rows] == [row[0] for row in there.rows]


@in_a_checkout
def test_the_texts_say_what_the_kept_results_say():
    assert not out_of_date(kept_records()), "run `make bench-tables`"


def test_a_table_without_a_result_stays_and_one_with_a_result_is_made_from_it():
    text = "before\n\n<!-- bench: quickstart -->\n\n| old |\n|---|\n\n<!-- end of bench -->\n\nafter"
    record: dict[str, Any] = record_of(SUITE[0], NOW, quickstart_output())
    assert filled(text, {}) == text
    new = filled(text, {"quickstart": record})
    assert new.startswith("before\n\n<!-- bench: quickstart -->\n\n| seed | base loss |")
    assert new.endswith("<!-- end of bench -->\n\nafter")
    assert filled(new, {"quickstart": record}) == new


def test_a_result_that_lacks_what_its_table_needs_says_which_and_how_to_have_it():
    text = "<!-- bench: compress -->\n\nold\n\n<!-- end of bench -->"
    record = record_of(SUITE[0], NOW, markdown(["PEFT asked for", "method"], [["rank 9", "PEFT"]]))
    with pytest.raises(ValueError, match=r"compress.json does not have .*rank 1.*make bench BENCHES=compress AGAIN=1"):
        filled(text, {"compress": record})


@pytest.mark.parametrize("file", RESULT_FILES, ids=lambda file: file.stem)
def test_a_kept_result_is_whole_and_of_no_place_on_a_machine(file: Path):
    record = json.loads(file.read_text(encoding="utf8"))
    assert file.stem == record["name"] in {benchmark.name for benchmark in SUITE}
    assert {"machine", "seconds", "load", "seeds", "tables", *DETERMINES} <= record.keys()
    assert not any(place in file.read_text(encoding="utf8") for place in ("/tmp/", "/home/", "/root/"))
