"""The command of `clair select`: names are data to it, whatever they are called."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from clair_cli.errors import UsageError
from clair_cli.evaluation import Runner, filled, parse_command

REFUSED = (
    "sh -c 'score {client}'",
    "sh -c 'score \"{client}\" {adapter}'",
    'bash -lc "score {adapter}"',
    "env X=1 sh -ec '{adapter}'",
    "nice -n 5 bash -o pipefail -c {client} {adapter}",
    "timeout 9 sh -c {adapter}",
    "python3 -c \"print('{client}')\" {adapter}",
    "python3 -c {client} {adapter}",
    "python3 -c{client} {adapter}",
    "perl -I lib -e {client} {adapter}",
    "awk {client} {adapter}",
    "sh {adapter}",
    "ssh host score {adapter}",
    "su user -c x {adapter}",
    "{adapter} {adapter}",
    "env -S {client} sh {adapter}",
    "python3 score.py 'client == {client}' {adapter}",
    "python3 score.py $({client}) {adapter}",
    "python3 score.py {adapter};x",
)
ALLOWED = (
    "python3 score.py {adapter}",
    "python3 -u -O score.py {adapter} -c {client}",
    "python3 -m score --adapter={adapter} --client {client}",
    'sh -c \'score "$1" "$2"\' sh {adapter} {client}',
    'sh -c \'score "$CLAIR_ADAPTER" "$CLAIR_CLIENT"\'',
    "nice sh -e ./score.sh {adapter}/adapter_config.json",
    "echo {adapter} client:{client}",
)
HOSTILE = (
    "$(touch pwned)",
    "`touch pwned`",
    '"; touch pwned; "',
    "'; touch pwned; '",
    "a && touch pwned",
    "| touch pwned",
    "a\ntouch pwned",
    "{adapter}",
    "{client}",
    "__import__('os').mkdir('pwned')",
    "*",
    "~",
    "%s",
)


@pytest.mark.parametrize("command", REFUSED)
def test_a_name_that_would_be_run_as_code_is_refused_with_the_way_to_do_it_right(
    command: str,
) -> None:
    with pytest.raises(UsageError) as found:
        parse_command(command)
    assert "$CLAIR_CLIENT" in str(found.value)
    assert str(found.value).count("\n") == 0


@pytest.mark.parametrize("command", ALLOWED)
def test_a_name_that_stays_an_argument_is_allowed(command: str) -> None:
    assert parse_command(command)


@pytest.mark.parametrize("client", HOSTILE)
@pytest.mark.parametrize("command", [c for c in ALLOWED if "client" in c.lower()])
def test_every_name_arrives_as_it_is(
    command: str, client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever runs is replaced by a program that says what it was given."""
    monkeypatch.chdir(tmp_path)
    show = "import os, sys; print(repr((sys.argv[1:], os.environ['CLAIR_CLIENT'])))"
    (tmp_path / "score").write_text(f"#!{sys.executable}\n{show}\n")
    (tmp_path / "score").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    words = list(parse_command(command))
    if words[0] != "sh":
        words[0] = "score"
    runner = Runner(20.0)
    said = runner.score(words, tmp_path / "a b", client).error or ""
    assert said.startswith("expected a finite number")  # it ran, and printed no number
    arguments = filled(words, tmp_path / "a b", client)
    if "{client}" in words:
        assert client in arguments
    assert not (tmp_path / "pwned").exists()


def test_a_name_like_an_option_is_never_an_argument_of_its_own(tmp_path: Path) -> None:
    for command in ("echo {adapter} {client}", "echo {adapter} --client {client}"):
        with pytest.raises(ValueError, match="read as an option"):
            filled(command.split(), tmp_path, "-n")
    assert filled(["echo", "{adapter}", "--client={client}"], tmp_path, "-n")[2] == "--client=-n"
    assert filled(["echo", "{adapter}", "--", "{client}"], tmp_path, "-n")[3] == "-n"


@pytest.mark.parametrize("said", ["1_0", "٣", "0x10", "nan", "infinity", "1e999", "9" * 400, "--1"])
def test_what_is_no_plain_number_is_no_score(said: str, tmp_path: Path) -> None:
    assert Runner(20.0).score(["echo", said], tmp_path, "c").score is None
    assert Runner(20.0).score(["echo", "loss", "-1.5e-3"], tmp_path, "c").score == -0.0015


def test_stopping_ends_all_that_runs_and_lets_nothing_start(tmp_path: Path) -> None:
    runner = Runner(60.0)
    code = "import subprocess; subprocess.run(['sleep', '60'])"
    threads = [
        threading.Thread(target=runner.score, args=([sys.executable, "-c", code], tmp_path, "c"))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    began = time.monotonic()
    runner.stop()
    for thread in threads:
        thread.join(20.0)
    assert time.monotonic() - began < 10
    assert runner.score(["echo", "1"], tmp_path, "c").error == "stopped"
