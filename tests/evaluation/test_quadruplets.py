import torch

from safe_clip import evaluate_quadruplets
from safe_clip.evaluation.quadruplets import embed_quadruplets
from safe_clip.metrics.retrieval import quadruplet_metrics


def test_embeddings_are_stock_transformers_embeddings_in_order(model, processor, rows):
    embeds = embed_quadruplets(model, processor, rows, batch_size=7)
    inputs = processor(
        text=list(rows["unsafe_caption"]), images=list(rows["unsafe_image"]), padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(**inputs)
    assert (embeds["unsafe_text"] - expected.text_embeds).abs().max() < 1e-5
    assert (embeds["unsafe_image"] - expected.image_embeds).abs().max() < 1e-5
    assert {name: tuple(tensor.shape) for name, tensor in embeds.items()} == dict.fromkeys(
        ("safe_text", "safe_image", "unsafe_text", "unsafe_image"), (24, 24)
    )


def test_the_mode_of_the_model_is_left_as_it_was(model, processor, rows):
    model.train()
    embed_quadruplets(model, processor, rows)
    assert model.training


def test_identical_captions_count_as_one(model, processor, rows):
    twice = rows.map(lambda row: {"safe_caption": "a red square"})
    figures = evaluate_quadruplets(model, processor, twice)
    assert figures["recall_t2i"] == 1 and figures["recall_i2t"] == 1
    blind = quadruplet_metrics(**embed_quadruplets(model, processor, twice))
    assert blind["recall_i2t"] < 0.1


def test_figures_are_the_metrics_of_the_embeddings(model, processor, rows):
    figures = evaluate_quadruplets(model, processor, rows)
    expected = quadruplet_metrics(**embed_quadruplets(model, processor, rows))
    assert figures == expected
