"""Corrupt and malicious files and texts give a UserError or a listed problem, in bounded time."""

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rarebox import config
from rarebox.core.parsing import PlainLoader, from_json, from_yaml
from rarebox.data import cvat, datasets, labelstudio, remote
from rarebox.errors import UserError
from rarebox.grid import spec
from tests import hostile

EXAMPLES = 20
"""For each reader, four hundred in all."""


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The files of each reader, made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("hostile") / "files"
            made[name].mkdir()
            hostile.READERS[name].make(made[name])
        return made[name]

    return folder


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAITS", ())


@pytest.mark.parametrize("name", hostile.READERS)
def test_whole_files_are_read(name: str, folder_of: Callable[[str], Path]) -> None:
    hostile.READERS[name].read(folder_of(name))


@pytest.mark.parametrize("name", hostile.READERS)
def test_a_corrupt_file_is_a_user_error_or_a_listed_problem(name: str, folder_of: Callable[[str], Path]) -> None:
    reader, folder = hostile.READERS[name], folder_of(name)
    files = [file for pattern in reader.spoilt for file in sorted(folder.glob(pattern))]
    whole = {file: file.read_bytes() for file in files}

    @settings(max_examples=EXAMPLES)
    @given(seed=st.integers(0, 2**32))
    def read(seed: int) -> None:
        dice = random.Random(seed)
        file = dice.choice(files)
        file.write_bytes(hostile.spoil(file, whole[file], dice))
        try:
            reader.read(folder)
        except UserError as error:
            str(error).encode()  # a message that can be shown
        finally:
            file.write_bytes(whole[file])

    read()


# ------------------------------------------------------------------------------------------- what unfolds

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{now}: &{now} [{', '.join([f'*{before}'] * 10)}]\n" for before, now in zip("abcdefgh", "bcdefghi", strict=True)
)
"""400 bytes that expand to a billion values."""

BOMBS = {
    "aliases": LAUGHS + "names: *i\ntrain: *i\n",
    "merges": LAUGHS.replace("[x, x, x, x, x, x, x, x, x, x]", "{x: 1}")
    .replace("[*", "{<<: [*")
    .replace("]\n", "]}\n"),
    "itself": "names: &a [*a]\ntrain: &b {c: *b}\n",
    "deep": "names: " + "[" * 100_000,
    "deeper": "names: " + "{a: " * 100_000,
    "blocks": "- " * 100_000,
    "digits": f"names: {'1' * 100_000}\n",
    "hexadecimal": f"names: 0x{'f' * 100_000}\n",
    "sexagesimal": f"names: 1{':1' * 100_000}\n",
    "date": "names: 2024-99-99\n",
    "tag": "names: !!python/object/apply:os.system [true]\n",
    "empty number": "names: !!int ''\n",
    "long": "names: [" + "a, " * 1_000_000 + "]",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_no_yaml_unfolds_hangs_or_ends_in_a_traceback(tmp_path: Path, bomb: str) -> None:
    file = tmp_path / "data.yaml"
    file.write_text(bomb)
    for read in (
        lambda: datasets.load(tmp_path),
        lambda: config.resolve("laptop", file),
        lambda: spec.read(file, {}),
        lambda: config.parse_changes([f"a={bomb}"]),
    ):
        begun = time.process_time()
        with pytest.raises(UserError):
            read()
        assert time.process_time() - begun < 5


def test_small_aliases_are_accepted() -> None:
    text = "base: &base {a: 1, b: [1, 2]}\nother: {<<: *base, c: 3}\nlist: [*base, *base]\n"
    assert from_yaml(text) == yaml.safe_load(text)
    read = from_yaml(text)
    assert isinstance(read, dict)
    assert read["other"] == {"a": 1, "b": [1, 2], "c": 3}


def test_a_text_that_is_parsed_again_has_values_of_its_own() -> None:
    first, plain = from_yaml("a: [1]"), from_yaml("a: [1]", PlainLoader)
    assert isinstance(first, dict)
    first["a"].append(2)
    assert from_yaml("a: [1]") == {"a": [1]}
    assert plain == {"a": ["1"]}


def test_json_that_is_nested_too_deeply_or_has_too_many_digits_is_a_value_error() -> None:
    for text in ("[" * 100_000, '{"a":' * 100_000, "1" * 100_000, b"\xff"):
        with pytest.raises(ValueError):  # which a RecursionError is not
            from_json(text)


ENTITIES = '<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">'
DOCTYPE = f"<!DOCTYPE annotations [{ENTITIES}]>"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp037"])
def test_no_xml_declares_entities(tmp_path: Path, encoding: str) -> None:
    head = b'<?xml version="1.0" encoding="cp037"?>' if encoding == "cp037" else b""
    (tmp_path / "a.xml").write_bytes(head + f"{DOCTYPE}<annotations>&b;</annotations>".encode(encoding))
    with pytest.raises(UserError, match=r"DOCTYPE or entities|well-formed|encoding"):
        cvat.read(tmp_path / "a.xml")
    with pytest.raises(UserError, match="DOCTYPE or entities"):
        labelstudio.classes_of(f"{DOCTYPE}<View>&b;</View>")
    outside = f'<!DOCTYPE x [<!ENTITY a SYSTEM "{tmp_path / "a.xml"}">]><View>&a;</View>'
    with pytest.raises(UserError, match="DOCTYPE or entities"):
        labelstudio.classes_of(outside)


def test_a_data_set_of_unfolding_aliases_ends_run_init_and_doctor(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from rarebox.cli.main import app

    hostile.make_yolo(tmp_path / "data")
    (tmp_path / "data" / "data.yaml").write_text(BOMBS["aliases"])
    for command in (
        ["run", str(tmp_path / "out"), "--data", str(tmp_path / "data")],
        ["init", str(tmp_path / "project"), "--data", str(tmp_path / "data")],
    ):
        done = CliRunner().invoke(app, command)
        assert isinstance(done.exception, UserError), done.output
        assert "this alias expands the text to more than" in str(done.exception)
    done = CliRunner().invoke(app, ["doctor", "--data", str(tmp_path / "data")])
    assert "this alias expands the text to more than" in done.output.replace("\n", " ")
    shutil.rmtree(tmp_path)
