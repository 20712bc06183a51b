"""`safe-clip embed` and `safe-clip search`: what is written, what is found, what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from PIL import Image as PILImage
from torch.nn.functional import normalize
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel

from safe_clip import UserError, open_index
from safe_clip.cli.embed import main as embed_verb
from safe_clip.cli.search import main as search
from safe_clip.embedding import embedder as embedder_module
from safe_clip.embedding import indexing
from safe_clip.embedding.embedder import Embedder

from ..checkpoints import save_metaclip_2, save_siglip_2
from ..helpers import FEATURES, build_model, make_rows


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def embed(model, data, *flags, out="index"):
    embed_verb(["--model", str(model), "--dataset", str(data), "--output_dir", out, "--cache_dir", "kept", *flags])
    return pq.read_table(Path(out, "index.parquet"))


def vectors(table) -> torch.Tensor:
    return torch.tensor(np.stack(table["embedding"].to_pylist()), dtype=torch.float32)


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of 24 images, some in a folder of their own."""
    for number, image in enumerate(make_rows()["unsafe_image"]):
        file = tmp_path / "photos" / ("more" if number % 2 else "") / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def other_dir(processor, tmp_path_factory) -> str:
    """Of the same shape with other weights."""
    folder = tmp_path_factory.mktemp("other")
    build_model(processor, seed=1).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def stock_images(folder: str, images: list) -> torch.Tensor:
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=1)


# ---- What is written ----


@pytest.mark.parametrize("save", [None, save_siglip_2, save_metaclip_2], ids=["clip", "siglip", "metaclip"])
def test_a_folder_becomes_stock_embeddings_with_their_paths(save, photos, model_dir, tmp_path):
    folder = model_dir
    if save:
        save(tmp_path / "model")
        folder = str(tmp_path / "model")
    table = embed(folder, "photos")
    assert table.column_names == ["id", "embedding", "modality", "path"]
    assert table["id"].to_pylist() == list(range(24))
    images = [PILImage.open(photos / path).convert("RGB") for path in table["path"].to_pylist()]
    assert sorted(table["path"].to_pylist())[:2] == ["00.png", "02.png"] and "more/01.png" in table["path"].to_pylist()
    expected, found = stock_images(folder, images), vectors(table)
    assert (found - expected).abs().max() < 1e-5 and (found.norm(dim=1) - 1).abs().max() < 1e-6
    assert (found - expected.roll(1, 0)).abs().max() > 1e-2  # another order would be seen
    kind = table.schema.field("embedding").type
    assert str(kind.value_type) == "float" and kind.list_size == found.shape[1]


def test_lengths_are_1_in_half_precision_too(photos, model_dir):
    exact, half = (
        vectors(embed(model_dir, "photos")),
        vectors(embed(model_dir, "photos", "--precision", "bfloat16", out="x")),
    )
    assert (half.norm(dim=1) - 1).abs().max() < 1e-6 and 1e-5 < (half - exact).abs().max() < 0.1


def test_facts_stand_in_the_schema_and_beside(photos, model_dir, processor):
    table = embed(model_dir, "photos")
    inside, beside = json.loads(table.schema.metadata[b"safe_clip"]), json.loads(Path("index/index.json").read_text())
    assert inside.items() <= (beside | {"whole": inside.get("whole")}).items()
    assert beside["weights"] == Embedder(build_model(processor), processor).model.weights
    said = {name: beside[name] for name in ("model", "dimension", "items", "normalised", "count", "whole", "left_out")}
    expected = {"model": model_dir, "dimension": 24, "items": ["image"], "normalised": True, "count": 24}
    assert said == expected | {"whole": True, "left_out": 0}


def test_both_sides_of_quadruplets_are_labelled(dataset_dir, model_dir):
    table = embed(model_dir, dataset_dir, "--splits", "test", "--items", "captions", "images")
    rows = Dataset.load_from_disk(f"{dataset_dir}/test")
    assert len(table) == 32 and table["modality"].to_pylist() == ["image"] * 16 + ["text"] * 16
    assert table["unsafe"].to_pylist() == ([False] * 8 + [True] * 8) * 2
    assert table["caption"].to_pylist()[:16] == [*rows["safe_caption"], *rows["unsafe_caption"]]
    assert table["row"].to_pylist() == list(range(8)) * 4 and set(table["split"].to_pylist()) == {"test"}
    assert (vectors(table)[8:16] - stock_images(model_dir, list(rows["unsafe_image"]))).abs().max() < 1e-5


def test_a_table_of_images_keeps_its_paths_captions_and_labels(photos, model_dir):
    lines = ["photo,title,unsafe", "photos/00.png,a red one,false", "photos/02.png,,true", "photos/04.png,a blue one,"]
    Path("rows.csv").write_text("\n".join(lines) + "\n")
    table = embed(model_dir, "rows.csv")
    assert table["path"].to_pylist() == ["photos/00.png", "photos/02.png", "photos/04.png"]
    assert table["caption"].to_pylist() == ["a red one", None, "a blue one"]
    assert table["unsafe"].to_pylist() == [False, True, None]
    captions = embed(model_dir, "rows.csv", "--items", "captions", out="captions")
    assert captions["row"].to_pylist() == [0, 2] and captions["caption"].to_pylist() == ["a red one", "a blue one"]
    with pytest.raises(UserError, match="--image_column picture: .* has no such column, only photo, title, unsafe"):
        embed(model_dir, "rows.csv", "--image_column", "picture", out="x")


def test_paths_are_meant_from_where_the_data_lie(photos, model_dir, tmp_path):
    (photos / "metadata.csv").write_text("file_name,caption\n00.png,a red one\nmore/01.png,a blue one\n")
    (photos / "sides.csv").write_text("safe_image,unsafe_image\n00.png,more/01.png\n")
    assert embed(model_dir, tmp_path / "photos/sides.csv")["path"].to_pylist() == ["00.png", "more/01.png"]
    (photos / "sides.csv").unlink()
    table = embed(model_dir, photos, out="x")
    assert (
        sorted(table["path"].to_pylist()) == ["00.png", "more/01.png"] and "a blue one" in table["caption"].to_pylist()
    )


def test_several_captions_make_no_image_twice(photos, model_dir):
    lines = [{"image": f"photos/0{number}.png", "captions": [f"a {number}", "a square"]} for number in (0, 2)]
    Path("rows.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    both = embed(model_dir, "rows.jsonl", "--items", "images", "captions")
    assert both["caption"].to_pylist() == ["a 0", "a 2", "a 0", "a square", "a 2", "a square"]
    assert both["modality"].to_pylist() == ["image"] * 2 + ["text"] * 4 and both["row"].to_pylist() == [
        0,
        1,
        0,
        0,
        1,
        1,
    ]
    sides = [{"safe_image": line["image"], "safe_caption": line["captions"]} for line in lines]
    Path("sides.jsonl").write_text("\n".join(json.dumps(line) for line in sides))
    table = embed(model_dir, "sides.jsonl", out="sides")
    assert (
        table["path"].to_pylist() == ["photos/00.png", "photos/02.png"] and table["unsafe"].to_pylist() == [False] * 2
    )
    assert torch.equal(vectors(table), vectors(both)[:2])


def test_labels_are_read_as_they_are_written(photos, model_dir):
    lines = ["image,unsafe"] + [f"photos/00.png,{word}" for word in ("unsafe", "safe", "unsafe")]
    Path("rows.csv").write_text("\n".join(lines) + "\n")
    assert embed(model_dir, "rows.csv")["unsafe"].to_pylist() == [True, False, True]
    Path("rows.csv").write_text("image,nsfw\nphotos/00.png,1\nphotos/02.png,0\n")
    found = embed(model_dir, "rows.csv", "--unsafe_column", "nsfw", out="x")["unsafe"].to_pylist()
    assert found == [True, False]
    Path("rows.csv").write_text("image,nsfw\nphotos/00.png,Yes\nphotos/02.png,no\nphotos/04.png,\nphotos/06.png,n\n")
    found = embed(model_dir, "rows.csv", "--unsafe_column", "nsfw", out="w")["unsafe"].to_pylist()
    assert found == [True, False, None, False]
    Path("rows.csv").write_text("image,nsfw\nphotos/00.png,maybe\n")
    with pytest.raises(UserError, match="row 0, column 'nsfw': a label must be true, false or empty, not 'maybe'"):
        embed(model_dir, "rows.csv", "--unsafe_column", "nsfw", out="y")


def test_captions_that_cannot_be_used_are_counted(model_dir):
    texts = ["a red square"] * 30 + ["", "  "]
    Dataset.from_dict({"caption": texts}).to_json("rows.jsonl")
    with pytest.raises(UserError, match="row 30, column 'caption': .*--on_bad_row skip"):
        embed(model_dir, "rows.jsonl", "--items", "captions")
    table = embed(model_dir, "rows.jsonl", "--items", "captions", "--on_bad_row", "skip", "--max_bad_fraction", "0.1")
    assert table["id"].to_pylist() == list(range(30)) and len(Path("index/bad_rows.txt").read_text().splitlines()) == 2


def test_rows_that_sexualise_minors_are_in_no_index(photos, model_dir, monkeypatch):
    Path("rows.csv").write_text("image,caption\nphotos/00.png,a red one\nphotos/02.png,REFUSED\n")
    monkeypatch.setattr("safe_clip.data.minors.sexualises_minors", lambda texts: "REFUSED" in list(texts))
    for items in (["images"], ["captions"]):
        assert embed(model_dir, "rows.csv", "--items", *items, out=items[0])["caption"].to_pylist() == ["a red one"]


# ---- Interruptions ----


def test_what_was_cut_off_goes_on_to_the_same_bytes(photos, model_dir, monkeypatch):
    monkeypatch.setattr(embedder_module, "CHUNK", 4)
    monkeypatch.setattr(indexing, "SHARD", 10)
    flags = ["--batch_size", "4"]
    embed(model_dir, "photos", *flags, "--cache_dir", "other", out="whole")
    run, batches = Embedder.embed, []

    def counted(self, inputs):
        if len(batches) == 5:
            raise KeyboardInterrupt
        batches.append(len(inputs["pixel_values"]))
        return run(self, inputs)

    monkeypatch.setattr(Embedder, "embed", counted)
    with pytest.raises(KeyboardInterrupt):
        embed(model_dir, "photos", *flags)
    assert not Path("index/index.parquet").exists() and sum(batches) == 18
    with pytest.raises(UserError, match="--index index is no index; it was begun and is not whole"):
        open_index("index")
    Path("index/.safe_clip-0.parquet").write_text("of a run that was killed")
    embedded = []
    monkeypatch.setattr(Embedder, "embed", lambda self, inputs: embedded.append(inputs) or run(self, inputs))
    embed(model_dir, "photos", *flags)
    assert len(embedded) == 2  # of 8 chunks, the others were kept
    for name in ("index.parquet", "index.json"):
        assert Path("index", name).read_bytes() == Path("whole", name).read_bytes()
    assert not list(Path("index").glob(".safe_clip-*"))


@pytest.mark.parametrize("what", ["model", "--items", "data"])
def test_a_folder_of_another_index_is_refused(what, photos, dataset_dir, model_dir, other_dir):
    embed(model_dir, dataset_dir)
    before = Path("index/index.parquet").read_bytes()
    given = {"model": [other_dir, dataset_dir], "data": [model_dir, "photos"]}.get(what, [model_dir, dataset_dir])
    with pytest.raises(UserError, match=f"with another {what}: name another folder, or remove this one") as error:
        embed(*given, *(["--items", "captions"] if what == "--items" else []))
    assert "\n" not in str(error.value) and Path("index/index.parquet").read_bytes() == before
    embed(model_dir, dataset_dir)  # the same is none other


def test_an_index_that_was_only_begun_is_taken_anew(photos, model_dir, other_dir, monkeypatch):
    monkeypatch.setattr(embedder_module, "CHUNK", 4)
    monkeypatch.setattr(indexing, "SHARD", 8)
    lines = ["image,caption", *(f"photos/{number:02}.png,number {number}" for number in range(0, 24, 2))]
    Path("photos/20.png").write_text("no image")
    Path("rows.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"photos/20\.png.*the image cannot be read"):
        embed(model_dir, "rows.csv")
    assert [path.name for path in Path("index").glob("index.*")] == ["index.json"]
    Path("rows.csv").write_text("\n".join(line for line in lines if "20" not in line) + "\n")  # as the message says
    PILImage.new("RGB", (16, 16), "navy").save("photos/00.png")  # and another image by a name that was embedded
    table = embed(model_dir, "rows.csv")
    images = [PILImage.open(path).convert("RGB") for path in table["path"].to_pylist()]
    assert len(table) == 11 and table["caption"].to_pylist() == [
        line.split(",")[1] for line in lines[1:] if "20" not in line
    ]
    assert (vectors(table) - stock_images(model_dir, images)).abs().max() < 1e-5
    assert json.loads(Path("index/index.json").read_text())["whole"]
    Path("index/index.parquet").unlink()
    assert (vectors(embed(other_dir, "rows.csv")) - stock_images(other_dir, images)).abs().max() < 1e-5
    Path("index/index.parquet").rename("index/index.faiss")  # of an index that somebody may still search
    with pytest.raises(UserError, match="with another model: name another folder"):
        embed(model_dir, "rows.csv")


# ---- What cannot be used ----


def test_an_image_that_cannot_be_read_is_named_or_left_out(photos, model_dir, capsys):
    (photos / "02.png").write_text("no image")
    with pytest.raises(UserError, match=r"photos/02\.png.*the image cannot be read.*--on_bad_row skip") as error:
        embed(model_dir, "photos")
    assert "\n" not in str(error.value) and not Path("index/index.parquet").exists()
    table = embed(model_dir, "photos", "--on_bad_row", "skip")
    assert len(table) == 23 and 1 not in table["id"].to_pylist() and "02.png" not in table["path"].to_pylist()
    assert "Left out 1" in capsys.readouterr().out and "02.png" in Path("index/bad_rows.txt").read_text()
    assert json.loads(Path("index/index.json").read_text())["left_out"] == 1
    for name in ("00.png", "04.png"):
        (photos / name).write_text("no image")
    with pytest.raises(UserError, match="3 of 24 items cannot be used, more than --max_bad_fraction 0.05 allows"):
        embed(model_dir, "photos", "--on_bad_row", "skip")


def test_a_model_for_queries_alone_embeds_no_index(photos, model_dir, other_dir, tmp_path, capsys):
    shutil.copytree(model_dir, tmp_path / "queries")
    (tmp_path / "queries/training_args.json").write_text('{"objective": "safe_ranking", "frozen_gallery": true}')
    with pytest.raises(UserError, match="--model queries was trained with --frozen_gallery, for queries alone"):
        embed("queries", "photos")
    embed(model_dir, "photos")
    shutil.copy(f"{other_dir}/model.safetensors", "queries")
    said = found(capsys, "--model", "queries", "a red square")[3]
    assert said.endswith("queries search it, which is what training with --frozen_gallery is for.\n")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--items", "pictures"], "--items pictures: it must be among images, captions"),
        (["--dataset", "nowhere/x"], "--dataset nowhere/x"),
        (["--items", "captions"], "--dataset photos holds no captions to embed"),
        (["--streaming"], "--streaming: an index tells rows by their numbers"),
        (["--format", "csv"], "--format csv: it must be among parquet, faiss"),
        (["--output_dir", "photos/index"], "--output_dir photos/index lies in photos"),
    ],
)
def test_mistakes_are_told_in_a_line(flags, said, photos, model_dir):
    with pytest.raises(UserError, match=said) as error:
        embed(model_dir, "photos", *flags)
    assert "\n" not in str(error.value)


# ---- Searching ----


def found(capsys, *words: str) -> tuple[list[int], list[float], str, str]:
    capsys.readouterr()
    search([*words])
    printed = capsys.readouterr()
    lines = [line.split() for line in printed.out.splitlines()[1:] if " id " in line]
    return [int(line[3]) for line in lines], [float(line[1]) for line in lines], printed.out, printed.err


def test_results_are_those_of_brute_force(dataset_dir, model_dir, model, processor, capsys, monkeypatch):
    monkeypatch.setattr("safe_clip.embedding.index.BLOCK", 7)
    table = embed(model_dir, dataset_dir, "--splits", "train")
    query = Embedder(model, processor).texts(["a blue square beside a red one"]).embeds
    cosines = (query @ vectors(table).T)[0]
    expected = cosines.argsort(descending=True, stable=True)[:5].tolist()
    ids, scores, out, err = found(capsys, "a blue square beside a red one", "--k", "5")
    assert ids == expected and err == ""
    assert scores == pytest.approx(cosines[expected].tolist(), abs=1e-4)
    marked = [line for line in out.splitlines() if "UNSAFE" in line]
    assert len(marked) == sum(table["unsafe"].to_pylist()[place] for place in expected)
    assert all("with a mark" not in line and "(caption hidden)" in line for line in marked)
    assert "with a mark" in found(capsys, "a square", "--k", "99", "--show_unsafe")[2]
    other = found(capsys, "a white square beside a black one with a mark", "--k", "5")
    assert other[0] != ids or other[1] != scores  # the query matters


def test_an_image_finds_itself(photos, model_dir, capsys):
    table = embed(model_dir, "photos")
    for path in ("more/05.png", "08.png"):
        ids, scores, out, _ = found(capsys, "--image", f"photos/{path}", "--k", "3")
        assert scores[0] == pytest.approx(1, abs=1e-4) and len(ids) == 3
        assert table["path"].to_pylist()[ids[0]] == path and path in out
    with pytest.raises(UserError, match="--image nowhere.png: .*No such file"):
        search(["--image", "nowhere.png"])


def test_another_model_is_told_of_and_another_dimension_refused(photos, model_dir, other_dir, tmp_path, capsys):
    shutil.copytree(model_dir, tmp_path / "model")
    embed("model", "photos")
    assert found(capsys, "a red square")[3] == ""
    assert found(capsys, "a red square", "--model", model_dir)[3] == ""  # the same weights elsewhere
    said = found(capsys, "a red square", "--model", other_dir)[3]
    assert said.startswith("note: the index is of another model, model: ") and said.count("\n") == 1
    shutil.copy(f"{other_dir}/model.safetensors", "model")
    said = found(capsys, "a red square")[3]
    assert said.startswith("warning: the weights of model are not those that made the index") and said.count("\n") == 1
    save_siglip_2(tmp_path / "siglip")
    with pytest.raises(UserError, match="--model siglip is a SiglipModel, and the index was made by a CLIPModel"):
        search(["a red square", "--model", "siglip"])
    CLIPModel(CLIPConfig(**CLIPConfig.from_pretrained(model_dir).to_dict() | {"projection_dim": 16})).save_pretrained(
        "x"
    )
    AutoProcessor.from_pretrained(model_dir).save_pretrained("x")
    with pytest.raises(UserError, match="--model x gives embeddings of dimension 16, and those of the index have 24"):
        search(["a red square", "--model", "x"])
    shutil.rmtree("model")
    with pytest.raises(UserError, match="--index index names the model that made it, which cannot be opened"):
        search(["a red square"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "a search requires one query"),
        (["a dog", "--image", "x.png"], "a search requires one query"),
        (["  "], "row of the command, column 'TEXT'"),
        (["a dog", "--k", "0"], "--k is 0; it must be 1 or more"),
        (["a dog"], "--index index is no index; it has no index.parquet"),
    ],
)
def test_what_cannot_be_searched_is_told_in_a_line(words, said):
    with pytest.raises(UserError, match=said) as error:
        search(words)
    assert "\n" not in str(error.value)


def test_a_table_of_somebody_else_or_a_broken_one_is_no_index(tmp_path):
    Path("index").mkdir()
    Dataset.from_dict({"id": [1], "embedding": [[1.0]]}).to_parquet("index/index.parquet")
    with pytest.raises(UserError, match="does not say which model embedded it"):
        open_index("index")
    Path("index/index.parquet").write_bytes(b"PAR1broken")
    with pytest.raises(UserError, match="index.parquet cannot be read"):
        open_index("index")


# ---- Stores ----


def test_faiss_finds_the_same(dataset_dir, model_dir):
    faiss = pytest.importorskip("faiss")
    table = embed(model_dir, dataset_dir, "--format", "faiss")
    queries = vectors(table)[[3, 50]]
    scores, ids = faiss.read_index("index/index.faiss").search(queries.numpy(), 10)
    ours = open_index("index").search(queries)
    assert [[hit["cosine"] for hit in hits] for hits in ours] == pytest.approx(scores, abs=1e-5)
    assert ids[0][0] in (3, *(hit["id"] for hit in ours[0] if hit["cosine"] > 0.99999))


def test_a_vector_store_finds_the_same_ten(tmp_path, model_dir, processor):
    from qdrant_client import QdrantClient
    from qdrant_client.models import Distance, PointStruct, VectorParams

    rows = Dataset.from_dict(make_rows(64), features=FEATURES)
    rows.save_to_disk("data")
    table = embed(model_dir, "data")
    client = QdrantClient(":memory:")  # its local mode
    client.create_collection("images", VectorParams(size=24, distance=Distance.COSINE))
    points = [PointStruct(id=row.pop("id"), vector=row.pop("embedding"), payload=row) for row in table.to_pylist()]
    client.upsert("images", points)
    query = Embedder(build_model(processor), processor).texts(["a green square beside a black one"]).embeds
    theirs = client.query_points("images", query=query[0].tolist(), limit=10).points
    ours = open_index("index").search(query, 10)[0]
    assert [hit.score for hit in theirs] == pytest.approx([hit["cosine"] for hit in ours], abs=1e-5)
    assert [hit.id for hit in theirs] == [hit["id"] for hit in ours]
    assert [hit.payload["unsafe"] for hit in theirs] == [hit["unsafe"] for hit in ours]
