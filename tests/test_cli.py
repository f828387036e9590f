"""The command line: what it prints, writes and returns."""

import json
import os
import subprocess
import sys

import pytest
import typer
from prometheus_client import CollectorRegistry

from apl_guard import cli
from apl_guard.cli.options import complete_policy


def test_policies(run):
    """List and show."""
    listed = run("policy", "list")[1].splitlines()
    assert any(line.startswith("anonymize_faces ") for line in listed)
    assert len({line.index("version") for line in listed}) == 1
    assert "prompt_embeds" in run("policy", "show", "anonymize_faces")[1]
    assert json.loads(run("policy", "show", "anonymize_faces", "--json")[1])["kind"] == "Policy"
    assert run("policy", "show", "nothing")[0] == 2


def test_a_policy_that_is_nearly_named(run, tmp_path):
    """Each command says which one was meant."""
    for arguments in (["show", "anonymise_faces"], ["init", tmp_path / "a.yaml", "--from", "anonymise_faces"]):
        code, _, err = run("policy", *arguments)
        assert (code, "did you mean 'anonymize_faces'?" in err) == (2, True)
    for prompt in ("a photo of Mara Voss", "a photo of Mara Voss " * 20):  # longer than a file can be called
        code, _, err = run("policy", "explain", prompt)
        assert (code, "expected both" in err, "Mara" in err) == (2, True, False)


def test_lists_of_the_platform_are_not_asked_for_where_texts_are_compared(run, monkeypatch, tmp_path):
    """Built-in policies name lists that may not be there yet."""
    monkeypatch.setenv("APL_GUARD_NAMES", str(tmp_path))

    code, out, _ = run("policy", "diff", "anonymize_named", "block_named")
    assert (code, '+ spec.rules.prompts-that-name-somebody.then.action: "block"' in out) == (1, True)


def test_a_shell_completes_policies(tmp_path, monkeypatch):
    """Names of built-in ones, and files, also of other folders. Folders and blanks, a shell does better by itself."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for file in ("an.yaml", "an.txt", "a n.yaml", "sub/b.yml"):
        (tmp_path / file).write_text("")

    assert complete_policy("anonymize_n") == ["anonymize_named"]
    assert complete_policy("an.") == ["an.yaml"]
    assert complete_policy("a ") == []
    assert complete_policy("s") == ["shadow_anonymize_faces"]
    assert complete_policy("su") == []
    assert complete_policy(f"{tmp_path}/sub/") == [f"{tmp_path}/sub/b.yml"]
    assert complete_policy("nowhere/") == []


@pytest.mark.parametrize(
    "line",
    [
        "generate --policy anonymize_n",
        "selftest --policy anonymize_n",
        "policy show anonymize_n",
        "policy init --from anonymize_n",
        "policy replay mine.yaml log --was anonymize_n",
    ],
)
def test_a_shell_completes_policies_wherever_one_is_named(line):
    """As an argument and as an option, by the protocol that the installed completion speaks."""
    words = ["apl-guard", *line.split()]
    asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1), "_APL_GUARD_COMPLETE": "complete_bash"}
    code = "import sys; sys.argv[0] = 'apl-guard'; from apl_guard.cli import main; main()"
    environment = os.environ | asked | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["anonymize_named"]


def test_a_file_that_cannot_be_read_is_one_line(run, tmp_path, monkeypatch):
    """Whatever the system says about it, nobody sees a traceback."""

    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder / "log.json"))

    monkeypatch.setattr("apl_guard.audit.signed.read_identity", refuse)
    code, _, err = run("audit", "prove", tmp_path, "d")
    assert (code, err) == (1, f"error: {tmp_path}/log.json: Permission denied\n")


@pytest.mark.smoke
def test_generate(run, model, trained, tmp_path):
    """A picture and a line for each prompt, records in the folder; the prefix found in the registry."""
    run("prefix", "register", trained)
    arguments = (
        "generate",
        "--model",
        model,
        "--steps",
        1,
        "--audit",
        tmp_path / "audit",
        "--audit-witness",
        tmp_path / "witness",
        "--output",
        tmp_path / "out",
    )

    code, out, _ = run(*arguments, "a photo of a man", "a cat " * 90)

    assert code == 0
    lines = out.splitlines()
    assert [line.split()[:2] for line in lines] == [["000", "anonymize"], ["001", "anonymize"]]
    assert "did not fit" in lines[1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000.png", "001.png"]
    code, out, _ = run("audit", "verify", tmp_path / "audit", "--witness", tmp_path / "witness", "--json")
    assert (code, json.loads(out)["verdict"]) == (0, "valid")
    segments = (tmp_path / "audit" / "segments").iterdir()
    assert "".join(path.read_text() for path in segments).count('"event":"guard.') == 4


def test_generate_with_the_same_seed_gives_the_same_picture(run, model, trained, tmp_path):
    """And another with another seed."""
    pictures = []
    for number, seed in enumerate([1, 1, 2]):
        folder = tmp_path / str(number)
        code, *_ = run(
            "generate", "--model", model, "--prefix", trained, "--seed", seed, "--steps", 1, "--output", folder, "a man"
        )
        assert code == 0
        pictures.append((folder / "000.png").read_bytes())

    assert pictures[0] == pictures[1] != pictures[2]


def test_generate_under_a_policy_that_blocks(run, model, tmp_path):
    """Exit code 3, no picture, and the reason in the line."""
    policy = tmp_path / "none.yaml"
    policy.write_text(
        "apiVersion: apl-guard/v1\nkind: Policy\nmetadata: {name: none, version: 1}\n"
        "spec: {rules: [{id: nothing, when: {channels: [prompt]}, then: {action: block}}]}\n"
    )

    code, out, _ = run("generate", "--model", model, "--policy", policy, "--output", tmp_path / "out", "a man")

    assert code == 3
    assert "block" in out
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"--model": "/no/such/model"}, 2, "no such folder"),
        ({"--model": "nobody/nothing"}, 2, "hub"),
        ({"--policy": "nothing"}, 2, "anonymize_faces"),
        ({"--prefix": "nothing"}, 2, "prefix list"),
        ({"--prefix": None}, 4, "apl-guard train"),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_code(run, model, trained, tmp_path, changes, code, message):
    """2 for wrong input, 4 where the guard cannot do its work."""
    options = {"--model": model, "--prefix": trained, "--output": tmp_path / "out"} | changes
    arguments = [part for name, value in options.items() if value is not None for part in (name, value)]

    found, out, err = run("generate", *arguments, "a man")

    assert (found, out) == (code, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err


@pytest.mark.parametrize("command", [[], ["prefix"], ["policy"], ["generate"], ["prefix", "register"]])
def test_help_comes_without_asking(run, command):
    """A command without arguments shows how it is used."""
    _, out, err = run(*command)

    assert "Usage" in out + err


def test_the_help_of_train_lists_every_option(run):
    """All that --set reaches, with its default, the words that it takes and what it does."""
    from apl_guard.trainer.config import TrainConfig

    told = " ".join(run("train", "--help")[1].split())

    for name, field in TrainConfig.model_fields.items():
        assert field.description, name
        default = "" if field.default is None else field.default
        assert f"{name}={default}" in told
        assert field.description.split()[-1] in told
    assert "schedule=cosine (cosine|linear|constant)" in told


PROGRAM = typer.main.get_command(cli.app)


def commands(group, *names):
    """The words of each command, the groups among them, and the command."""
    yield names, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *names, name)


@pytest.mark.parametrize(
    ("names", "command"), [pytest.param(*each, id=" ".join(each[0])) for each in commands(PROGRAM)]
)
def test_help_fits_a_terminal(monkeypatch, capsys, names, command):
    """In 80 columns no name of an option is cut off."""
    monkeypatch.setenv("COLUMNS", "80")

    PROGRAM([*names, "--help"], prog_name="apl-guard", standalone_mode=False)
    told = capsys.readouterr().out

    options = [option for parameter in command.params for option in parameter.opts if option.startswith("-")]
    assert [option for option in options if f" {option} " not in told] == []


def test_version(run):
    """Nothing but the version."""
    from apl_guard import __version__

    assert run("--version")[:2] == (0, f"{__version__}\n")


class TestGenerateWhatCannotBe:
    """One line that says why, and no traceback."""

    @pytest.fixture
    def generate(self, run, model, trained, tmp_path):
        def call(*options):
            return run(
                *("generate", "--model", model, "--prefix", trained, "--output", tmp_path / "out", *options, "a man")
            )

        return call

    @pytest.mark.parametrize(
        ("options", "code"),
        [
            (("--steps", 100_000), 1),
            (("--seed", 10**20), 2),
            (("--device", "abacus"), 2),
        ],
    )
    def test_arguments_that_the_model_cannot_take(self, generate, options, code):
        """Its own error as one line, and an argument that is wrong beforehand as such."""
        found, out, err = generate(*options)

        assert (found, out) == (code, "")
        assert "Traceback" not in err

    @pytest.mark.parametrize("index", ["[]", "[" * 100_000, None])
    def test_a_model_whose_index_is_none(self, generate, tmp_path, index):
        """No object, too deep, or a pipe, which nobody waits for."""
        folder = tmp_path / "broken"
        folder.mkdir()
        if index is None:
            os.mkfifo(folder / "model_index.json")
        else:
            (folder / "model_index.json").write_text(index)

        code, _, err = generate("--model", folder)

        assert (code, "no readable model_index.json" in err) == (2, True)


def test_a_device_is_not_made_a_file(run, tmp_path):
    """What is written takes the place of a file, never that of a device or a pipe."""
    os.mkfifo(tmp_path / "pipe")

    code, _, err = run("metrics", "rules", "--output", tmp_path / "pipe")

    assert (code, "is a device or a pipe" in err) == (1, True)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    "arguments",
    [("audit", "verify"), ("audit", "stats"), ("prefix", "import", "--model", "minifaces", "--output", "out")],
)
def test_an_error_about_a_file_commands_no_terminal(run, arguments, tmp_path):
    """Whoever brings a file names it: neither the title nor the direction of writing is theirs to set."""
    code, _, err = run(*arguments, tmp_path / "\x1b]0;title\x07\u202ename")

    assert code
    assert err.rstrip("\n").isprintable()
    assert "\\x1b]0;title\\x07\\u202ename" in err


@pytest.mark.parametrize("address", ["..a", "a" * 300])
def test_an_address_that_is_none(run, address, monkeypatch):
    """Of metrics, too."""
    monkeypatch.setattr("apl_guard.metrics.of_all_processes", CollectorRegistry)

    code, _, err = run("metrics", "serve", "--port", 0, "--address", address)

    assert (code, "metrics cannot be served" in err) == (1, True)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal of POSIX")
@pytest.mark.parametrize(
    ("wishes", "is_coloured"),
    [
        ({"NO_COLOR": "", "TERM": "xterm"}, True),
        ({"NO_COLOR": "1", "TERM": "xterm"}, False),
        ({"NO_COLOR": "", "TERM": "dumb"}, False),
    ],
)
def test_errors_are_coloured_on_a_terminal_unless_nobody_wants_that(wishes, is_coloured):
    """By the variables that terminals and programs have agreed upon."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "apl_guard", "policy", "show", "nothing"]
    environment = os.environ | wishes | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(command, env=environment, stderr=theirs, timeout=60)
    os.close(theirs)
    said = os.read(ours, 10_000)
    os.close(ours)

    assert (b"cannot be read" in said, b"\x1b[" in said) == (True, is_coloured)


def test_a_short_run_says_nothing_besides_its_answer(tmp_path):
    """No bars, which leave carriage returns in a log or a journal; no warning of records that nobody asked for."""
    command = [sys.executable, "-m", "apl_guard", "generate", "--model", "minifaces", "--prefix", "minifaces"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    done = subprocess.run(
        [*command, "--steps", "1", "--output", tmp_path, "a red car"], env=environment, capture_output=True, timeout=240
    )

    assert (done.returncode, b"000.png" in done.stdout, done.stderr) == (0, True, b"")


def test_onnxruntime_reports_nothing(tmp_path):
    """It would leave a device id in the user's cache when it is imported."""
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    program = (
        "import sys\n"
        "from apl_guard.cli import main\n"
        "sys.argv = ['apl-guard', '--version']\n"
        "try: main()\n"
        "except SystemExit: import onnxruntime"
    )
    nowhere = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"} | nowhere
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)

    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_the_program_is_loaded_is_no_traceback():
    """It comes in the middle of an import."""
    program = (
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'apl_guard.cli': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from apl_guard.__main__ import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
