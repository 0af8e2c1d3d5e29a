"""Decisions that are remembered, by the installed script: which file counts, and what it may say."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from clair_cli.cli import app, run
from clair_cli.cli.configuration import MAX_BYTES, OWN
from clair_cli.cli.parameters import parameters
from tests.conftest import Detected
from tests.helpers.commands import CONTAMINATED, clair, hooked, samples

FIRST, SECOND = sorted(CONTAMINATED)


@pytest.fixture
def place(tmp_path: Path, detected: Detected) -> Path:
    """A folder to work in, with a report in which two clients are contaminated."""
    folder = tmp_path / "place"
    folder.mkdir()
    shutil.copy(detected.json, folder / "r.json")
    return folder


def codes(report: Path, client: str) -> list[str]:
    clients = json.loads(report.read_text())["clients"]
    (found,) = [c for c in clients if c["id"] == client]
    return sorted({r["code"] for r in found["reasons"]})


def entry(client: str, names: Sequence[str], **more: str) -> str:
    """An entry as an operator writes it; `more` are values in TOML."""
    lines = [f'client = "{client}"', f"codes = {json.dumps(list(names))}"]
    fields = {"reason": '"dialect; reviewed"'} | more
    return "\n".join(["[[accept]]", *lines, *(f"{k} = {v}" for k, v in fields.items()), ""])


def both(folder: Path, **more: str) -> str:
    names = [(client, codes(folder / "r.json", client)) for client in (FIRST, SECOND)]
    return "".join(entry(client, found, **more) for client, found in names)


def shown(folder: Path, *args: object, **options: Any) -> dict[str, Any]:
    """What `clair config show` says, as JSON."""
    done = clair("config", "show", *args, "-f", "json", cwd=folder, **options)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def values(found: dict[str, Any], command: str) -> dict[str, tuple[Any, str, Any]]:
    return {
        o["option"]: (o["value"], o["source"], o["place"])
        for o in found["options"]
        if o["command"] == command
    }


Refused = Callable[..., str]


@pytest.fixture
def refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """The one line with which a file is refused, within this process: there are many."""
    monkeypatch.chdir(place)

    def line(text: str, *args: str) -> str:
        (place / "clair.toml").write_text(text)
        assert run([*(args or ("report", "r.json"))]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert "clair.toml" in err
        return err.rstrip("\n")

    return line


# --- accepted clients


def test_the_gate_obeys_a_decision_and_every_output_says_so(place: Path) -> None:
    assert clair("report", "r.json", cwd=place).returncode == 1
    (place / "clair.toml").write_text(both(place, until="9999-12-31"))
    done = clair("report", "r.json", "-o", "json=new.json", "-o", "junit=j.xml", cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert {row[1] for row in rows if row[:1] == ["accepted"]} == CONTAMINATED
    assert "but 2 accepted" in done.stdout.splitlines()[-1]
    report = json.loads((place / "new.json").read_text())
    assert report["exit_code"] == 0
    assert {c["id"] for c in report["clients"] if c["accepted"]} == CONTAMINATED
    assert {c["verdict"] for c in report["clients"] if c["accepted"]} == {"contaminated"}
    assert [a["state"] for a in report["acceptance"]] == ["accepted", "accepted"]
    assert (place / "j.xml").read_text().count("<skipped") == 2


def test_detect_and_refine_take_decisions_and_refining_is_as_without(
    adapters: Path, place: Path
) -> None:
    (place / "clair.toml").write_text(both(place) + '[refine]\nfail-on = "contaminated"\n')
    assert clair("detect", adapters, "-q", cwd=place).returncode == 0
    plain = clair("refine", adapters, "--out", "plain", "-q", "--no-config", cwd=place)
    done = clair("refine", adapters, "--out", "out", "-q", cwd=place)
    assert (plain.returncode, done.returncode) == (0, 0)
    made = [sorted(p.name for p in (place / out).iterdir()) for out in ("plain", "out")]
    assert made[0] == made[1]
    assert not CONTAMINATED & set(made[1])
    for name in set(made[0]) - {"report.json", "manifest.json"}:
        files = [place / out / name / "adapter_model.safetensors" for out in ("plain", "out")]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert len(json.loads((place / "out" / "report.json").read_text())["acceptance"]) == 2


def test_a_client_with_one_code_more_is_not_accepted(place: Path) -> None:
    found = codes(place / "r.json", FIRST)
    assert len(found) > 1
    text = entry(FIRST, found[1:]) + entry(SECOND, codes(place / "r.json", SECOND))
    (place / "clair.toml").write_text(text)
    done = clair("report", "r.json", cwd=place)
    assert done.returncode == 1
    assert f"CLR311 the acceptance of {FIRST} (dialect; reviewed) is not used" in done.stdout
    assert f"it also has {found[0]}" in done.stdout
    (place / "clair.toml").write_text(text + entry(FIRST, found[:1]))  # entries add up
    assert clair("report", "r.json", cwd=place).returncode == 0


def test_a_decision_ends_with_its_day_also_in_a_saved_report(place: Path) -> None:
    (place / "clair.toml").write_text(both(place, until="2020-01-31"))
    done = clair("report", "r.json", cwd=place)
    assert done.returncode == 1
    assert done.stdout.count("ended on 2020-01-31 and does not count") == 2
    (place / "clair.toml").write_text(both(place))
    assert clair("report", "r.json", "-q", "-o", "json=s.json", cwd=place).returncode == 0
    (place / "clair.toml").unlink()
    assert clair("report", "s.json", "-q", cwd=place).returncode == 0  # as it was decided
    old = json.loads((place / "s.json").read_text())
    for one in old["acceptance"]:
        one["until"] = "2020-01-31"
    (place / "s.json").write_text(json.dumps(old))
    assert clair("report", "s.json", "-q", cwd=place).returncode == 1


def test_a_hash_binds_a_decision_to_the_very_file(place: Path) -> None:
    inputs = json.loads((place / "r.json").read_text())["inputs"]["clients"]
    files = {f["name"]: f["sha256"] for c in inputs if c["id"] == FIRST for f in c["files"]}
    weights, config = files["adapter_model.safetensors"], files["adapter_config.json"]
    other = entry(SECOND, codes(place / "r.json", SECOND))
    for hashes, code in (
        (f'"{weights}"', 0),
        (f'"{weights.upper()}"', 0),
        (f'["{weights}", "{config}"]', 0),
        (f'"{config}"', 1),
        (f'["{weights}", "{"0" * 64}"]', 1),
        (f'"{"0" * 64}"', 1),
    ):
        own = entry(FIRST, codes(place / "r.json", FIRST), sha256=hashes)
        (place / "clair.toml").write_text(other + own)
        done = clair("report", "r.json", cwd=place)
        assert done.returncode == code, hashes
        assert ("it has sent other files" in done.stdout) == bool(code)


# --- which file counts


def test_the_nearest_file_upwards_counts_and_the_top_of_a_repository_ends_it(place: Path) -> None:
    inner = place / "a" / "b"
    inner.mkdir(parents=True)
    (place / "clair.toml").write_text('fail-on = "never"\n')
    assert shown(inner)["file"] == str(place / "clair.toml")
    (place / "a" / "pyproject.toml").write_text("[tool.other]\nx = 1\n")
    assert shown(inner)["file"] == str(place / "clair.toml")
    (place / "a" / "pyproject.toml").write_text('[tool.clair]\nfail-on = "broken"\n')
    assert values(shown(inner), "detect")["fail-on"] == ("broken", "file", "fail-on")
    (place / "a" / "clair.toml").write_text('[detect]\nfail-on = "minority"\n')
    assert values(shown(inner), "detect")["fail-on"] == ("minority", "file", "detect.fail-on")
    (inner / ".git").mkdir()
    assert shown(inner)["file"] is None
    assert shown(inner, "--config", "../clair.toml")["file"] == "../clair.toml"
    assert shown(place / "a", "--no-config")["file"] is None


@pytest.mark.parametrize("where", ["round", "round/client-01", ".", "link"])
def test_an_upload_does_not_configure_its_judge(where: str, tmp_path: Path) -> None:
    cohort = samples(tmp_path / "round")
    (tmp_path / "link").symlink_to(cohort)
    inside = cohort / "client-01" if where.endswith("01") else cohort
    (inside / "clair.toml").write_text('fail-on = "never"\n')
    (cohort / ".git").mkdir()  # nor does it end the search for the operator's own
    (tmp_path / "clair.toml").write_text("verbose = 1\n")
    done = clair("detect", cohort, cwd=tmp_path / where)
    assert done.returncode == 1
    assert done.stdout.count("\n  benign ") == 6  # as the operator's file says
    assert done.stderr.count("lies among the adapters, and is not obeyed") == 1
    forced = clair("detect", cohort, "--config", inside / "clair.toml", cwd=tmp_path)
    assert (forced.returncode, forced.stdout) == (2, "")
    assert "lies among the adapters" in forced.stderr


def test_a_link_to_an_upload_is_not_obeyed_either(tmp_path: Path) -> None:
    cohort = samples(tmp_path / "round")
    (cohort / "client-01" / "mine.toml").write_text('fail-on = "never"\n')
    (tmp_path / "clair.toml").symlink_to(cohort / "client-01" / "mine.toml")
    done = clair("detect", cohort, "-q", cwd=tmp_path)
    assert done.returncode == 1
    assert "lies among the adapters, and is not obeyed" in done.stderr


def test_what_lies_beside_an_inspected_file_came_with_it(tmp_path: Path) -> None:
    client = samples(tmp_path / "round") / "client-01"
    (client / "clair.toml").write_text("nonsense")
    for args in ((".",), ("adapter_model.safetensors",)):
        done = clair("inspect", *args, cwd=client)
        assert done.returncode == 0, done.stderr
        assert "lies among the adapters, and is not obeyed" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_user_counts_only_where_it_is_named(place: Path) -> None:
    inner = place / "inner"
    inner.mkdir()
    (place / "clair.toml").write_text('fail-on = "never"\n')
    os.chown(place / "clair.toml", 12345, 12345)
    done = clair("report", "../r.json", "-q", cwd=inner)
    assert done.returncode == 1
    assert "belongs to another user" in done.stderr
    (inner / "pyproject.toml").write_text("no TOML")  # nor is it read
    os.chown(inner / "pyproject.toml", 12345, 12345)
    assert clair("report", "../r.json", "-q", cwd=inner).returncode == 1
    (inner / "pyproject.toml").unlink()
    named = ("--config", "../clair.toml")
    assert clair("report", "../r.json", "-q", *named, cwd=inner).returncode == 0
    os.chown(inner, 12345, 12345)  # a mounted folder and its file
    assert clair("report", "../r.json", "-q", cwd=inner).returncode == 0


def test_help_looks_for_no_file_and_loads_no_parser_of_toml(tmp_path: Path) -> None:
    (tmp_path / "clair.toml").write_text("nonsense")
    for args in (("--help",), ("detect", "--help"), ("--version",)):
        assert clair(*args, cwd=tmp_path).returncode == 0
    code = """
        import atexit, os, sys
        real = os.path.isfile
        def seen(path):
            assert not str(path).endswith("clair.toml"), path
            return real(path)
        os.path.isfile = seen
        atexit.register(lambda: "tomllib" in sys.modules and os._exit(9))
    """
    env = hooked(tmp_path / "hook", code)
    assert clair("detect", "--help", cwd=tmp_path, env=env).returncode == 0


# --- order, variables, paths


def test_the_command_line_counts_before_variables_and_these_before_a_file(place: Path) -> None:
    (place / "clair.toml").write_text('fail-on = "never"\n')
    call = ("report", "r.json", "-q")
    strict = {"CLAIR_FAIL_ON": "contaminated"}
    assert clair(*call, cwd=place).returncode == 0
    assert clair(*call, cwd=place, env=strict).returncode == 1
    assert clair(*call, "--fail-on", "never", cwd=place, env=strict).returncode == 0
    own = strict | {"CLAIR_REPORT_FAIL_ON": "broken"}
    assert clair(*call, cwd=place, env=own).returncode == 0
    assert clair(*call, cwd=place, env={"CLAIR_FAIL_ON": ""}).returncode == 0
    assert clair(*call, cwd=place, env={"CLAIR_NO_CONFIG": "1"}).returncode == 1
    off = {"CLAIR_NO_CONFIG": "1", "CLAIR_CONFIG": ""}
    assert clair(*call, "--config", "clair.toml", cwd=place, env=off).returncode == 0
    named = {"CLAIR_CONFIG": "none.toml"}
    assert clair(*call, "--no-config", cwd=place, env=named).returncode == 1
    assert clair(*call, cwd=place, env=named).returncode == 2
    assert clair(*call, "--no-config", "--config", "clair.toml", cwd=place).returncode == 2


def test_what_is_wrong_is_said_of_where_it_stands(place: Path, refused: Refused) -> None:
    for env, said in (
        ({"CLAIR_THREADS": "x"}, "clair: CLAIR_THREADS: "),
        ({"CLAIR_FAIL_ON": "bad"}, "clair: CLAIR_FAIL_ON: expected suspicious"),
        ({"CLAIR_DETECT_MAX_MEMORY": "much"}, "clair: CLAIR_DETECT_MAX_MEMORY: expected a number"),
    ):
        done = clair("detect", ".", cwd=place, env=env)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(said)
    outside = place / "round"
    outside.mkdir()
    for text, said in (
        ("threads = 999\n", "clair.toml': threads: "),
        ('fail-on = "bad"\n', "clair.toml': fail-on: expected suspicious"),
        ('[detect]\nmax-memory = "much"\n', "clair.toml': detect.max-memory: expected a number"),
    ):
        assert said in refused(text, "detect", "round")


def test_variables_that_stand_for_nothing_are_shown(place: Path) -> None:
    env = {"CLAIR_FAILON": "never", "CLAIR_CLIENT": "x", "CLAIR_VERBOSE": "1"}
    found = shown(place, env=env)
    assert found["unknown"] == ["CLAIR_FAILON"]
    assert values(found, "detect")["verbose"][1:] == ("environment", "CLAIR_VERBOSE")


def test_every_option_of_every_command_may_stand_in_a_file_and_in_a_variable(place: Path) -> None:
    examples: dict[Any, str] = {bool: "true", int: "9", float: "3.5", str: '"auto"', Path: '"x"'}
    lines, count, env = [], 0, {}
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.callback.__name__
        lines.append(f"[{name}]")
        for param in parameters(command.callback):
            if param.key and param.key not in OWN:
                kind = getattr(param.kind, "__origin__", param.kind)
                words = getattr(param.kind, "__args__", ("",))
                value = examples.get(kind) or ('["a=b"]' if kind is list else json.dumps(words[-1]))
                lines.append(f"{param.key} = {value}")
                env[f"CLAIR_{name}_{param.key}".upper().replace("-", "_")] = "1"
                count += 1
    (place / "clair.toml").write_text("\n".join(lines))
    found = shown(place)
    assert count == len(found["options"]) > 80
    assert {o["source"] for o in found["options"]} == {"file"}
    env.pop("CLAIR_CONFIG_FORMAT")
    again = shown(place, env=env)["options"]
    assert sum(o["source"] == "environment" for o in again) == count - 1


def test_paths_are_those_from_the_file(place: Path, adapters: Path) -> None:
    (place / "deep").mkdir()
    (place / "clair.toml").write_text('[report]\noutput = ["json=new.json"]\nbaseline = "r.json"\n')
    done = clair("report", "../r.json", cwd=place / "deep")
    assert done.returncode == 0, done.stderr
    assert json.loads((place / "new.json").read_text())["baseline"]["clients"]


def test_ignored_names_are_no_clients_and_the_command_line_replaces_them(tmp_path: Path) -> None:
    cohort = samples(tmp_path / "round")
    (tmp_path / "clair.toml").write_text(f'ignore = ["{FIRST}", "{SECOND}"]\n')
    assert clair("detect", cohort, "-q", cwd=tmp_path).returncode == 0
    assert clair("detect", cohort, "-q", "--ignore", FIRST, cwd=tmp_path).returncode == 1


# --- what is refused


GOOD = 'client = "a"\ncodes = ["CLR203"]\nreason = "b"\n'
WRONG = {
    'failon = "never"': "failon: there is no such key; did you mean fail-on?",
    'fail_on = "never"': "fail_on: there is no such key; did you mean fail-on?",
    "[detekt]": "detekt: there is no such key; did you mean detect?",
    '[inspect]\nfail-on = "never"': "inspect.fail-on: there is no such key",
    'config = "x"': "config: there is no such key",
    "threads = true": "threads: expected a whole number, got True",
    "threads = 1.0": "threads: expected a whole number",
    'exact = "yes"': "exact: expected true or false, got 'yes'",
    'ignore = "logs"': "ignore: expected a list of strings, got 'logs'",
    'ignore = ["logs", 1]': "ignore[1]: expected a string, got 1",
    "device = 1": "device: expected a string",
    'device = "tpu"': "device: expected auto, cpu, cuda, got 'tpu'",
    "base = 1": "base: expected a string, the path of a file",
    'base = ""': "base: expected a string, the path of a file that is not empty",
    'weights = "\\u0000"': "weights: expected a string, the path of a file that is not empty",
    "fail-on = 1": "fail-on: expected a string, got 1",
    'format = "json"': "format: differs between commands; put it under one of [detect]",
    "detect = 1": "detect: there is no such key",
    "accept = 1": "accept: expected [[accept]], got 1",
    'accept = ["a"]': "accept[1]: expected a table, got 'a'",
    f"[[accept]]\n{GOOD}codez = 1": "accept[1]: codez: there is no such key; did you mean codes?",
    f"[[accept]]\n{GOOD}[[accept]]\n": "accept[2]: client: is missing",
    '[[accept]]\nclient = "a"\ncodes = []\nreason = "b"': "codes: expected one reason code",
    '[[accept]]\nclient = "a"\ncodes = ["CLR999"]\nreason = "b"': "`clair rules` lists, got 'CLR999'",
    '[[accept]]\nclient = "a"\ncodes = "CLR203"\nreason = "b"': "codes: expected a list of strings",
    '[[accept]]\nclient = "a"\ncodes = ["CLR203"]\nreason = " "': "reason: expected why",
    f'[[accept]]\n{GOOD}until = "soon"': "until: expected YYYY-MM-DD, got 'soon'",
    f'[[accept]]\n{GOOD}until = "2027-02-30"': "until: expected YYYY-MM-DD",
    f"[[accept]]\n{GOOD}until = 2027": "until: expected a date, such as 2027-03-01, got 2027",
    f"[[accept]]\n{GOOD}until = 2027-03-01T00:00:00Z": "until: expected a date",
    f'[[accept]]\n{GOOD}sha256 = "abc"': "sha256: expected 64 hexadecimal digits",
    "fail-on = ": "is no TOML: ",
    "a = " + "[" * 5000: "clair.toml': is ",
    "threads = " + "9" * 5000: "clair.toml': ",
    "x" * (MAX_BYTES + 1): f"more than {MAX_BYTES} bytes",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:40])
def test_what_no_command_knows_or_takes_is_refused_with_file_and_key(
    text: str, refused: Refused
) -> None:
    assert WRONG[text] in refused(text)


def test_a_table_of_a_project_is_held_to_the_same(place: Path) -> None:
    (place / "pyproject.toml").write_text('[tool.clair]\nfailon = "never"\n')
    done = clair("report", "r.json", cwd=place)
    assert done.returncode == 2
    assert "tool.clair: failon: there is no such key; did you mean fail-on?" in done.stderr
    (place / "pyproject.toml").write_text("[tool]\nclair = 1\n")
    assert "tool.clair: expected a table" in clair("report", "r.json", cwd=place).stderr


def test_the_config_of_adapters_is_not_taken_for_a_file_of_options(place: Path) -> None:
    (place / "adapter_config.json").write_text("{}")
    done = clair("report", "r.json", "--config", "adapter_config.json", cwd=place)
    assert done.returncode == 2
    assert "--adapter-config" in done.stderr


def test_show_is_plain_and_knows_its_commands(place: Path) -> None:
    done = clair("config", "show", cwd=place)
    assert done.stdout == "file: none\nevery option is at its default\n"
    (place / "clair.toml").write_text(entry("a\\u001b[31m", ["CLR203"]))
    done = clair("config", "show", "detect", cwd=place)
    assert "fail-on" in done.stdout
    assert "\x1b" not in done.stdout
    wrong = clair("config", "show", "detct", cwd=place)
    assert (wrong.returncode, "did you mean detect?" in wrong.stderr) == (2, True)


def test_of_groups_each_decision_is_obeyed_in_its_own_and_said_once(tmp_path: Path) -> None:
    cohort = samples(tmp_path / "round")
    found = tmp_path / "r.json"
    clair("detect", cohort, "-q", "-o", f"json={found}", cwd=tmp_path)
    entries = [entry(c, codes(found, c)) for c in (FIRST, SECOND)] + [entry("nobody", ["CLR203"])]
    (tmp_path / "clair.toml").write_text("".join(entries))
    done = clair("detect", cohort, "--group-by", "base", "-f", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = [a for g in json.loads(done.stdout)["groups"] for a in g["report"]["acceptance"]]
    assert [a["state"] for a in told] == ["accepted", "accepted", "unused"]


def test_a_mistyped_variable_is_told_by_every_command(place: Path) -> None:
    env = {"CLAIR_FAILON": "never", "CLAIR_CLIENT": "x", "CLAIR_\x1b[2J": "1"}
    done = clair("report", "r.json", "-q", cwd=place, env=env)
    assert done.returncode == 1
    assert "clair: CLAIR_FAILON stands for no option; did you mean CLAIR_FAIL_ON?\n" in done.stderr
    assert clair("config", "show", cwd=place, env=env).stderr == done.stderr.partition("FAIL: ")[0]
    assert "CLAIR_CLIENT" not in done.stderr
    assert "\x1b" not in done.stderr


def test_a_file_that_counts_here_is_said_not_to_count_for_adapters_around_it(place: Path) -> None:
    (place / "clair.toml").write_text("threads = 1\n")
    said = "does not obey it where it lies among the adapters"
    assert said in clair("config", "show", cwd=place).stdout
    assert said not in clair("config", "show", "--no-config", cwd=place).stdout
