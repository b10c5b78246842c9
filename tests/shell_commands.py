"""Check a command line of the documentation: is it one that works in a copy of the repository?

`byol` commands go through the real parser and the real configuration.
"""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

from byol.api.arguments import list_evaluation, make_partial_config
from byol.base.files import is_address
from byol.cli.main import read_arguments
from byol.config import load_partial

ROOT = Path(__file__).parents[1]


def split_commands(text: str) -> Iterator[list[str]]:
    """The words of each command, without comments, redirections and assignments before it."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&|;"):
                if words:
                    yield words
                words = []
            elif not words and re.fullmatch(r"[A-Z_]+=\S*", word):
                continue
            else:
                words.append(word)


def check_command(words: list[str]) -> None:
    """Refuse a command that cannot run in a copy of the repository."""
    if ">" in words:
        words = words[: words.index(">")]
    program = words[0].removeprefix(".venv/bin/")
    if program in ("nohup", "torchrun", "srun", "docker"):
        check_wrapper(words)
    elif program == "byol":
        check_byol(words[1:])
    elif program == "pip":
        check_pip(words[1:])
    elif program in ("python", "python3"):
        check_python(words[1:])
    elif program in (".", "mkdir", "ln", "tensorboard", "pytest"):
        assert len(words) > 1 or program == "pytest", words
    elif program == "conda":
        assert words[1:] in (["env", "create", "-f", "env.yml"], ["activate", "byol"])
    elif program == "kubectl":
        files = [word for word in words if word.endswith(".yaml")]
        assert all((ROOT / file).is_file() for file in files), words
    elif program == "sbatch":
        script = next(place for place, word in enumerate(words) if word.endswith(".sh"))
        check_script(words[script:])
    else:
        check_script(words)


def check_wrapper(words: list[str]) -> None:
    """A program that starts `byol`: what follows must be a command of byol's, or a script."""
    if words[0] == "docker" and words[1] == "build":
        assert (ROOT / words[words.index("-f") + 1]).is_file(), words
    elif words[0] == "nohup":
        check_command(words[1:])
    else:
        check_byol(words[words.index("byol") + 1 :])


def check_script(words: list[str]) -> None:
    path = ROOT / words[0]
    assert path.is_file() and path.stat().st_mode & 0o111, f"{words[0]} is no program of the repository"
    if words[0] == "examples/slurm.sh":
        check_byol(["train", words[1], "-o", words[2], *words[3:]])
    elif words[0] == "examples/slurm-pack.sh":
        check_byol(["pack", words[1], "-o", words[2], "--part", "1/64", *words[3:]])
    elif words[0] != "examples/train.sh":
        check_options(words)


def check_python(words: list[str]) -> None:
    if words[:1] == ["-m"]:
        assert words[1] in ("venv", "pytest", "mkdocs"), words
        return
    if words[0] == "run.py":
        check_byol(["run", *words[1:]])
        return
    check_options(words)


def check_options(words: list[str]) -> None:
    """A script of the repository that knows the options; its helpers beside it may declare them."""
    path = ROOT / words[0]
    assert path.is_file(), f"{words[0]} is not there"
    around = "".join(file.read_text(encoding="utf-8") for file in {path, *path.parent.glob("*.py")})
    for option in (word for word in words[1:] if word.startswith("--")):
        assert re.search(rf"[\"' ]{re.escape(option)}\b", around), f"{words[0]} has no option {option}"


def check_pip(words: list[str]) -> None:
    assert words[0] == "install", words
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for option in ("-r", "-c"):
        if option in words:
            assert (ROOT / words[words.index(option) + 1]).is_file(), words
    for word in words:
        extras = re.fullmatch(r"\.\[([\w,]+)\]", word)
        assert "byol" not in word, f"{word}: the name may be another's on the package index"
        assert extras is None or set(extras[1].split(",")) <= set(project["optional-dependencies"]), word


def check_byol(words: list[str]) -> None:
    """The real parser takes the words, and the real configuration the settings among them."""
    try:
        options = read_arguments(words)
    except SystemExit as error:
        assert error.code == 0, words
        return
    command, overrides = words[0], options.overrides
    if command in ("check", "train", "run", "pack"):
        is_there = not options.source.endswith(".yaml") or Path(options.source).is_file()
        is_there = is_there and not is_address(options.source)  # nobody answers there in tests
        make_partial_config(
            options.source if is_there else "IMAGES/",
            preset=options.preset,
            hours=getattr(options, "hours", None),
            init=getattr(options, "init", None),
            overrides=overrides,
        )
    elif command in ("eval", "finetune"):
        given = {
            name: getattr(options, name, None) for name in ("labels", "train", "test", "folds", "groups")
        }
        load_partial(None, list_evaluation(overrides, **given), preset="default")
    elif overrides:
        load_partial(None, overrides, preset=getattr(options, "preset", None) or "demo")
