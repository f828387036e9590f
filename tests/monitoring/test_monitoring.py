"""The shipped rules and the dashboard against a real Prometheus, which scrapes a running guard."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from apl_guard import (
    Gallery,
    Guard,
    GuardUnavailable,
    InvalidInput,
    LeakWatch,
    OutputCheck,
    Policy,
    PolicyBlocked,
    backend,
)
from apl_guard.cli import app
from apl_guard.metrics.families import Families

HERE = Path(__file__).parent
SHIPPED = HERE.parents[1] / "apl_guard" / "metrics" / "monitoring"
RULES = SHIPPED / "rules.yml"
sys.path.insert(0, str(HERE.parent / "audit"))

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus is not installed; apt-get install prometheus",
)


def promtool(*arguments):
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_rules_are_sound():
    """Prometheus' own check."""
    promtool("check", "rules", "--lint-fatal", str(RULES))


@needs_prometheus
def test_each_alert_fires_when_it_should_and_only_then():
    """Prometheus' own unit tests of rules, over hours in a moment."""
    promtool("test", "rules", str(HERE / "rules_test.yml"))


def test_every_alert_is_tested_and_explained():
    """By name, in the unit tests and on the page."""
    alerts = re.findall(r"alert: (\w+)", RULES.read_text())
    page = (HERE.parents[1] / "docs" / "metrics.md").read_text()
    assert len(alerts) == len(set(alerts)) > 5
    assert re.findall(r"^\| `(AplGuard\w+)`", page, re.MULTILINE) == alerts
    tests = (HERE / "rules_test.yml").read_text()
    # Each is shown not to fire, and to fire.
    assert [alert for alert in alerts if len(re.findall(rf"alertname: {alert}\b", tests)) < 2] == []


def test_every_alert_says_what_to_do_in_itself_and_in_the_runbook():
    """Who is woken by it has its annotations first, then the page on a service."""
    rules = yaml.safe_load(RULES.read_text())["groups"]
    alerts = [rule for group in rules for rule in group["rules"] if "alert" in rule]
    runbook = (HERE.parents[1] / "docs" / "service.md").read_text().partition("## Runbook")[2]
    assert [each["alert"] for each in alerts if not each["annotations"].get("description")] == []
    assert [each["alert"] for each in alerts if f"`{each['alert']}`" not in runbook] == []


def test_every_metric_is_on_the_dashboard():
    """One that nobody sees might as well not be counted."""
    families = CollectorRegistry()
    Families(families)
    shown = " ".join(queries())
    assert [metric.name for metric in families.collect() if not re.search(rf"\b{metric.name}_?\w*\{{", shown)] == []


@pytest.mark.parametrize(
    ("title", "good", "bad"),
    [
        ("Protected images", 1, 0.99),
        ("Unprotected by on_error, last hour", 0, 1),
        ("Unwritten records, last hour", 0, 1),
    ],
)
def test_what_is_critical_is_red_on_the_dashboard(title, good, bad):
    """Without thresholds of its own, Grafana shows a figure green until it reaches 80."""
    steps = panel(title)["fieldConfig"]["defaults"]["thresholds"]["steps"]

    def colour(value):
        return [step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1]

    assert (colour(good), colour(bad)) == ("green", "red")


def test_no_other_figure_is_coloured_and_no_table_shows_the_time_of_a_query():
    """What is neither good nor bad by itself has no colour; of an info metric the labels alone say something."""
    panels = json.loads((SHIPPED / "dashboard.json").read_text())["panels"]
    stats = [one for one in panels if one["type"] == "stat" and "thresholds" not in one["fieldConfig"]["defaults"]]
    assert [one["title"] for one in stats if one["options"].get("colorMode") != "none"] == []
    for one in panels:
        if one["type"] == "table":
            assert one["transformations"][0]["options"]["excludeByName"] == {"Time": True, "Value": True}


def test_pages_name_panels_as_the_dashboard_does():
    """Who follows the runbook finds the panel."""
    pages = " ".join(page.read_text() for page in (HERE.parents[1] / "docs").glob("*.md"))
    named = re.findall(r"panel \*([^*]+)\*", pages)
    assert named
    for title in named:
        panel(title)


def panel(title):
    """The panel of the dashboard that is called so."""
    (found,) = (one for one in json.loads((SHIPPED / "dashboard.json").read_text())["panels"] if one["title"] == title)
    return found


@pytest.mark.parametrize(("command", "name"), [("rules", "rules.yml"), ("dashboard", "dashboard.json")])
def test_the_command_line_hands_them_out(tmp_path, command, name):
    """Printed, and into a file, byte for byte."""
    shipped = (SHIPPED / name).read_bytes()
    assert CliRunner().invoke(app, ["metrics", command]).stdout_bytes == shipped
    CliRunner().invoke(app, ["metrics", command, "--output", str(tmp_path / name)], catch_exceptions=False)
    assert (tmp_path / name).read_bytes() == shipped


class Prometheus:
    """A running server that scrapes one port each second and evaluates the shipped rules."""

    def __init__(self, folder, port):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": "guard", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        self._log = (folder / "prometheus.log").open("w")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self._port}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def ask(self, query):
        """The answer to an instant query."""
        arguments = urllib.parse.urlencode({"query": query})
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/api/v1/query?{arguments}", timeout=10) as answer:
            return json.load(answer)["data"]["result"]

    def wait_for(self, query, seconds=60):
        """Ask until there is an answer."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                found = self.ask(query)
                if found:
                    return found
            time.sleep(0.25)
        pytest.fail(f"no answer to {query} within {seconds} seconds")

    def close(self):
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


class OneFace:
    """A recogniser that finds somebody in each black picture, and somebody else in every other."""

    name = "one face"

    def __call__(self, pictures):
        return [np.eye(2, dtype=np.float32)[[int(picture.any())]] for picture in pictures]


def call_in_every_way(guard, monkeypatch):
    """One call for each way in which it can end, and one in which a name is found."""

    def missing(*_):
        raise GuardUnavailable("not now")

    with guard.context(tenant="acme"):
        guard("a cat")
    with pytest.raises(PolicyBlocked):
        guard("a photo of Mara Voss")
    with pytest.raises(InvalidInput):
        guard(7)
    with pytest.raises(RuntimeError, match="broke"):
        guard("break")
    with monkeypatch.context() as patched:
        patched.setattr(guard._parts.finder, "find", missing)
        with pytest.raises(GuardUnavailable):
            guard("a cat")


@needs_prometheus
def test_every_query_of_the_dashboard_and_every_recording_rule_returns_data(
    shared_pipe, prefix, metrics_registry, monkeypatch, tmp_path
):
    """As Prometheus answers after it has scraped a guard to which everything happened that can happen."""
    import instant

    monkeypatch.setitem(backend._BUILT_IN, "instant", "instant:Adapter")
    spec = {
        "names": [{"id": "protected", "people": [{"name": "Mara Voss", "neutral": "a woman"}]}],
        "rules": [
            {"id": "prefix", "when": {"channels": ["prompt"]}, "then": {"action": "anonymize"}},
            {
                "id": "protected-people",
                "when": {"channels": ["prompt"], "names": ["protected"]},
                "then": {"action": "block"},
            },
        ],
    }
    metadata = {"name": "strict", "version": 1}
    policy = Policy.model_validate({"apiVersion": "apl-guard/v1", "kind": "Policy", "metadata": metadata, "spec": spec})
    places = {"prefix": prefix, "metrics_registry": metrics_registry, "metrics_tenants": ["acme"]}
    guard = Guard(instant.Pipe(), policy, audit=tmp_path / "log", **places)
    guard.self_test(["a photo of a man"])
    gallery = Gallery.enroll(OneFace(), {"case 17": [np.zeros((32, 32, 3), np.uint8)]})
    looks = {"output_check": OutputCheck(OneFace(), gallery, 0.9), "leak_watch": LeakWatch(OneFace(), 0.9, share=1)}
    looking = Guard(shared_pipe, **places, **looks)

    def everything_happens():
        call_in_every_way(guard, monkeypatch)
        looking("a photo of a man", num_inference_steps=1)
        looking.measure_leaks()

    with (
        contextlib.closing(guard.serve_metrics(0)) as server,
        contextlib.closing(Prometheus(tmp_path, server.port)) as prometheus,
    ):
        # A rate needs two readings of a series, so things happen before the first of them and after it.
        everything_happens()
        prometheus.wait_for('apl_guard_leak_samples_total{seen="leaked"} > 0')
        everything_happens()
        prometheus.wait_for('rate(apl_guard_leak_samples_total{seen="leaked"}[1m]) > 0')
        prometheus.wait_for("apl_guard:overhead_seconds:p99_rate5m > 0")

        recorded = re.findall(r"record: (\S+)", RULES.read_text())
        assert [name for name in recorded if not prometheus.ask(name)] == []
        assert [query for query in queries() if not prometheus.ask(query)] == []
        results = prometheus.ask("sum by (result) (apl_guard_outcomes_total)")
        ended = dict.fromkeys(("blocked", "invalid", "failed", "backend_error"), "2")
        ended |= {"passed": "5", "withheld": "0"}  # one of those that passed is of the self-test
        assert {each["metric"]["result"]: each["value"][1] for each in results} == ended
        balance = "sum(apl_guard_audit_events_total) - sum(apl_guard_requests_total) - sum(apl_guard_outcomes_total)"
        assert prometheus.ask(balance)[0]["value"][1] == "0"


def queries():
    """What the panels ask, with the dashboard's variables as they are when it is opened."""
    dashboard = json.loads((SHIPPED / "dashboard.json").read_text())
    targets = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(targets) > 20
    variables = {"$__rate_interval": "1m", "$backend": ".*", "$job": ".*"}
    return [re.sub(r"\$\w+", lambda found: variables[found[0]], expr) for expr in targets]
