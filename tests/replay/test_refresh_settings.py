"""The settings of the scheduled job, and the command around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from capture.settings_errors import SettingsError
from replay.refreshing.settings import Settings, from_data, load, markdown
from tests.support.docs import DOCS

MODEL = {"model": "m", "base": "models/m"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"models": []}, "models: nothing to do: name at least one, or one of services"),
        ({"models": [{**MODEL, "in_plaec": True}]}, "models[0].in_plaec: unknown key; did you mean in_place?"),
        ({"models": [{"model": "m"}]}, "models[0].base: missing"),
        ({"intervall": 3}, "intervall: unknown key; did you mean interval?"),
        ({"interval": 0}, "interval: expected `float` > 0"),
        (
            {"models": [{**MODEL, "promote_cold": "no"}]},
            "models[0].promote_cold: 'no' is not known; known are ",
        ),
        ({"models": [MODEL, MODEL]}, "models[1]: 'm' is already models[0]'s"),
        ({"models": [{**MODEL, "staging": "models/m"}]}, "models[0].staging: is the base itself"),
        ({"models": [{**MODEL, "staging": "models/m/7"}]}, "models[0].staging: models/m/7: the model server takes a "),
        ({"models": [{**MODEL, "scrub_rules": ["m:x=zero"]}]}, "models[0].scrub_rules: are for scrub: true"),
        ({"models": [{**MODEL, "batch_sizes": [0]}]}, "models[0].batch_sizes: 0: not a list of batch sizes"),
        ({"models": [{**MODEL, "unverified": True, "scrub": True}]}, "models[0].unverified: nothing is run then"),
        ({"models": [{**MODEL, "complete_when": "a/b"}]}, "models[0].complete_when: expected `str` matching regex"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        from_data({"models": [MODEL], **changed})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("models: [{model: m}]\n")
    with pytest.raises(SettingsError, match=r"r\.yaml: models\[0\]\.base: missing"):
        load(tmp_path / "r.yaml")


def test_every_setting_is_documented() -> None:
    page = (DOCS / "refresh.md").read_text()
    assert markdown() in page, "make docs"
    names = [field for settings in (Settings, *_inner()) for field in settings.__struct_fields__]
    names = [name for name in names if name not in ("models", "services")]
    assert [name for name in names if f"| `{name}` |" not in page] == []


def _inner() -> list[Any]:
    from replay.refreshing.settings import Model, Service

    return [Model, Service]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"base": "s3://b/m"}, "models[0].state: must be said where the base is a URL: a local directory"),
        (
            {"base": "s3://b/m", "staging": "s3://b/m/", "state": "s"},
            "models[0].staging: is the base itself, whose versions the model server loads at once",
        ),
        (
            {"base": "s3://b/m", "staging": "s3://b/m/7", "state": "s"},
            "models[0].staging: s3://b/m/7: the model server takes a number for a version",
        ),
        (
            {"base": "ftp://b/m"},
            "models[0].base: ftp://...: no such kind of place; one of: file://, s3://, oss://, gs://",
        ),
    ],
)
def test_urls_of_object_stores(model: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        from_data({"models": [{"model": "m", **model}]})
    assert str(caught.value) == said


def test_a_file_url_is_a_directory() -> None:
    (model,) = from_data({"models": [{"model": "m", "base": "file:///models/m"}]}).models
    assert model.state_directory == Path("/models/m/.warmtap")
