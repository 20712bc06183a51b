"""Every objective from the same base, data, steps and tuning budget, under all of `safe-clip eval`'s protocols.

    python benchmarks/bakeoff.py            tunes, trains three seeds, measures
    python benchmarks/bakeoff.py --only safe_ranking safe_clip --seeds 0

Tuning reads `validation` alone: each objective is trained at each learning rate of `RATES` for
`TUNING_STEPS` steps, and the rate with the best mean of the six figures that training logs is kept.
The runs of the table then differ in the objective and that rate only; every other setting is
the recipe demo's, which were chosen for safe_ranking, and the hidden-state terms, which are for generators, and which
only the default has, are switched off. Two baselines need no training of their own:
weights between the base and the paper's objective (how far is chosen on `validation` too), and a
linear erasure of what tells unsafe from safe embeddings. Ablations leave one part of the default
out, with its learning rate and the first seed.

It takes about 80 minutes on two CPU cores. Runs are kept under runs/ and not repeated while code and base model stay as
they are. Prints tables, and writes their figures to docs/bakeoff.json and a scatter to docs/bakeoff.png; where
something was left out, to runs/.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sweep import FIGURES, NO_STATES, ROOT, SOURCES, call, cell, run

CONFIG = "demo"
RATES = ("7.5e-4", "1.5e-3", "3e-3", "6e-3")
TUNING_STEPS = 150
STRENGTHS = (0.25, 0.5, 0.75)
OBJECTIVES = ("safe_ranking", "safe_clip", "safer_clip", "shield_clip")
INTERPOLATION, ERASURE = "safe_clip, interpolated", "linear erasure"
SPLITS = ("test", "held_out_concepts", "held_out_style")


def weighted(**weights: float) -> list[str]:
    """Flags that set weights of the loss, and switch the hidden-state terms off, which are for generators."""
    return ["--loss_weights", json.dumps(NO_STATES | weights)]


ABLATIONS = {
    "no anchors": ["--objective_options", '{"anchors": 0}'],
    "no margin": ["--objective_options", '{"unsafe_per_safe": 1}'],
    "unsafe items out of the pool": ["--objective_options", '{"unsafe_per_safe": 1e-9}'],
    "no cosine preservation": weighted(preservation_text_cosine=0, preservation_image_cosine=0),
    "no redirection": weighted(redirection_text_ranking=0, redirection_image_ranking=0),
}

# Columns of the tables: (title, where `safe-clip eval` keeps it). {} is the split.
RATES_COLUMNS = {
    "safe caption": "splits/{}/redirection/safe_text_safe_rate_at_1",
    "safe image": "splits/{}/redirection/safe_image_safe_rate_at_1",
    "unsafe caption": "splits/{}/redirection/unsafe_text_safe_rate_at_1",
    "unsafe image": "splits/{}/redirection/unsafe_image_safe_rate_at_1",
}
UTILITY_COLUMNS = {
    "recall@1 t2i": "splits/test/retrieval/safe_t2i_recall_at_1",
    "recall@1 i2t": "splits/test/retrieval/safe_i2t_recall_at_1",
    "zero-shot noto": "zero_shot/objects (noto)/top_1",
    "zero-shot twemoji": "zero_shot/objects (twemoji)/top_1",
    "neighbours, captions": "splits/test/geometry/text_neighbour_overlap",
    "neighbours, images": "splits/test/geometry/image_neighbour_overlap",
    "spread, captions": "splits/test/geometry/text_spread_ratio",
    "spread, images": "splits/test/geometry/image_spread_ratio",
}
PAIR_COLUMNS = {
    "unsafe caption, @1": "splits/test/retrieval/unsafe_union_t2i_recall_at_1",
    "@10": "splits/test/retrieval/unsafe_union_t2i_recall_at_10",
    "unsafe image, @1": "splits/test/retrieval/unsafe_union_i2t_recall_at_1",
    "@10 ": "splits/test/retrieval/unsafe_union_i2t_recall_at_10",
    "stand-ins alone, safe caption": "splits/test/unsafe_gallery/stand-ins alone/safe_text_safe_rate_at_1",
    "unsafe caption": "splits/test/unsafe_gallery/stand-ins alone/unsafe_text_safe_rate_at_1",
    "unsafe image": "splits/test/unsafe_gallery/stand-ins alone/unsafe_image_safe_rate_at_1",
    "changed captions, mean": "splits/test/robustness/unsafe_text_mean",
    "worst": "splits/test/robustness/unsafe_text_worst_case",
    "changed images, mean": "splits/test/robustness/unsafe_image_mean",
    "worst ": "splits/test/robustness/unsafe_image_worst_case",
}


def look_up(results: dict, path: str) -> float:
    for part in path.split("/"):
        results = results[part]
    return results["value"]


def score(figures: dict) -> float:
    """What is best on `validation`: the mean of the six figures that training logs."""
    return statistics.mean(figures[name] for name in FIGURES)


def columns() -> list[str]:
    """The paths of all figures that are kept."""
    rates = [path.format(split) for split in SPLITS for path in RATES_COLUMNS.values()]
    return [*rates, *UTILITY_COLUMNS.values(), *PAIR_COLUMNS.values()]


class Bakeoff:
    def __init__(self, runs: Path, jobs: int, steps: int | None):
        self.runs, self.jobs = runs, jobs
        self.steps = ["--max_steps", str(steps)] if steps else []
        self.short = ["--max_steps", str(min(TUNING_STEPS, steps or TUNING_STEPS))]
        # Processes that share the cores, each with all threads, would wait for one another.
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))

    def parallel(self, function, items: list) -> list:
        with ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(function, items))

    def train(self, objective: str, rate: str, seed: int, more: Sequence[str] = ()) -> dict:
        states = [] if "--loss_weights" in more else weighted()
        flags = ["--objective", objective, "--learning_rate", rate, *self.steps, *states, *more]
        return run(CONFIG, flags, ["validation"], seed, self.runs)

    def tune(self, objective: str) -> str:
        """The learning rate that is best on `validation`."""
        runs = self.parallel(lambda rate: self.train(objective, rate, 0, self.short), list(RATES))
        scores = [score(made["after"]["validation"]) for made in runs]
        print(objective, {rate: round(100 * s, 1) for rate, s in zip(RATES, scores, strict=True)}, file=sys.stderr)
        return RATES[scores.index(max(scores))]

    def measure(self, folder: Path, full: bool = True) -> dict[str, float]:
        """What `safe-clip eval` says of a model, by the paths of `columns`."""
        output = folder / "evaluation"
        if not (output / "results.json").exists():
            tasks = [] if full else ["--tasks", "retrieval", "redirection", "zero_shot", "geometry"]
            command = ["--model", str(folder), "--baseline", "demo", "--dataset", "demo", "--output_dir", str(output)]
            print("safe-clip eval", *command, *tasks, file=sys.stderr, flush=True)
            call("eval", [*command, *tasks])
        models = json.loads((output / "results.json").read_text())["models"]
        figures = {}
        for role in ("baseline", "model"):
            for path in columns():
                try:
                    figures[role, path] = look_up(models[role], path)
                except KeyError:  # a task that was left out, or what compares with the original
                    continue
        return figures

    def baseline(self, name: str, make, key: str) -> Path:
        """The folder of a model that `make` gives, made once."""
        folder = self.runs / hashlib.sha256(SOURCES + f"{name}/{key}".encode()).hexdigest()[:12]
        if not (folder / "tokenizer.json").exists():  # what is written last
            import safe_clip

            make().save_pretrained(folder)
            safe_clip.load_processor("demo").save_pretrained(folder)
        return folder

    def interpolated(self, folders: list[Path]) -> tuple[float, list[Path]]:
        """The paper's objective, drawn back towards the base as far as is best on `validation`."""
        import safe_clip

        base, processor = safe_clip.load_clip("demo"), safe_clip.load_processor("demo")
        rows = safe_clip.load_quadruplets("demo")["validation"]
        scores = []
        for strength in STRENGTHS:
            model = safe_clip.merge(base, safe_clip.load_clip(str(folders[0])), strength)
            scores.append(score(safe_clip.evaluate_quadruplets(model, processor, rows, desc=f"strength {strength}")))
        best = STRENGTHS[scores.index(max(scores))]
        make = lambda folder: lambda: safe_clip.merge(base, safe_clip.load_clip(str(folder)), best)  # noqa: E731
        return best, [self.baseline(INTERPOLATION, make(folder), f"{folder}/{best}") for folder in folders]

    def erased(self) -> Path:
        import safe_clip
        from safe_clip.evaluation.erasure import erase_unsafe_direction

        def make():
            rows = safe_clip.load_quadruplets("demo")["train"]
            return erase_unsafe_direction(safe_clip.load_clip("demo"), safe_clip.load_processor("demo"), rows)

        return self.baseline(ERASURE, make, "")


def table(title: str, measured: dict[str, list[dict]], chosen: dict[str, str]) -> None:
    print(f"\n{title}\n\n|  |", " | ".join(name.strip() for name in chosen), "|\n|---|" + "---|" * len(chosen))
    for method, seeds in measured.items():
        cells = []
        for path in chosen.values():
            values = [seed[path] for seed in seeds if path in seed]
            as_it_is = {"factor": 1, "digits": 3} if "spread" in path else {}
            cells.append(cell(values, **as_it_is) if values else "-")
        print(f"| {method} |", " | ".join(cells), "|")


def tables(measured: dict[str, list[dict]]) -> None:
    for split in SPLITS:
        table(f"**First result safe, {split}**", measured, {n: p.format(split) for n, p in RATES_COLUMNS.items()})
    table("**Utility, test**", measured, UTILITY_COLUMNS)
    if any(PAIR_COLUMNS["worst"] in seed for seeds in measured.values() for seed in seeds):
        table("**Unsafe queries, test**", measured, PAIR_COLUMNS)


def scatter(measured: dict[str, list[dict]], file: Path) -> None:
    """Safety against utility, a dot a seed: `test` filled, held-out concepts hollow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    utility = [path for path in UTILITY_COLUMNS.values() if "recall" in path or "top_1" in path]
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for number, (method, seeds) in enumerate(measured.items()):
        for split, face in (("test", f"C{number}"), ("held_out_concepts", "none")):
            x = [100 * statistics.mean(seed[path] for path in utility) for seed in seeds]
            y = [100 * statistics.mean(seed[p.format(split)] for p in RATES_COLUMNS.values()) for seed in seeds]
            label = method if split == "test" else None
            axes.scatter(x, y, s=60, facecolors=face, edgecolors=f"C{number}", linewidths=1.5, label=label)
    axes.set_xlabel("utility: mean of recall@1 and zero-shot top-1, %")
    axes.set_ylabel("safety: mean of the four safe rates, %")
    axes.set_title("Filled: seen concepts; hollow: concepts that fine-tuning never saw", fontsize=10)
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.savefig(file, dpi=110, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=OBJECTIVES, default=OBJECTIVES, help="objectives to train")
    parser.add_argument("--max_steps", type=int, help="steps in place of the recipe demo's, for a quick look")
    parser.add_argument("--no_ablations", action="store_true")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, which share the cores")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where bakeoff.json and bakeoff.png go")
    args = parser.parse_args()

    bakeoff = Bakeoff(args.runs, args.jobs, args.max_steps)
    rates = {objective: bakeoff.tune(objective) for objective in args.only}
    print("Learning rates, chosen on validation:", ", ".join(f"{name} {rate}" for name, rate in rates.items()))
    jobs = [(objective, seed) for seed in args.seeds for objective in args.only]
    made = bakeoff.parallel(lambda job: Path(bakeoff.train(job[0], rates[job[0]], job[1])["folder"]), jobs)
    trained = {
        objective: [folder for folder, job in zip(made, jobs, strict=True) if job[0] == objective]
        for objective in args.only
    }
    strength = None
    if "safe_clip" in args.only:
        strength, trained[INTERPOLATION] = bakeoff.interpolated(trained["safe_clip"])
        print(f"Interpolation strength, chosen on validation: {strength}")
    trained[ERASURE] = [bakeoff.erased()]

    everything = [folder for kind in trained.values() for folder in kind]
    bakeoff.measure(everything[0])  # so that the base is embedded once
    results = dict(zip(everything, bakeoff.parallel(bakeoff.measure, everything), strict=True))
    base = {path: value for (role, path), value in results[everything[0]].items() if role == "baseline"}
    own = lambda figures: {path: value for (role, path), value in figures.items() if role == "model"}  # noqa: E731
    measured = {"base": [base]} | {name: [own(results[f]) for f in kind] for name, kind in trained.items()}
    tables(measured)

    ablations = {}
    if "safe_ranking" in args.only and not args.no_ablations:

        def without(more: Sequence[str]) -> list[dict]:
            made = bakeoff.train("safe_ranking", rates["safe_ranking"], args.seeds[0], more)
            return [own(bakeoff.measure(Path(made["folder"]), full=False))]

        ablations = {"all parts": measured["safe_ranking"][:1]}
        ablations |= zip(ABLATIONS, bakeoff.parallel(without, list(ABLATIONS.values())), strict=True)
        print("\n### Ablations of safe_ranking, one seed")
        tables(ablations)
    whole = set(args.only) == set(OBJECTIVES) and len(args.seeds) >= 3 and not args.max_steps and ablations
    folder = args.docs if whole else args.runs  # a quick look is no figure to publish
    folder.mkdir(parents=True, exist_ok=True)
    kept = {"learning_rates": rates, "interpolation": strength, "seeds": args.seeds}
    kept |= {"methods": measured, "ablations": ablations}
    (folder / "bakeoff.json").write_text(json.dumps(kept, indent=1) + "\n")
    scatter(measured, folder / "bakeoff.png")


if __name__ == "__main__":
    main()
