"""`apl-guard metrics`: alert rules and a dashboard to take along, and metrics of several processes over HTTP."""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated

import typer

from apl_guard.cli.options import Output, put_out

__all__ = ["app"]

app = typer.Typer(help="Alert rules, a dashboard, and metrics of several processes.", no_args_is_help=True)


@app.command("rules")
def write_rules(output: Output = None) -> None:
    """Print the recording rules and alerts for Prometheus.

    Example: apl-guard metrics rules --output /etc/prometheus/apl-guard.rules.yml
    """
    put_out(_read("rules.yml"), output)


@app.command("dashboard")
def write_dashboard(output: Output = None) -> None:
    """Print the dashboard for Grafana, to be imported there.

    Example: apl-guard metrics dashboard --output apl-guard.dashboard.json
    """
    put_out(_read("dashboard.json"), output)


@app.command("serve")
def serve_metrics(
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 9108,
    address: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is reachable from other machines.")
    ] = "127.0.0.1",
) -> None:
    """Serve the metrics that several processes count in the folder PROMETHEUS_MULTIPROC_DIR, until Ctrl-C.

    Example: PROMETHEUS_MULTIPROC_DIR=/run/apl-guard/metrics apl-guard metrics serve --port 9108
    """
    from apl_guard.metrics import of_all_processes, serve

    server = serve(of_all_processes(), port, address)
    typer.echo(f"metrics of all processes on http://{address}:{server.port}/metrics")
    server.wait()


def _read(name: str) -> str:
    return (files("apl_guard.metrics") / "monitoring" / name).read_text(encoding="utf-8")
