"""Alerts and dashboard name metrics and labels that the program exposes, and ask for what can be answered.

That the programs expose exactly the tables used here is shown with them running: ``tests/proxy/admin/test_admin.py``,
``tests/capture/commands/test_coverage_command.py``, ``tests/e2e/test_watch.py``.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from capture.coverage_metrics import ROWS as COVERAGE
from proxy.admin.metrics import rows
from replay.refreshing.metrics import ROWS as REFRESH
from replay.watch_metrics import ROWS as WATCH
from tests.support import manifests, promql
from tests.test_architecture import ROOT

RULES = ROOT / "config" / "prometheus" / "rules.yaml"
CASES = ROOT / "tests" / "deployment" / "rules_test.yaml"
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
}
DASHBOARD: dict[str, Any] = json.loads((ROOT / "config" / "grafana" / "warmtap.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
GRAPHS = [panel for panel in PANELS if panel["type"] != "row"]
SIDECAR = {row.name for row in rows()}
KNOWN = {row.name: row.labels for row in (*rows(), *COVERAGE, *WATCH, *REFRESH)}


def test_there_is_something_to_look_at() -> None:
    assert len(ALERTS) > 5
    assert len(GRAPHS) > 20


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_can_fire(name: str) -> None:
    node = promql.parse(ALERTS[name]["expr"])
    assert {promql.family(metric) for metric, _ in promql.selectors(node)} <= set(KNOWN)
    kept = promql.labels(node, KNOWN)
    assert kept is not None
    assert "instance" in kept, "whoever is on call must be told which sidecar"
    summary = ALERTS[name]["annotations"]["summary"]
    assert set(re.findall(r"\$labels\.(\w+)", summary)) <= kept
    assert f"| `{name}` |" in (ROOT / "docs" / "metrics.md").read_text()


@pytest.mark.parametrize(
    "expression",
    [
        "warmtap_readiness == 0",
        'rate(warmtap_flows_closed_total{cause="x"}[5m])',
        "sum by (model) (warmtap_ready)",
        # An aggregate without labels beside a series that has some.
        "min(warmtap_worker_reading) == 0 and warmtap_paused == 0",
    ],
)
def test_an_expression_that_never_answers_would_be_noticed(expression: str) -> None:
    with pytest.raises((AssertionError, KeyError)):
        promql.labels(promql.parse(expression), KNOWN)


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    cases = [one for test in yaml.safe_load(CASES.read_text())["tests"] for one in test["alert_rule_test"]]
    assert {one["alertname"] for one in cases if one["exp_alerts"]} == set(ALERTS)
    assert {one["alertname"] for one in cases if not one["exp_alerts"]} == set(ALERTS)


@pytest.mark.parametrize(
    "words", [("check", "rules", str(RULES)), ("test", "rules", str(CASES))], ids=["check", "test"]
)
def test_promtool_takes_rules_and_their_cases(words: tuple[str, ...]) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing (Debian: prometheus)")
    done = subprocess.run(["promtool", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_jobs(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing (Debian: prometheus)")
    config = yaml.safe_load((RULES.parent / "scrape.yaml").read_text())
    assert [RULES.parent / name for name in config["rule_files"]] == [RULES]
    config["rule_files"] = [str(RULES)]
    [pods] = [one for one in config["scrape_configs"] if "kubernetes_sd_configs" in one]
    # Debian's is built without Kubernetes.
    [found] = pods.pop("kubernetes_sd_configs")
    assert (found["role"], found["namespaces"]["names"]) == ("pod", [manifests.KUSTOMIZATION["namespace"]])
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    words = ["promtool", "check", "config", "--syntax-only", str(path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("panel", GRAPHS, ids=lambda panel: panel["title"])
def test_a_panel_shows_metrics_that_exist(panel: dict[str, Any]) -> None:
    assert panel["description"]
    for target in panel["targets"]:
        node = promql.parse(target["expr"])
        for metric, matched in promql.selectors(node):
            assert ("instance" in matched) == (promql.family(metric) in SIDECAR), "a sidecar is chosen by its instance"
        kept = promql.labels(node, KNOWN)
        assert kept is not None
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept
        assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        # A counter is no figure to look at: since when?
        counters = [name for name, _ in promql.selectors(node) if name.endswith("_total")]
        assert len(re.findall(r"(?:rate|increase)\(\w+_total[{\[]", target["expr"])) == len(counters)


def test_the_dashboard_shows_every_loss() -> None:
    """What alerts speak of can be looked at."""
    shown = {
        name for panel in GRAPHS for one in panel["targets"] for name, _ in promql.selectors(promql.parse(one["expr"]))
    }
    alarming = {name for rule in ALERTS.values() for name, _ in promql.selectors(promql.parse(rule["expr"]))}
    assert alarming <= shown


def test_panels_lie_side_by_side() -> None:
    taken: Counter[tuple[int, int]] = Counter()
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        taken.update(
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        )
    assert set(taken.values()) == {1}
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert len({panel["title"] for panel in GRAPHS}) == len(GRAPHS)


def test_the_dashboard_can_be_imported_anywhere() -> None:
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variables["instance"]["query"]["query"])
    assert asked is not None
    assert asked[1] in KNOWN
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__rate_interval", "__all"}
    assert used == set(variables)
    assert "id" not in DASHBOARD, "an id belongs to one Grafana"
