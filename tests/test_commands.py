"""Every command in surroundings of every kind: no traceback, the documented exit code, a message
that names the cause."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from registry.cli.environment import FILES_MIN
from registry.core.text import is_plain
from tests.every_command import CASES, CONTENTS, OTHER_KEY, World, a_world, every_command, words_of
from tests.forks import BROKEN, CLOSED, FULL, PIPE, TERMINAL, Done, Forks, Surroundings
from tests.ports import free_port
from tests.support import ROOT

COMMANDS = sorted(CASES)
PRINTING = [name for name in COMMANDS if name != "serve"]
"""The flags of `serve` are those of `config show`."""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """A world that every user of this machine can look into."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "tmp").mkdir()
        (folder / "tmp").chmod(0o1777)
        with a_world(folder) as made:
            yield made


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with Forks(tmp_path_factory.mktemp("forks")) as made:
        yield made


def test_every_command_is_in_the_table() -> None:
    assert every_command().keys() == CASES.keys()
    for name, command in every_command().items():
        has_json = "--json" in {option for each in command.params for option in each.opts}
        assert CASES[name].has_json == has_json, name


OWN_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What a heading or a progress bar draws with."""


def assert_clean(name: str, done: Done) -> None:
    """No traceback, nothing that a terminal obeys, and an error that says something where the
    command failed."""
    said = done.stdout + done.stderr
    assert is_plain(OWN_CODES.sub("", said).replace("\n", "").replace("\r", "")), done
    assert "Traceback" not in said, said
    assert "Exception ignored" not in said, said
    assert "Warning" not in said, said
    if done.returncode:
        said_why = re.search(r'^(error: |\{"code":).{10}', done.stderr, re.M)
        assert said_why, (name, done)


@dataclass(frozen=True)
class Setting:
    """Surroundings, and what becomes of a command in them. `code` is given the documented one."""

    surroundings: Surroundings
    code: Callable[[int], int] = lambda documented: documented
    says: str = ""
    is_quiet: bool = False


NOBODY = 1_234_567

OTHERS = {
    "REGISTRY_AUTH_FILE": "/run/containers/0/auth.json",
    "REGISTRY_PORT": "tcp://10.0.0.2:80",
    "REGISTRY_AUTH_SERVICE_HOST": "10.0.0.2",
    "REGISTRY_DATABASE_URL_PORT_80_TCP_ADDR": "10.0.0.2",
}

# A request to this host must not go there.
PROXIES = {
    name: "socks5://127.0.0.1:9" if "all" in name else "http://127.0.0.1:9"
    for each in ("http_proxy", "https_proxy", "all_proxy")
    for name in (each, each.upper())
} | {"SSL_CERT_FILE": "/nonexistent/ca.pem", "SSL_CERT_DIR": "/nonexistent"}

SETTINGS = {
    "a proxy and certificates that are not there": Setting(Surroundings(PROXIES)),
    "a pipe, no home, variables of others": Setting(Surroundings(OTHERS, without=("HOME",))),
    "a terminal": Setting(Surroundings(stdout=TERMINAL, stderr=TERMINAL, stdin=TERMINAL)),
    "a dumb terminal of no width": Setting(
        Surroundings({"TERM": "dumb", "COLUMNS": "0"}, stdout=TERMINAL)
    ),
    "an unknown terminal of one column": Setting(
        Surroundings({"COLUMNS": "1"}, without=("TERM",), stdout=TERMINAL)
    ),
    "no colours, columns that are no number, no home to write to": Setting(
        Surroundings({"NO_COLOR": "1", "COLUMNS": "wide", "HOME": "/dev/null"}, stdout=TERMINAL)
    ),
    "standard output closed": Setting(Surroundings(stdout=CLOSED)),
    "standard error closed": Setting(Surroundings(stderr=CLOSED), is_quiet=True),
    "all streams closed": Setting(
        Surroundings(stdin=CLOSED, stdout=CLOSED, stderr=CLOSED), is_quiet=True
    ),
    "a full disk behind standard output": Setting(
        Surroundings(stdout=FULL), lambda _: 2, "The output cannot be written: No space left"
    ),
    "a full disk behind standard error": Setting(Surroundings(stderr=FULL), is_quiet=True),
    "nobody who reads": Setting(
        Surroundings(stdout=BROKEN), lambda documented: documented or 1, is_quiet=True
    ),
    "a removed directory": Setting(Surroundings(directory_is_removed=True)),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_command_does_its_work_wherever_it_is_called(
    world: World, forks: Forks, setting: str, name: str
) -> None:
    it = SETTINGS[setting]
    done = forks.run(*words_of(name, world), surroundings=it.surroundings, directory=world.folder)
    assert done.returncode == it.code(CASES[name].code), done
    if not it.is_quiet:
        assert_clean(name, done)
        assert it.says in done.stderr or CASES[name].code
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_user_without_a_name_and_a_home_is_told_what_is_missing_if_anything(
    world: World, forks: Forks, name: str
) -> None:
    variables = {"TMPDIR": str(world.folder / "tmp")}
    surroundings = Surroundings(variables, without=("HOME",), user=NOBODY)
    done = forks.run(*words_of(name, world), surroundings=surroundings, directory=world.folder)
    assert_clean(name, done)
    if done.returncode != CASES[name].code:
        # It may read the world and write nothing in it.
        assert re.search("ermission denied|write access|may not be written", done.stderr), done
    if CASES[name].kind is not None:
        assert done.returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_directory_that_may_not_be_entered_is_named(
    world: World, forks: Forks, name: str, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    surroundings = Surroundings({"TMPDIR": str(world.folder / "tmp")}, user=NOBODY)
    words = ["db", "current"] if CASES[name].opens_database else words_of(name, world)
    done = forks.run(*words, surroundings=surroundings, directory=tmp_path)
    assert_clean(name, done)
    if CASES[name].opens_database:
        assert done.returncode == 2
        assert "working directory" in done.stderr or "ermission" in done.stderr


@pytest.mark.parametrize("name", [name for name in COMMANDS if CASES[name].opens_database])
def test_a_relative_path_in_a_removed_directory_is_explained(
    world: World, forks: Forks, name: str
) -> None:
    words = words_of(name, world)
    place = words.index("--database-url")
    del words[place : place + 2]
    surroundings = Surroundings(directory_is_removed=True)
    done = forks.run(*words, surroundings=surroundings, directory=world.folder)
    assert_clean(name, done)
    assert done.returncode == 2
    assert "The working directory was removed" in done.stderr


@pytest.mark.parametrize("limit", [FILES_MIN, 6])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_may_open_too_few_files_says_so(
    world: World, forks: Forks, name: str, limit: int
) -> None:
    surroundings = Surroundings(limits={"RLIMIT_NOFILE": limit})
    done = forks.run(*words_of(name, world), surroundings=surroundings, directory=world.folder)
    assert_clean(name, done)
    if name == "doctor" and done.returncode == 1:  # What it is for.
        assert "files open" in done.stdout
    elif limit == FILES_MIN:
        assert done.returncode == CASES[name].code
    elif done.returncode != CASES[name].code:  # Some users may raise the limit.
        assert done.returncode == 2
        assert f"{limit} files open at once" in done.stderr


@pytest.fixture(scope="module")
def forks_without_extras(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Where `pip install metadata-registry` was all that was installed."""
    folder = tmp_path_factory.mktemp("without-extras")
    (folder / "sitecustomize.py").write_text(WITHOUT_EXTRAS)
    with Forks(folder, PYTHONPATH=f"{folder}:{ROOT}") as made:
        yield made


WITHOUT_EXTRAS = """
import sys
sys.modules |= dict.fromkeys(("jinja2", "lightkube", "psycopg", "psycopg_pool"))
"""


def test_the_libraries_of_all_extras_are_known_here() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirements in extras["optional-dependencies"].values():
        for requirement in requirements:
            name = re.split(r"[\[>]", requirement)[0].replace("-", "_")
            assert f'"{name}"' in WITHOUT_EXTRAS, name


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_needs_no_library_of_an_extra(
    world: World, forks_without_extras: Forks, name: str
) -> None:
    done = forks_without_extras.run(
        *words_of(name, world), surroundings=Surroundings(), directory=world.folder
    )
    assert done.returncode == CASES[name].code, done
    assert_clean(name, done)


@pytest.mark.parametrize("name", [name for name in COMMANDS if CASES[name].opens_database])
def test_a_command_says_which_extra_postgresql_needs(
    world: World, forks_without_extras: Forks, name: str
) -> None:
    words = words_of(name, world)
    words[words.index("--database-url") + 1] = "postgresql://u:p@127.0.0.1:9/d"
    words += ["--port", "0"] if name == "serve" else []
    done = forks_without_extras.run(*words, surroundings=Surroundings(), directory=world.folder)
    assert_clean(name, done)
    if name == "db backup":
        assert "This is for SQLite files" in done.stderr, done
    else:
        assert done.returncode == 2, done
        assert "metadata-registry[postgres]" in done.stderr, done


def test_a_new_database_needs_no_library_of_an_extra(
    forks_without_extras: Forks, tmp_path: Path
) -> None:
    """The commands above have one that is up to date."""
    done = forks_without_extras.run(
        "db", "upgrade", surroundings=Surroundings(), directory=tmp_path
    )
    assert done.returncode == 0, done


@pytest.mark.parametrize("name", ["attach", "fetch", "ls", "db history"])
def test_a_command_works_in_a_locale_of_ascii(world: World, tmp_path: Path, name: str) -> None:
    """Names of files are UTF-8 there, too; what is printed is what the locale can show."""
    environ = {each: text for each, text in os.environ.items() if "REGISTRY_" not in each}
    environ |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    environ |= {"PYTHONIOENCODING": "ascii", "HOME": str(tmp_path), "PYTHONWARNINGS": "error"}
    words = words_of(name, world)
    command = [sys.executable, "-m", "registry", *map(str, words)]
    command += ["--to", "größe"] if name == "fetch" else []
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environ, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    if name == "fetch":
        assert (tmp_path / "größe" / OTHER_KEY.filename).read_bytes() == CONTENTS[OTHER_KEY]


# Programs that read


@pytest.mark.parametrize("name", [name for name in COMMANDS if CASES[name].has_json])
def test_json_is_json_and_nothing_else(world: World, forks: Forks, name: str) -> None:
    done = forks.run(
        *words_of(name, world, json=True), surroundings=Surroundings(), directory=world.folder
    )
    assert done.returncode == 0, done
    assert json.loads(done.stdout) is not None
    assert_clean(name, done)


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("name", [name for name in COMMANDS if CASES[name].kind])
def test_a_service_that_is_away_is_named(world: World, forks: Forks, name: str, form: str) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    words = [away if word == world.url else word for word in words_of(name, world)]
    words += ["--json"] if form == "json" else []
    done = forks.run(*words, surroundings=Surroundings(), directory=world.folder)
    assert (done.returncode, done.stdout) == (2, "")
    if form == "json":
        problem = json.loads(done.stderr)
        assert problem.keys() >= {"code", "title", "detail"}
        assert problem["code"] == "unreachable"
        assert away in problem["detail"]
    else:
        assert_clean(name, done)
        assert f"The service at {away} does not answer" in done.stderr


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_command_line_is_an_error_like_the_others(
    world: World, forks: Forks, name: str, form: str
) -> None:
    words = [*name.split(), "--no-such-option", *(["--json"] if form == "json" else [])]
    done = forks.run(*words, surroundings=Surroundings(), directory=world.folder)
    assert (done.returncode, done.stdout) == (2, "")
    if form == "json":
        problem = json.loads(done.stderr)
        assert problem["code"] == "usage"
        assert "--no-such-option" in problem["detail"]
    else:
        assert done.stderr.startswith("error: No such option: --no-such-option")
        assert f"`metadata-registry {name} --help`" in done.stderr


# Text from elsewhere

HOSTILE = "\x1b]0;title\x07\x9b2J\u202e\u200b\r\b\udcff"


def texts_of(name: str) -> Iterator[list[str]]:
    """Command lines that give each parameter of a command that takes a text a hostile one."""
    required = [each for each in every_command()[name].params if each.required]
    for parameter in every_command()[name].params:
        words = [HOSTILE if each is parameter else "a/b/c" for each in required]
        options = {each.opts[0]: word for each, word in zip(required, words, strict=True)}
        if parameter.param_type_name == "option" and not parameter.is_flag:
            options[parameter.opts[0]] = HOSTILE
        line = [word for option, word in options.items() if not option.startswith("-")]
        for option, word in options.items():
            line += [option, word] if option.startswith("-") else []
        if HOSTILE in line:
            yield line


@pytest.mark.parametrize("name", PRINTING)
def test_text_from_a_command_line_moves_no_cursor(world: World, forks: Forks, name: str) -> None:
    """Each text in a command line is hostile once; whatever becomes of it, it is spelled out."""
    surroundings = Surroundings(
        {"REGISTRY_URL": world.url, "REGISTRY_DATABASE_URL": world.copy()},
        stdout=TERMINAL,
        stderr=TERMINAL,
    )
    for number, words in enumerate([["--no-such-" + HOSTILE], *texts_of(name)]):
        form = ["--json"] if number % 2 and CASES[name].has_json else []
        directory = world.new("directory")
        directory.mkdir()
        done = forks.run(
            *name.split(), *words, *form, surroundings=surroundings, directory=directory
        )
        assert_clean(name, done)


@pytest.mark.parametrize("form", ["--csv", "--json", None])
@pytest.mark.parametrize("to", [TERMINAL, PIPE])
def test_values_of_a_database_are_spelled_out_on_a_terminal_and_escaped_in_json(
    world: World, forks: Forks, form: str | None, to: str
) -> None:
    text = HOSTILE.removesuffix("\udcff")
    blob = text.encode().hex()
    query = f"SELECT CAST(x'{blob}' AS TEXT) AS \"{text.replace(chr(13), '')}\", 'a\nb' AS two"
    words = ["sql", query, *world.to_database(), *([form] if form else [])]
    done = forks.run(*words, surroundings=Surroundings(stdout=to), directory=world.folder)
    assert done.returncode == 0, done
    if form == "--csv" and to == PIPE:
        assert text in done.stdout
        return
    assert_clean("sql", done)
    if form == "--json":
        assert text in json.loads(done.stdout)[0].values()
    else:
        assert "\\x1b]0;title\\x07\\x9b2J\\u202e\\u200b" in done.stdout
        assert "a\\nb" in done.stdout


# Variables that are none of ours


@pytest.mark.parametrize("name", COMMANDS)
def test_a_variable_that_is_most_likely_a_slip_is_refused(
    world: World, forks: Forks, name: str
) -> None:
    surroundings = Surroundings({"REGISTRY_TOKNE": "mreg_1"})
    done = forks.run(*words_of(name, world), surroundings=surroundings, directory=world.folder)
    assert_clean(name, done)
    assert done.returncode == 2
    assert "'REGISTRY_TOKNE'" in done.stderr
    assert "Did you mean REGISTRY_TOKEN?" in done.stderr
    helped = forks.run(*name.split(), "--help", surroundings=surroundings, directory=world.folder)
    assert helped.returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_variable_is_named_and_does_not_matter(
    world: World, forks: Forks, name: str
) -> None:
    surroundings = Surroundings({"REGISTRY_WHATEVER": "1"})
    done = forks.run(*words_of(name, world), surroundings=surroundings, directory=world.folder)
    assert done.returncode == CASES[name].code
    assert "REGISTRY_WHATEVER" in done.stderr


def test_the_world_has_a_name_that_ascii_lacks() -> None:
    assert not OTHER_KEY.filename.isascii()
