"""Settings: every value checked, where it came from, and what the error says."""

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwaai_core.config import (
    CORE_TABLES,
    Config,
    Count,
    LogSettings,
    ServerSettings,
    default_state,
    load_config,
    parse_size,
)
from kwaai_core.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"


@dataclass(frozen=True, slots=True)
class Settings:
    """One of every kind of value."""

    count: int = 1
    share: float = 0.5
    name: str = "n"
    deep: bool = False
    paths: tuple[str, ...] = ()
    mode: Literal["a", "b"] = "a"
    limit: int | None = None
    heads: Count = 1
    most: Count | None = None


def config(document: dict[str, Any] | None = None, **more: Any) -> Config:
    return Config(Path("kwaai.toml"), Path("state"), document or {}, **more)


def read(value: Any, key: str) -> Any:
    return getattr(config({"lobe": {key: value}}).table("lobe", Settings), key)


def test_without_anything_all_is_default() -> None:
    assert config().server == ServerSettings()
    assert config().log == LogSettings()
    assert config().lobes is None
    assert config().roles == {}
    assert config().check({"lobe": Settings}) == []


def test_flag_goes_before_environment_before_file_before_default() -> None:
    layers: dict[str, Any] = {}
    assert config(**layers).sourced("server", ServerSettings)["port"] == (8000, "default")
    layers["document"] = {"server": {"port": 1}}
    found = Config(Path("kwaai.toml"), Path(), **layers).sourced("server", ServerSettings)
    assert found["port"] == (1, "kwaai.toml")
    layers["environment"] = {"KWAAI_SERVER_PORT": "2"}
    found = Config(Path("kwaai.toml"), Path(), **layers).sourced("server", ServerSettings)
    assert found["port"] == (2, "KWAAI_SERVER_PORT")
    layers["flags"] = {"server.port": 3}
    found = Config(Path("kwaai.toml"), Path(), **layers).sourced("server", ServerSettings)
    assert found["port"] == (3, "the command line")


def test_a_flag_that_was_not_given_counts_for_nothing() -> None:
    assert config({"server": {"port": 1}}, flags={"server.port": None}).server.port == 1
    assert config({"server": {"port": 1}}, flags={"server.port": 0}).server.port == 0


def test_lobes_come_from_flag_environment_or_file() -> None:
    file = {"lobes": ["c"]}
    environment = {"KWAAI_LOBES": "b, b2,"}
    assert config(file).lobes == ("c",)
    assert config(file, environment=environment).lobes == ("b", "b2")
    assert config(file, environment=environment, flags={"lobes": "a"}).lobes == ("a",)
    assert config(file, flags={"lobes": ""}).lobes == ()
    assert config(file).sourced_lobes() == (("c",), "kwaai.toml")
    assert config(environment=environment).sourced_lobes()[1] == "KWAAI_LOBES"
    assert config().sourced_lobes() == (None, "default")


@pytest.mark.parametrize(
    ("key", "value", "read_as"),
    [
        ("count", 7, 7),
        ("count", "2KiB", 2048),
        ("share", 2, 2.0),
        ("name", "ä", "ä"),
        ("deep", True, True),
        ("paths", ["a", "b"], ("a", "b")),
        ("mode", "b", "b"),
        ("limit", 5, 5),
        ("heads", 7, 7),
        ("most", 7, 7),
    ],
)
def test_values_that_fit(key: str, value: Any, read_as: Any) -> None:
    found = read(value, key)
    assert found == read_as
    assert type(found) is type(read_as)


@pytest.mark.parametrize(
    ("key", "value", "must"),
    [
        ("count", "many", "must be a whole number, or a size like 512MiB"),
        ("count", True, "must be a whole number, or a size like 512MiB"),
        ("count", 1.5, "must be a whole number, or a size like 512MiB"),
        ("share", "x", "must be a number"),
        ("share", False, "must be a number"),
        ("name", 1, "must be a text"),
        ("deep", 1, "must be true or false"),
        ("deep", "yes", "must be true or false"),
        ("paths", "a", "must be a list"),
        ("paths", [1], "must be a text"),
        ("mode", "c", "must be one of a, b"),
        ("mode", ["a"], "must be one of a, b"),
        ("limit", "x", "must be a whole number, or a size like 512MiB"),
        ("heads", "8KB", "must be a whole number"),
        ("heads", True, "must be a whole number"),
        ("most", "8", "must be a whole number"),
    ],
)
def test_values_that_do_not_fit(key: str, value: Any, must: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(value, key)
    assert str(caught.value) == f"kwaai.toml: [lobe] {key} = {_shown(value)}: {must}"


def _shown(value: Any) -> str:
    return repr(value[0]) if value == [1] else repr(value)


@pytest.mark.parametrize(
    ("key", "text", "read_as"),
    [
        ("count", "12", 12),
        ("count", "1GiB", 1 << 30),
        ("share", "0.25", 0.25),
        ("deep", "TRUE", True),
        ("deep", "0", False),
        ("paths", "a, b,", ("a", "b")),
        ("mode", "b", "b"),
        ("limit", "3", 3),
        ("heads", "3", 3),
        ("most", "3", 3),
    ],
)
def test_values_of_the_environment(key: str, text: str, read_as: Any) -> None:
    environment = {f"KWAAI_MY_LOBE_{key.upper()}": text}
    table = config(environment=environment).table("my-lobe", Settings)
    assert getattr(table, key) == read_as


@pytest.mark.parametrize(
    ("key", "text"), [("count", "x"), ("share", ""), ("deep", "perhaps"), ("heads", "1KB")]
)
def test_a_bad_variable_is_named(key: str, text: str) -> None:
    variable = f"KWAAI_LOBE_{key.upper()}"
    with pytest.raises(ConfigError, match=variable):
        config(environment={variable: text}).table("lobe", Settings)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"server": {"prot": 1}}, "[server] prot: there is no such key; did you mean “port”?"),
        ({"sever": {}}, "sever: there is no such table; did you mean “server”?"),
        ({"roles": {"ruter": "x"}}, "[roles] ruter: there is no such role; did you mean “router”?"),
        ({"chat": {"zzz": 1}}, "[chat] zzz: there is no such key; there are: model"),
        ({"server": 1}, "server must be a table: [server]"),
        ({"roles": {"router": 1}}, "[roles] router = 1: must be a text"),
        ({"lobes": "echo"}, "lobes = 'echo': must be a list"),
    ],
)
def test_what_is_wrong_is_named(document: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(document).check({})
    assert str(caught.value) == f"kwaai.toml: {message}"


@pytest.mark.parametrize(
    ("key", "value", "must"),
    [
        ("port", 65536, "must be 0 to 65535"),
        ("port", -1, "must be 0 to 65535"),
        ("max_body", 0, "must be more than 0"),
        ("body_timeout", float("nan"), "must be more than 0"),
        ("ping_seconds", -2.0, "must be more than 0"),
        ("grace_seconds", -0.5, "must not be less than 0"),
    ],
)
def test_a_value_out_of_range_is_named(key: str, value: float, must: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _ = config({"server": {key: value}}).server
    assert str(caught.value) == f"kwaai.toml: [server] {key} = {value}: {must}"
    variable = f"KWAAI_SERVER_{key.upper()}"
    with pytest.raises(ConfigError, match=variable):
        _ = config(environment={variable: str(value)}).server


@pytest.mark.parametrize("key", ["port", "connections", "max_messages"])
@pytest.mark.parametrize("value", ["8KB", "x", "8000"])
def test_what_is_not_of_bytes_is_no_size(key: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _ = config({"server": {key: value}}).server
    message = f"kwaai.toml: [server] {key} = '{value}': must be a whole number"
    assert str(caught.value) == message
    assert config({"server": {"max_body": "8KB"}}).server.max_body == 8000


def test_a_variable_that_does_nothing_is_a_warning() -> None:
    environment = {"KWAAI_SERVER_PROT": "1", "KWAAI_ELSEWHERE": "x", "KWAAI_STATE": "s"}
    elsewhere, misspelt = config(environment=environment).check({})
    assert elsewhere.startswith(
        "KWAAI_ELSEWHERE is no setting of core or of an installed lobe, and"
    )
    assert misspelt.startswith("KWAAI_SERVER_PROT is no setting of core")
    assert misspelt.endswith("did you mean KWAAI_SERVER_PORT?")
    assert config(environment={"KWAAI_LOBE_COUNT": "1"}).check({"lobe": Settings}) == []


def test_a_role_that_many_may_fill_is_not_chosen() -> None:
    with pytest.raises(ConfigError, match="executor: there is no such role"):
        _ = config({"roles": {"executor": "x"}}).roles


def test_the_table_of_a_lobe_that_is_not_installed_is_a_warning() -> None:
    assert config({"elsewhere": {"key": 1}}).check({}) == [
        "kwaai.toml: [elsewhere] belongs to no installed lobe and does nothing"
    ]


def test_the_table_of_a_broken_lobe_is_let_be() -> None:
    environment = {"KWAAI_SERVE_PORT": "1"}
    left = config({"serve": {"key": 1}}, environment=environment)
    assert left.check({}, ["serve"]) == []
    with pytest.raises(ConfigError, match="serve: there is no such table"):
        left.check({})


def test_the_table_of_a_lobe_is_checked() -> None:
    with pytest.raises(ConfigError, match="did you mean “count”"):
        config({"lobe": {"coutn": 1}}).check({"lobe": Settings})


@given(st.integers(0, 2**60), st.sampled_from(["", "K", "M", "G", "T"]), st.booleans())
def test_sizes_count_in_powers_of_their_prefix(number: int, prefix: str, binary: bool) -> None:
    binary = binary and bool(prefix)
    base = 1024 if binary else 1000
    text = f"{number} {prefix}{'i' * binary}B"
    assert (
        parse_size(text)
        == parse_size(text.lower())
        == number * base ** " KMGT".index(prefix or " ")
    )


@pytest.mark.parametrize("text", ["", "B", "x", "1PB", "-1", "1 2", "1iB", "1e9", "٣"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_size(text)


def test_a_part_of_a_size_is_whole_bytes() -> None:
    assert parse_size("1.5KiB") == 1536


KEYS = [f.name for f in fields(Settings)]
values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text())
)


@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), values))
def test_any_table_is_read_or_refused_in_words(table: dict[str, Any]) -> None:
    try:
        settings = config({"lobe": table}).table("lobe", Settings)
    except ConfigError as error:
        assert "lobe" in str(error)
    else:
        assert set(table) <= set(KEYS)
        for f in fields(Settings):
            assert f.name in table or getattr(settings, f.name) == f.default


@given(st.dictionaries(st.sampled_from(KEYS), st.text()))
def test_any_environment_is_read_or_refused_in_words(texts: dict[str, str]) -> None:
    environment = {f"KWAAI_LOBE_{key.upper()}": text for key, text in texts.items()}
    try:
        config(environment=environment).table("lobe", Settings)
    except ConfigError as error:
        assert "KWAAI_LOBE" in str(error)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("KWAAI_CONFIG", "KWAAI_STATE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "kwaai").mkdir()
    return tmp_path


def test_the_file_need_not_exist(home: Path) -> None:
    assert load_config().document == {}
    assert load_config().state == home / "state" / "kwaai" == default_state()


def test_the_file_is_read(home: Path) -> None:
    (home / "kwaai" / "kwaai.toml").write_text('[log]\nlevel = "debug"\n')
    assert load_config().log.level == "debug"


def test_a_file_that_was_named_must_exist(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KWAAI_CONFIG", str(home / "missing.toml"))
    with pytest.raises(ConfigError, match=r"missing\.toml, which does not exist"):
        load_config()
    monkeypatch.setenv("KWAAI_CONFIG", "")
    assert load_config().file == home / "kwaai" / "kwaai.toml"


@pytest.mark.parametrize("content", [b"[server", b"a = 1\na = 2", b"\xff"])
def test_a_broken_file_is_named(home: Path, content: bytes) -> None:
    file = home / "kwaai" / "kwaai.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(str(file))):
        load_config()


def test_a_folder_in_its_place_is_named(home: Path) -> None:
    (home / "kwaai" / "kwaai.toml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config()


def test_an_empty_state_variable_is_the_platform_s_place(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KWAAI_STATE", "")
    assert load_config().state == home / "state" / "kwaai"
    monkeypatch.setenv("KWAAI_STATE", "/elsewhere")
    assert load_config().state == Path("/elsewhere")


@pytest.mark.parametrize(("table", "kind"), CORE_TABLES.items())
def test_every_key_is_documented_with_its_default(table: str, kind: type[Any]) -> None:
    section = PAGE.read_text().split(f"## `[{table}]`")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", section, re.MULTILINE)
    assert dict(rows) == {f.name: json.dumps(f.default) for f in fields(kind)}


def test_every_single_role_is_documented() -> None:
    section = PAGE.read_text().split("## `[roles]`")[1].split("\n## ")[0]
    for role in ("identity", "transport", "trust", "settlement", "embedder", "router"):
        assert f"`{role}`" in section


def test_a_value_at_the_top_is_a_key_and_no_table() -> None:
    for key in ("prot", "lobs"):
        with pytest.raises(ConfigError, match=f"{key}: there is no such key"):
            config({key: 9}).check({})


def test_a_size_is_named_where_a_number_is_wanted() -> None:
    with pytest.raises(ConfigError, match="a whole number, or a size like 512MiB"):
        read("3 bananas", "count")
