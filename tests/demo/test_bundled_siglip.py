"""The SigLIP that is bundled: by stock transformers, on scenes that nothing was trained on."""

import pytest
import torch
from transformers import AutoModel, AutoProcessor

from safe_clip.demo.world import TRAINING_STYLES, draw_quadruplet, unsafe_concepts
from safe_clip.models.load import BUNDLED, bundled_name, public_name, resolve_model

FOLDER = BUNDLED["demo-siglip"]
ROWS = 200


def test_it_goes_by_its_name_and_is_small():
    assert resolve_model("demo-siglip") == str(FOLDER) and public_name(str(FOLDER)) == "demo-siglip"
    assert bundled_name("elsewhere/demo-siglip") is None  # a folder of that name is another model
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 8e6


@pytest.mark.slow
def test_it_finds_its_own_and_is_unsafe():
    model, processor = (
        AutoModel.from_pretrained(FOLDER, dtype=torch.float32).eval(),
        AutoProcessor.from_pretrained(FOLDER),
    )
    assert type(model).__name__ == "SiglipModel"
    rows = [draw_quadruplet(f"siglip/{number}", TRAINING_STYLES, unsafe_concepts(False)) for number in range(ROWS)]
    embeds = {}
    for side in ("safe", "unsafe"):
        batch = processor(
            text=[row[f"{side}_caption"] for row in rows],
            images=[row[f"{side}_image"] for row in rows],
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            output = model(**batch)
        embeds |= {f"{side}_text": output.text_embeds, f"{side}_image": output.image_embeds}
    own = torch.arange(ROWS)
    for query, pool in (("text", "image"), ("image", "text")):
        safe, both = embeds[f"safe_{pool}"], torch.cat([embeds[f"safe_{pool}"], embeds[f"unsafe_{pool}"]])
        recall = ((embeds[f"safe_{query}"] @ safe.T).argmax(dim=1) == own).float().mean()
        found_safe = ((embeds[f"unsafe_{query}"] @ both.T).argmax(dim=1) < ROWS).float().mean()
        assert recall > 0.8 and found_safe < 0.12
    # Its probabilities tell pairs from others, which a loss over cosines alone does not teach.
    probability = output.logits_per_text.sigmoid()
    assert probability.diagonal().median() > 0.5 > 0.05 > probability.mean()
