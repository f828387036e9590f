"""`apl-guard bench`: this method beside its peers, on the same people, prompts and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apl_guard.cli.options import Guidance, Quiet, seed_option


def bench(
    prefix: Annotated[str, typer.Option(help="Prefix folder or name; 'minifaces' is the shipped one.")] = "minifaces",
    model: Annotated[str, typer.Option(help="A model of the reference world, or 'minifaces'.")] = "minifaces",
    no_afterwards: Annotated[
        bool,
        typer.Option(
            "--no-afterwards",
            help="Leave out the derived models: restyled, and with people added. "
            "They take about a quarter of an hour, once.",
        ),
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder for table, plot, page, and what the methods learned.")] = Path(
        "bench"
    ),
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            help="Only this method, by its name in the table, and the plain model. May be repeated.",
            metavar="<str>",
        ),
    ] = None,
    images_per_person: Annotated[int, typer.Option(min=1, help="Images of each person with each method.")] = 2,
    people: Annotated[int, typer.Option(min=1, help="At most this many listed, and this many other people.")] = 60,
    seed: Annotated[int, seed_option("Seed of prompts, images and training.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 20,
    guidance: Guidance = 3.0,
    quiet: Quiet = False,
) -> None:
    """Compare the prefix with other methods: what each hides, what it leaves unchanged, what it costs.

    The methods are name block-lists, rewriting of names, negative prompts, SLD, UCE, ESD-x, concept ablation and the
    prefix, all applied to the 120 seen people of the reference world. About 25 minutes on one CPU core, and fifteen
    more the first time, for the derived models; a stopped bench continues. Writes bench.json, bench.md, bench.png and
    bench.html.

    Example: apl-guard bench --output bench
    """
    from apl_guard.errors import ExtraMissing, InvalidInput
    from apl_guard.prefix import Prefix
    from apl_guard.prefix.places import find_path
    from apl_guard.storage import check_place, write_file
    from apl_guard.trainer import minifaces
    from apl_guard.trainer.bench.afterwards import personalised, restyled
    from apl_guard.trainer.bench.page import write_page
    from apl_guard.trainer.bench.plot import draw_plot
    from apl_guard.trainer.bench.run import all_peers, run_bench
    from apl_guard.trainer.bench.table import to_markdown, to_text
    from apl_guard.trainer.data.identities import load_identities
    from apl_guard.trainer.evaluate.provenance import command
    from apl_guard.trainer.evaluate.reference_world import open_reference_world
    from apl_guard.trainer.evaluate.setting import Setting
    from apl_guard.trainer.one_run import only_run
    from apl_guard.trainer.peers.peer import Task
    from apl_guard.trainer.train.card import training_seconds

    ExtraMissing.check("eval", "scipy", "matplotlib")
    check_place(output / "bench.json")
    vectors = Prefix.load(prefix)
    peers = all_peers(vectors, training_seconds(find_path(prefix)))
    if only:
        known = [peer.key for peer in peers]
        if unknown := [name for name in only if name not in known]:
            raise InvalidInput(f"no peer '{unknown[0]}'; expected one of: {'; '.join(known)}", where="--peer")
        peers = tuple(peer for peer in peers if peer.key in ("plain", *only))
    pipe = open_reference_world(model)
    setting = Setting.of(
        pipe, vectors, minifaces.judges(), images_per_person=images_per_person, people_limit=people,
        seed=seed, steps=steps, guidance=guidance, progress=not quiet,
    )  # fmt: skip
    task = Task(load_identities(minifaces.identities_file()), tuple(minifaces.captions(512, seed=seed)), "coarse", seed)
    with only_run(output):
        elsewhere = {} if no_afterwards else {"restyled": restyled(setting), "personalised": personalised(setting)}
        result = run_bench(setting, peers, task, output / "learned", elsewhere)
        # First: whatever may become of the files, the figures are not lost.
        typer.echo(to_text(result))
        plot = draw_plot(result)
        facts = {"command": command(), **{k: v for k, v in result.settings.items() if k != "peers"}}
        write_file(output / "bench.json", result.to_json().encode())
        write_file(output / "bench.md", to_markdown(result, command()).encode())
        write_file(output / "bench.png", plot)
        write_file(output / "bench.html", write_page(result, plot, facts).encode())
        typer.echo(f"page: {output / 'bench.html'}")
