"""Collect votes on pairs of pictures on a local page: `python -m training.label SOURCE --out VOTES`.

Without SOURCE, `--generator` samples the pictures. VOTES/votes.jsonl has the votes, each of which is on the disk
before the page goes on, and VOTES/data the preference data for training, which is written when the server stops. A
server that is started again goes on from the votes so far.
"""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer
from datasets import disable_progress_bars

from modeling_dina.files import Journal
from modeling_dina.hub.push import check_repo_id
from modeling_dina.options import check_folder, exit_on_bad_input, with_option_groups
from training.candidate_options import CandidateOptions
from training.label.export import write_export
from training.label.order import OrderOptions
from training.label.pairs import collect_pairs, record_pairs
from training.label.push import VotePusher
from training.label.server import build_application, link, open_socket, serve
from training.label.session import Plan, Session
from training.label.votes import VoteFile

LOOPBACK = ("127.0.0.1", "localhost", "::1")
UNUSABLE_FILE = "unusable.jsonl"


@with_option_groups
def main(
    out: Annotated[Path, typer.Option(help="Folder for the votes; the next start goes on from them.")],
    annotator: Annotated[
        list[str] | None,
        typer.Option(help="Name of an annotator; repeat it for several. Default: me.", show_default=False),
    ] = None,
    annotators_per_pair: Annotated[
        int | None, typer.Option(min=1, help="Number of annotators who vote on a pair. Default: all.")
    ] = None,
    goal: Annotated[
        int | None, typer.Option(min=1, help="Number of pairs that each annotator votes on. Default: all.")
    ] = None,
    repeats: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of pairs that an annotator sees twice, to measure how well they agree with themselves.",
        ),
    ] = 0.1,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for phones in the network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port to listen on; 0 takes any free port.")] = 8010,
    repo_id: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Data set repository, created private, to which votes are pushed."),
    ] = None,
    push_every: Annotated[int, typer.Option(min=1, help="Number of votes between two pushes.")] = 50,
    push_annotators: Annotated[
        bool, typer.Option("--push-annotators", help="Also push the names of annotators.")
    ] = False,
    *,
    ordering: OrderOptions,
    pictures: CandidateOptions,
) -> None:
    """Collect votes on pairs of pictures. Pictures that cannot be read are reported, and their pairs skipped."""
    names = annotator or ["me"]
    with exit_on_bad_input():
        check_names(names)
        if repo_id is not None:
            check_repo_id(repo_id)
        pictures.check()
        ordering.check()
        check_folder("out", out)
        candidates = pictures.load(out)
        votes = VoteFile(out)
        collected = collect_pairs(candidates, out)
        record_pairs(out, collected.pairs)
        scored = [(pair.prompt, pair.image_a, pair.image_b) for pair in collected.pairs]
        order, failures = ordering.rows(scored, out, seed=pictures.seed)
        unusable = open_unusable(out, collected.failures + failures)
        plan = Plan(repeats, goal, annotators_per_pair)
        session = Session(collected.pairs, order, votes, names, pictures.seed, plan)
        listening = open_socket(host, port)
        pusher = None
        if repo_id is not None:
            pusher = VotePusher(out, repo_id, every=push_every, annotators=push_annotators)

    def count() -> int:
        return len(votes.tally.standing())

    @asynccontextmanager
    async def until_stopped(_) -> AsyncIterator[None]:
        yield
        finish(out, count(), pusher)

    application = build_application(
        session,
        on_vote=lambda: pusher.note(count()) if pusher is not None else None,
        on_unusable=lambda name, error: unusable.append({"name": name, "error": error}),
        lifespan=until_stopped,
    )
    typer.echo(f"{len(collected.pairs)} pairs, {collected.duplicates} duplicates, {len(collected.failures)} unusable")
    address, actual_port = listening.getsockname()[:2]
    for name in names:
        place = f"[{address}]" if ":" in address else address
        typer.echo(f"{name}: http://{place}:{actual_port}{link(name)}")
    if host not in LOOPBACK:
        typer.echo(f"Anyone who reaches {host} can vote.", err=True)
    serve(application, [listening])


def check_names(names: list[str]) -> None:
    """Raise a ValueError unless the names of annotators are different and can stand in a link."""
    for name in names:
        if not re.fullmatch(r"[\w .@-]{1,64}", name) or name.strip(" .") != name:
            raise ValueError(f"annotator: expected letters, digits, space, '.', '@', '_' and '-', got {name!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"annotator: expected different names, got {', '.join(names)}")


def open_unusable(out: Path, failures: list[dict[str, str]]) -> Journal:
    """A new file of what cannot be shown, with {"name", "error"} of rows and pairs."""
    (out / UNUSABLE_FILE).unlink(missing_ok=True)
    unusable = Journal(out / UNUSABLE_FILE, {"format": "unusable"})
    unusable.append(*failures)
    return unusable


def finish(out: Path, count: int, pusher: VotePusher | None) -> None:
    """Write the preference data, finish the pushes, and print what there is."""
    try:
        rows, failures = write_export(out, out)
    except (OSError, ValueError) as error:
        typer.echo(f"{count} votes in {out}; no preference data: {error}", err=True)
    else:
        typer.echo(f"{count} votes in {out}; {rows} pairs for training in {out / 'data'}", err=True)
        if failures:
            typer.echo(f"{len(failures)} pairs have no pictures: {json.dumps(failures[:3])}", err=True)
    if pusher is not None:
        typer.echo(str(pusher.finish(count)), err=True)


app = typer.Typer(pretty_exceptions_enable=False)
app.command()(main)

if __name__ == "__main__":
    disable_progress_bars()  # `datasets` prints one per file
    app()
