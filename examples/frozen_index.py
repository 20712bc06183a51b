"""Makes queries safe for an index that stays as it is: of the original, and not embedded anew.

safe-clip embed --model openai/clip-vit-base-patch32 --dataset photos --output_dir index
python examples/frozen_index.py index rows.csv "a dog on a sofa"

The table has the columns safe_caption, safe_image, unsafe_caption and unsafe_image; images are paths from its folder.
What the query finds is printed twice: by the model that made the index, and by the one that was trained for queries.
"""

import sys

import torch

from safe_clip import (
    SafeCLIPTrainer,
    SafeCLIPTrainingArguments,
    UserError,
    load_clip,
    load_processor,
    load_quadruplets,
    open_index,
)


def main(folder: str, table: str, query: str, output_dir: str = "queries", **settings) -> dict[str, list[dict]]:
    index = open_index(folder)
    original, rows = index.facts["model"], load_quadruplets(table)
    args = SafeCLIPTrainingArguments(output_dir, frozen_gallery=True, hidden_state_terms=False, **settings)
    trainer = SafeCLIPTrainer(original, args, rows["train"], rows["validation"])
    trainer.train()
    trainer.save_model()

    found = {model: index.search(embed(model, query), k=10)[0] for model in (original, output_dir)}
    for model, items in found.items():
        print(f"{query!r} by {model}:")
        for item in items:
            unsafe = "  (labelled unsafe)" if item.get("unsafe") else ""
            print(f"  {item['cosine']:.3f}  {item.get('path') or item['id']}{unsafe}")
    return found


@torch.no_grad()
def embed(model: str, query: str) -> torch.Tensor:
    """A query as 1 x dimension; of a SigLIP, padded to the full length, as it was trained."""
    inputs = load_processor(model)(text=[query], padding="max_length", truncation=True, return_tensors="pt")
    return load_clip(model).get_text_features(**inputs).pooler_output


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
