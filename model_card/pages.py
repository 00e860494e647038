"""Generated parts of README.md and docs/: `python -m model_card.pages` brings them up to date.

A generated part stands between the lines `<!-- generated: NAME -->` and `<!-- end -->`. Tables of results come from
the committed JSON files, tables of options from the code.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from typer.main import get_command

from model_card import measure_precision
from model_card.studies.alignment import report as alignment
from model_card.studies.alignment.variants import VARIANTS
from model_card.studies.distillation import report as distillation
from model_card.studies.method import report as method
from model_card.studies.orders import report as orders
from model_card.studies.page import interval, markdown
from modeling_dina.cli.app import app
from modeling_dina.files import write_text
from modeling_dina.presets_dina import PRESETS, SD35_MEDIUM
from training.align.arguments import AlignArguments
from training.align.run import ALGORITHMS
from training.reward.trainer import RewardTrainingArguments
from training.train_reward import DataArguments, ModelArguments

ROOT = Path(__file__).parents[1]
RESULTS = {
    "world": "modeling_dina/tiny/report.json",
    "method": "model_card/results/world_study/results.json",
    "alignment": "model_card/results/alignment_study/results.json",
    "orders": "model_card/results/order_study/results.json",
    "distillation": "model_card/results/distillation_study/results.json",
    "flaws": "model_card/results/preferences_world_flaws.json",
    "cost 512": "model_card/results/cost_sd35_medium_512.json",
    "cost 1024": "model_card/results/cost_sd35_medium_1024.json",
    **{f"cost {name}": f"model_card/results/presets/{name}.json" for name in PRESETS},
    "cost cpu": "model_card/results/cost_small_cpu.json",
    "cost cpu 32": "model_card/results/cost_small_cpu_batch32.json",
    "precision": "model_card/results/precision_small_cpu.json",
    "load": "tests/load/load_test.json",
}
ARGUMENTS: dict[str, type] = {
    each.__name__: each for each in (ModelArguments, DataArguments, RewardTrainingArguments, AlignArguments)
}
ARGUMENTS |= {each.Arguments.__name__: each.Arguments for each in ALGORITHMS.values()}
PART = re.compile(r"(<!-- generated: ([\w -]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """README.md and the pages of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def read_results(name: str) -> dict[str, Any]:
    """The file of results with a name in `RESULTS`."""
    return json.loads((ROOT / RESULTS[name]).read_text("utf-8"))


def update(text: str) -> str:
    """
    The text of a page with its generated parts up to date.

    Raises:
        ValueError: a part has a name that is not in `PARTS`.
    """
    return PART.sub(lambda match: f"{match[1]}\n{render(match[2])}\n\n{match[3]}", text)


def render(name: str) -> str:
    """The content of one generated part."""
    kind, _, argument = name.partition(" ")
    if kind == "fields" and argument in ARGUMENTS:
        return fields_table(ARGUMENTS[argument])
    if kind == "options" and argument in get_command(app).commands:  # type: ignore[attr-defined]
        return options_table(argument)
    if name not in PARTS:
        raise ValueError(f"generated: expected one of {', '.join(PARTS)}, fields CLASS or options COMMAND, got {name}")
    return PARTS[name]()


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table with a header."""
    return markdown([dict(zip(header, line, strict=True)) for line in lines])


def agreement(*, short: bool = False) -> str:
    """Agreement of the embedded default with a fresh annotator, and the best that can be reached; `short` has three
    lines."""
    world = read_results("world")
    sets = [world[name] for name in ("seen", "held_out", "generated")]

    def row(title: str, measured: list[dict]) -> tuple[str, ...]:
        return title, *(f"{each['accuracy']:.3f} ± {each['standard_error']:.3f}" for each in measured)

    ensembles = [each["ensembles"]["features, 4 draws"] for each in sets]
    lines = [
        ("best reachable (Bayes)", *(f"{each['wrong_caption']['best']:.3f}" for each in sets)),
        row("ensemble, 3 levels x 4 draws", ensembles),
        row("one level (0.1), one draw", [each["levels"]["0.1"] for each in sets]),
    ]
    if not short:
        lines += [
            ("the ensemble, over best reachable", *(f"{each['ratio']:.3f}" for each in ensembles)),
            row("under another group's caption", [each["wrong_caption"] for each in sets]),
        ]
    header = ("agreement with a fresh annotator", "seen combinations", "held-out combinations", "generated pictures")
    return table(header, lines)


def flaws() -> str:
    """How often the embedded default prefers the picture without a flaw, by the kind of flaw."""
    lines = [
        (name, f"{each['accuracy']:.2f} [{each['interval'][0]:.2f}, {each['interval'][1]:.2f}]")
        for name, each in read_results("flaws")["categories"].items()
    ]
    return table(("flaw", "the picture without it is preferred"), lines)


def verdicts() -> str:
    """The claims of the method study by verdict, and the best results of the alignment study."""
    claims = read_results("method")["claims"]
    found: dict[str, list[str]] = {"held": [], "reversed": [], "undecided": []}
    for claim in claims:
        points = interval(claim["seen"]["accuracy"], "+.1f", 100)
        found[claim["verdict"]].append(f"{claim['text'][0].lower()}{claim['text'][1:]} ({points})")
    lines = [f"- **{verdict.capitalize()}**: {'; '.join(found[verdict])}." for verdict in ("held", "reversed")]
    study = read_results("alignment")
    best = max(study["variants"], key=lambda each: each["last"]["utility"]["rise"]["mean"])
    four = next(each for each in study["best_of_n"] if (each["candidates"], each["reward"]) == (4, "dina"))
    return "\n".join(
        [
            *lines,
            f"- **Undecided**: the other {len(found['undecided'])} of {len(claims)} claims.",
            f"- **Alignment**: {VARIANTS[best['variant']].title} raises the true utility from "
            f"{study['unaligned']['utility']['mean']:.2f} by {alignment.rise(best['last'])} in "
            f"{best['last']['update']} updates. Sampling the best of four without any update raises it by "
            f"{alignment.rise(four)}.",
        ]
    )


def full_size_cost() -> str:
    """Cost of the reward of a generated latent with Stable Diffusion 3.5 Medium, beside rewards on pixels."""
    small, large = read_results("cost 512")["rewards"], read_results("cost 1024")["rewards"]
    header = (
        *("reward of a latent", "M parameters", "TFLOPs, 512 px", "TFLOPs, 1024 px"),
        *("the same with gradient", "GB with gradient"),
    )
    lines: list[tuple[str, ...]] = [
        (
            name,
            f"{cost['parameters'] / 1e6:,.0f}",
            f"{small[name]['forward']['flops'] / 1e12:.2f}",
            f"{cost['forward']['flops'] / 1e12:.2f}",
            f"{cost['gradient']['flops'] / 1e12:.2f}",
            f"{(cost['weight_bytes'] + cost['gradient']['kept_bytes']) / 1e9:.1f}",
        )
        for name, cost in large.items()
    ]
    return table(header, lines)


def preset_costs() -> str:
    """Cost of the reward of a generated latent on every base model, at one level."""
    lines: list[tuple[str, ...]] = []
    for name in PRESETS:
        result = read_results(f"cost {name}")
        cost = result["rewards"]["DiNa-LRM, 1 level"]
        lines.append(
            (
                name,
                str(result["settings"]["resolution"]),
                *(f"{result['parameters'][part] / 1e6:,.0f}" for part in ("backbone", "head")),
                f"{cost['weight_bytes'] / 1e9:.1f}",
                f"{cost['forward']['flops'] / 1e12:.1f}",
                f"{cost['gradient']['flops'] / 1e12:.1f}",
                f"{(cost['weight_bytes'] + cost['gradient']['kept_bytes']) / 1e9:.1f}",
            )
        )
    header = (
        *("base model", "pixels", "M parameters, backbone", "head", "GB weights", "TFLOPs"),
        *("TFLOPs with gradient", "GB with gradient"),
    )
    return table(header, lines)


def pipeline_memory() -> str:
    """Memory of a scorer's weights with Stable Diffusion 3.5 Medium, by part, and with offloading by layers."""
    result = read_results(f"cost {SD35_MEDIUM}")
    reward = result["rewards"]["DiNa-LRM, 1 level"]["weight_bytes"]
    parts = {name: (part["weight_bytes"], part["largest_layer_bytes"]) for name, part in result["pipeline"].items()}
    total = reward + sum(weights for weights, _ in parts.values()), reward + max(layer for _, layer in parts.values())
    rows = {
        "reward model": (reward, reward),
        **{f"`{name}`": sizes for name, sizes in parts.items()},
        "at once": total,
    }
    lines = [(name, *(f"{size / 1e9:.2f}" for size in sizes)) for name, sizes in rows.items()]
    return table(("part", "GB weights", "GB on the device, offloaded by layers"), lines)


def short_cost() -> str:
    """The most important lines and columns of `full_size_cost`, at 1024 pixels."""
    rewards = read_results("cost 1024")["rewards"]
    lines: list[tuple[str, ...]] = [
        (
            name,
            f"{cost['forward']['flops'] / 1e12:.1f}",
            f"{cost['gradient']['flops'] / 1e12:.1f}",
            f"{(cost['weight_bytes'] + cost['gradient']['kept_bytes']) / 1e9:.1f}",
        )
        for name, cost in rewards.items()
        if name in ("DiNa-LRM, 1 level", "DiNa-LRM, 3 levels", "HPSv3")
    ]
    return table(("reward of a latent", "TFLOPs", "with gradient", "GB with gradient"), lines)


def update_cost() -> str:
    """FLOPs and memory of an alignment update at full size."""
    found = read_results("alignment")["full_size"]
    parts = list(next(iter(found.values()))["flops"])
    lines: list[tuple[str, ...]] = [
        (
            name,
            *(f"{cost['flops'][part] / 1e12:,.0f}" for part in parts),
            f"{sum(cost['flops'].values()) / 1e12:,.0f}",
            f"{sum(cost['bytes'].values()) / 1e9:,.0f}",
        )
        for name, cost in found.items()
    ]
    return table(("", *(f"TFLOPs, {part}" for part in parts), "TFLOPs, all", "GB, all"), lines)


def method_setting() -> str:
    """How much the method study trained and measured."""
    settings = read_results("method")["settings"]
    size = settings["size"]
    return (
        f"{settings['seeds']} seeds of each variant, {size['steps']} steps on {size['train_groups']:,} captions with "
        f"four pictures each, measured on {size['test_groups']} captions of each kind."
    )


def published_costs() -> str:
    """Savings over HPSv3 as published, and as counted here."""
    lines: list[tuple[str, ...]] = [
        (each["claim"], f"{100 * each['published']:.1f} %", f"{100 * share:.1f} % ({what})")
        for each in read_results("cost 1024")["claims"]
        for what, share in each["found"].items()
    ]
    return table(("claim", "published", "counted here"), lines)


def cpu_cost() -> str:
    """Cost of the embedded default's reward on the CPU."""
    costs = {batch: read_results(name) for batch, name in ((1, "cost cpu"), (32, "cost cpu 32"))}
    lines: list[tuple[str, ...]] = [
        (
            name,
            *(f"{cost['flops'][name] / 1e9:,.3g}" for cost in costs.values()),
            *(f"{cost['seconds'][name] * 1e3:,.1f}" for cost in costs.values()),
        )
        for name in costs[1]["flops"]
    ]
    units = [f"{unit}, batch {batch}" for unit in ("GFLOPs", "ms") for batch in costs]
    return table(("", *units), lines)


def serving() -> str:
    """Throughput and latency of the server."""
    lines: list[tuple[str, ...]] = [
        (
            each["server"],
            f"{each['clients']}",
            f"{each['requests_per_second']:.1f}",
            *(f"{each[name]:,.0f}" for name in ("p50_ms", "p95_ms")),
        )
        for each in read_results("load")["throughput"]["rows"]
    ]
    return table(("server", "clients", "requests a second", "median ms", "95th percentile ms"), lines)


def fields_table(arguments: type) -> str:
    """A line for each field that a class of arguments itself defines."""
    own = [each for each in dataclasses.fields(arguments) if each.name in arguments.__annotations__]
    lines = []
    for each in own:
        meaning = each.metadata["help"]
        choices = get_args(each.type) if get_origin(each.type) is Literal else each.metadata.get("choices")
        if choices and not all(str(choice) in meaning for choice in choices):
            meaning = f"{meaning} One of {', '.join(choices)}."
        lines.append(f"| `{each.name}` | {_default(each)} | {_cell(meaning)} |")
    return "\n".join(["| field | default | meaning |", "| --- | --- | --- |", *lines])


def _default(each: dataclasses.Field) -> str:
    if each.default is not dataclasses.MISSING:
        value = each.default
    elif each.default_factory is not dataclasses.MISSING:
        value = each.default_factory()
    else:
        return "required"
    return "" if value is None or value == [] else f"`{json.dumps(value)}`"


def options_table(command: str) -> str:
    """A line for each argument and option of a `dina` command."""
    lines = []
    for each in get_command(app).commands[command].params:  # type: ignore[attr-defined]
        is_option = each.param_type_name == "option"
        name = " ".join(each.opts) if is_option else (each.metavar or each.name)
        default = "required" if each.required else ""
        if not default and isinstance(each.default, int | float | str) and not isinstance(each.default, bool):
            shown = getattr(each, "show_default", True)
            default = f"`{each.default}`" if shown else ""
        lines.append(f"| `{name}` | {default} | {_cell(each.help or '')} |")
    return "\n".join(["| option | default | meaning |", "| --- | --- | --- |", *lines])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


PARTS: dict[str, Callable[[], str]] = {
    "agreement": agreement,
    "short agreement": partial(agreement, short=True),
    "verdicts": verdicts,
    "cost": full_size_cost,
    "short cost": short_cost,
    "preset costs": preset_costs,
    "pipeline memory": pipeline_memory,
    "published costs": published_costs,
    "cpu cost": cpu_cost,
    "precisions": lambda: markdown(measure_precision.table(read_results("precision")["precisions"])),
    "serving": serving,
    "method setting": method_setting,
    "method variants": lambda: markdown(method.variants_table(read_results("method"))),
    "method claims": lambda: markdown(method.claims_table(read_results("method")["claims"])),
    "method variances": lambda: markdown(method.variances_table(read_results("method")["variances"])),
    "method disagreement": lambda: markdown(method.disagreement_table(read_results("method")["disagreement"])),
    "alignment variants": lambda: markdown(alignment.variants_table(read_results("alignment"))),
    "alignment best of n": lambda: markdown(alignment.best_table(read_results("alignment")["best_of_n"])),
    "alignment targets": lambda: markdown(alignment.targets_table(read_results("alignment")["aim"]["targets"])),
    "alignment costs": lambda: markdown(alignment.costs_table(read_results("alignment")["variants"])),
    "alignment rewards": lambda: markdown(alignment.rewards_table(read_results("alignment")["reward_models"])),
    "alignment full size": update_cost,
    "orders accuracy": lambda: markdown(orders.accuracy_table(read_results("orders"))),
    "orders gains": lambda: markdown(orders.gains_table(read_results("orders")["orders"])),
    "distillation variants": lambda: markdown(distillation.variants_table(read_results("distillation"))),
    "distillation claims": lambda: markdown(distillation.claims_table(read_results("distillation")["claims"])),
    "flaws": flaws,
}


def main() -> None:
    """Bring the generated parts of all pages up to date."""
    for page in pages():
        text = page.read_text("utf-8")
        if (updated := update(text)) != text:
            write_text(page, updated)
            typer.echo(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
