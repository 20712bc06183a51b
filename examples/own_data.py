"""Makes a CLIP safe with rows of your own.

python examples/own_data.py rows.csv openai/clip-vit-large-patch14

The table has the columns safe_caption, safe_image, unsafe_caption and unsafe_image. Images are paths from the table's
folder; any of the columns may be missing.
"""

import sys

from safe_clip import SafeCLIPTrainer, SafeCLIPTrainingArguments, UserError, load_quadruplets


def main(table: str, model: str, output_dir: str = "safe-clip", **settings) -> None:
    rows = load_quadruplets(table)  # without a validation split, a small part of the rows becomes one
    args = SafeCLIPTrainingArguments(output_dir, **({"num_train_epochs": 5, "eval_strategy": "epoch"} | settings))
    trainer = SafeCLIPTrainer(model, args, rows["train"], rows["validation"])
    trainer.train()
    trainer.save_model()
    compared = f"--model {output_dir} --baseline {model} --dataset {table}"
    print(f"{output_dir} holds a plain CLIPModel. Measure it: safe-clip eval {compared}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
