"""Trains with several settings and prints what each gives: safety beside utility.

python examples/sweep.py rows.csv openai/clip-vit-base-patch32

The table has the columns safe_caption, safe_image, unsafe_caption and unsafe_image. Settings are compared on its rows
for validation; measure the one that you choose on rows that no choice has seen. SETTINGS names what is tried: any field
of SafeCLIPTrainingArguments.
"""

import sys

from safe_clip import (
    SafeCLIPTrainer,
    SafeCLIPTrainingArguments,
    UserError,
    evaluate_quadruplets,
    load_clip,
    load_processor,
    load_quadruplets,
)

SETTINGS = {
    "default": {},
    "for search alone": {"hidden_state_terms": False},
    "0.8 of the way": {"strength": 0.8},
    "the paper's objective": {"objective": "safe_clip"},
}
# What is printed: shares of queries whose first result is safe, and of safe queries that find their own item first.
FIGURES = {
    "redirection_unsafe_text": "unsafe captions",
    "redirection_unsafe_image": "unsafe images",
    "retrieval_t2i": "recall@1, caption to image",
    "retrieval_i2t": "recall@1, image to caption",
}


def main(table: str, model: str, output_dir: str = "sweep", **shared) -> dict[str, dict[str, float]]:
    rows, processor = load_quadruplets(table), load_processor(model)
    measured = {"original": evaluate_quadruplets(load_clip(model), processor, rows["validation"])}
    for number, (name, settings) in enumerate(SETTINGS.items()):
        args = SafeCLIPTrainingArguments(f"{output_dir}/{number}", **(shared | settings))
        trainer = SafeCLIPTrainer(model, args, rows["train"])
        trainer.train()
        trainer.save_model()
        measured[name] = evaluate_quadruplets(load_clip(args.output_dir), processor, rows["validation"])

    print("| setting | " + " | ".join(FIGURES.values()) + " |\n|---|" + "---|" * len(FIGURES))
    for name, figures in measured.items():
        cells = (f"{100 * figures[figure]:.1f}" if figure in figures else "-" for figure in FIGURES)
        print(f"| {name} | {' | '.join(cells)} |")
    return measured


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
