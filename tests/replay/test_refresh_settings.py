"""The settings of the scheduled job, and the command around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from capture.settings_errors import SettingsError
from capture.settings_table import sections
from replay.refreshing.settings import Settings, from_data, load, markdown
from tests.support.docs import DOCS

MODEL = {"model": "m", "base": "models/m"}
OTHER = {"model": "n", "base": "models/n"}
SERVICE = {"service": "s", "to": "oss://b/s", "state": "states/s"}


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
        (
            {"models": [MODEL, {**OTHER, "base": "models/../models/m/"}]},
            "models[1]: 'models/../models/m/' is already m",
        ),
        ({"models": [MODEL, {**OTHER, "staging": "models/m"}]}, "models[1]: 'models/m' is already models[0]'s"),
        ({"models": [{**MODEL, "state": "t"}, {**OTHER, "state": "./t"}]}, "models[1]: 't' is already models[0]'s"),
        (
            {"services": [{**SERVICE, "state": "models/m/.warmtap"}]},
            "services[0]: 'models/m/.warmtap' is already model",
        ),
        (
            {"services": [SERVICE, {**SERVICE, "service": "t", "state": "states/t"}]},
            "services[1]: 'oss://b/s' is already services[0]'s",
        ),
        ({"models": [{**MODEL, "staging": "./models/x/../m"}]}, "models[0].staging: is the base itself"),
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


#: File of tests -> setting -> the test that shows its effect.
SHOWN_BY = {
    "test_refresh_command.py": {
        "store": "test_several_models_and_what_was_published",
        "models[].model": "test_several_models_and_what_was_published",
        "models[].base": "test_several_models_and_what_was_published",
        "models[].unverified": "test_several_models_and_what_was_published",
        "models[].state": "test_the_state_is_where_the_settings_say",
        "models[].scrub": "test_the_settings_reach_the_job",
        "models[].scrub_rules": "test_the_settings_reach_the_job",
        "models[].batch_sizes": "test_the_settings_reach_the_job",
        "models[].record_timeout": "test_the_settings_reach_the_job",
        "prometheus": "test_metrics_for_the_node_exporter",
        "interval": "test_it_goes_on_until_it_is_told_to_stop",
        "jitter": "test_jobs_that_began_together_do_not_stay_together",
        "allow_shared_store": "test_a_store_that_others_may_read",
    },
    "test_refresh_promotion.py": {
        "models[].staging": "test_a_staged_version_goes_out_with_its_file",
        "models[].complete_when": "test_one_that_is_not_complete_waits",
        "models[].promote_cold": "test_a_version_on_which_nothing_runs",
    },
    "test_refresh_union.py": {
        "models[].in_place": "test_without_in_place_a_served_file_is_left_alone",
        "models[].retire_after": "test_age_is_what_shrinks_a_set",
    },
}


def test_every_setting_is_documented_and_has_a_test() -> None:
    assert markdown() in (DOCS / "refresh.md").read_text(), "make docs"
    shown = {setting for tests in SHOWN_BY.values() for setting in tests}
    # Services of EAS have tests of their own: tests/replay/publishing.
    known = {row.place for place, _, rows in sections(Settings) for row in rows if place != "services[]"}
    assert known <= shown, known - shown
    for file, tests in SHOWN_BY.items():
        text = Path(__file__).with_name(file).read_text()
        assert [name for name in tests.values() if f"def {name}(" not in text] == []
