"""How the base of the second world is made: words, what they mean, the losses, and a training that goes on."""

import importlib
import io
import json
import math
import sys
import tarfile

import pytest
import torch
from torch.nn.functional import normalize
from transformers import TrainerCallback

from safe_clip import load_clip, load_processor
from safe_clip.errors import UserError
from safe_clip.evaluation.quadruplets import QuadrupletItems

from ..helpers import ROOT, load_script

things, words, meanings, learner, lessons, pretrain = map(
    importlib.import_module, ("things", "words", "meanings", "learner", "lessons", "pretrain")
)
BY_NAME = {thing.name: thing for thing in things.load_things()}


def archive(folder, name, files):
    """A package as npm packs it."""
    file = folder / f"{name}.tgz"
    with tarfile.open(file, "w:gz") as packed:
        for member, content in files.items():
            info = tarfile.TarInfo(f"package/{member}")
            info.size = len(content.encode())
            packed.addfile(info, io.BytesIO(content.encode()))
    return file


DATA = """  1 This software and database is being provided to you
00001740 03 n 02 dog 0 domestic_dog 0 001 @ 00004475 n 0000 | a tame animal that barks; "the dog barked all night"
00001741 03 n 02 Rome 0 big_old_grey_city 0 000 | a capital of many hills
00001742 03 n 01 slurword 0 000 | (ethnic slur) offensive term for someone
00001743 03 n 01 hound 0 000 | any of several breeds used for hunting
"""
INDEX = "dog%1:05:00:: 00001740 1 42\nhound%1:05:00:: 00001743 1 0\n"


def test_wordnet_is_read(tmp_path):
    found = words.read_wordnet(archive(tmp_path, "wordnet", {"dict/data.noun": DATA, "dict/index.sense": INDEX}))
    assert found.lemmas == ["dog", "domestic dog", "hound"]  # no names, no insults, no more than three words
    assert found.common == ["dog"] and found.glosses == ["a tame animal that barks"]
    adjective = '00004614 00 s 02 cut 0 shortened(ip) 0 001 & 00004413 a 0000 | with parts removed; "the cut version"  '
    assert words.parse_synset(adjective) == (["cut", "shortened"], "with parts removed")


def test_keywords_are_those_of_cldr(tmp_path):
    table = {"🐶": {"default": ["Dog", "pet", "dog"], "tts": ["dog face"]}, "🗡": {"default": ["knife", "weapon"]}}
    content = json.dumps({"annotations": {"annotations": table}})
    found = words.read_annotations(archive(tmp_path, "cldr", {"annotations/en/annotations.json": content}))
    dog, dagger = (
        BY_NAME["dog"],
        BY_NAME["dagger"],
    )  # the dagger's emoji has a variation selector, which CLDR leaves out
    assert words.keywords(found, [dog, dagger]) == {dog: ("dog", "pet"), dagger: ("knife", "weapon")}
    assert meanings.said_of(words.keywords(found, [dog, dagger])) == {
        "dog": [0],
        "pet": [0],
        "knife": [1],
        "weapon": [1],
    }
    with pytest.raises(UserError, match="no keywords of mouse"):
        words.keywords(found, [BY_NAME["mouse"]])


def test_one_common_word_in_forty_is_never_taught():
    common = [f"{a}{b}{c}" for a in "abcdefgh" for b in "aeiou" for c in "klmnopqrst"]
    lexicon = words.Lexicon([*common, "two words"], [*common, "two words"], [])
    kept = words.never_taught(lexicon, [])
    assert 3 <= len(kept) <= 20 and kept == words.never_taught(lexicon, ["else"])
    assert words.never_taught(lexicon, kept[:1]) == kept[1:]


def test_what_a_thing_means_by_hand():
    """Names count as a mean, keywords as another, kinds by half."""
    thing = things.Thing("x", ("one", "some two"), ("kind",), 0)
    vectors = {"one": [1.0, 0, 0], "two": [0, 1.0, 0], "word": [0, 0, 1.0], "kind": [1.0, 0, 0]}
    found = meanings.thing_vectors(lambda texts: torch.tensor([vectors[text] for text in texts]), {thing: ("word",)})
    assert found[0].tolist() == pytest.approx([1 / math.sqrt(2.25), 0.5 / math.sqrt(2.25), 1 / math.sqrt(2.25)])


def test_axes_keep_what_varies_most():
    texts = torch.tensor([[3.0, 0.1, 0], [-3.0, 0, 0.1]])
    of_things = torch.tensor([[0.0, 1.0, 0], [0, -1.0, 0]])
    turn = meanings.axes(texts, of_things, 2)
    assert turn.shape == (3, 2) and turn[2].abs().max() < 0.1
    assert torch.allclose(turn.T @ turn, torch.eye(2), atol=1e-6)


def test_losses_by_hand():
    same = torch.eye(2)
    assert learner.away(
        torch.tensor([[2.0, 0], [0, 3.0], [1.0, 1.0]]), torch.tensor([[1.0, 0], [0, -1.0], [1.0, 0]])
    ).tolist() == (pytest.approx([0, 2, 1 - math.sqrt(0.5)]))
    scale = torch.tensor(2.0)
    assert learner.contrastive(same, same, scale).item() == pytest.approx(math.log(1 + math.exp(-2)))
    alike = torch.ones(2, 2, dtype=torch.bool)
    assert learner.contrastive(same, same, scale, alike).item() == pytest.approx(0)  # nothing is wrong for either
    three = normalize(torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1.0]]), dim=1)
    assert learner.soft(three, three, three).item() == pytest.approx(0, abs=1e-6)
    assert learner.soft(three[[1, 0, 2]], three, three).item() > 0.1


@pytest.fixture(scope="module")
def taught(tmp_path_factory, sprites_file):
    """A folder with what a base is made of, of random meanings."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "sprites.parquet").symlink_to(sprites_file)
    generator = torch.Generator().manual_seed(0)

    def some(count):
        return normalize(torch.randn(count, meanings.DIMENSIONS, generator=generator), dim=1)

    texts = [f"{name} {number}" for name in sorted(BY_NAME)[:40] for number in range(3)]
    pools = {name: torch.arange(start, 120, 6) for start, name in enumerate(lessons.SHARES)}
    made = meanings.Meanings(
        some(len(things.load_things())), texts, some(120).half(), pools, ["kept", "word"], some(2), {"pet": [1, 2]}
    )
    made.save(folder / "meanings.safetensors")
    return folder


def test_meanings_are_read_as_they_were_written(taught):
    read = meanings.Meanings.load(taught / "meanings.safetensors")
    assert read.texts[:2] == [f"{min(BY_NAME)} 0", f"{min(BY_NAME)} 1"] and len(read.texts) == 120
    assert read.kept == ["kept", "word"] and read.keywords == {"pet": [1, 2]}
    assert list(read.pools["gloss"][:2]) == [2, 8] and read.targets.dtype == torch.float16


TINY = pretrain.Shape(32, 2, 1, 1, 400)


def test_a_tiny_base_is_pretrained_and_loads(taught, capsys):
    stages = [pretrain.Stage(name, 1, 4, 1e-3) for name in ("english", "images", "scenes")]
    with pytest.raises(UserError, match="meanings.safetensors is missing"):
        pretrain.pretrain(taught / "nothing", TINY, stages)
    pretrain.pretrain(taught, TINY, stages, workers=0)
    log = capsys.readouterr().out
    assert [name for name in learner.WEIGHTS if f"'{name}'" not in log] == [] and "nan" not in log
    model = load_clip(str(taught / "base"))
    assert type(model).__name__ == "CLIPModel" and model.config.projection_dim == 192
    pixels = torch.stack([torch.zeros(3, 64, 64), torch.ones(3, 64, 64)])
    assert model.get_image_features(pixel_values=pixels).pooler_output.isfinite().all()


def stop_at(step):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= step
            control.should_save = control.should_save or control.should_training_stop

    return Stop()


@pytest.mark.parametrize("name", ["english", "scenes"])
def test_a_resumed_stage_equals_one_that_was_not_stopped(taught, tmp_path, name):
    read = meanings.Meanings.load(taught / "meanings.safetensors")
    processor = pretrain.build_processor(pretrain.load_tokenizer(tmp_path / "tokenizer", read, 400))
    stage = pretrain.Stage(name, 4, 3, 1e-3)
    collator = lessons.SceneCollator(processor, taught / "sprites.parquet", True)
    data = lessons.Scenes(12, name, read)
    if name == "english":
        collator, data = lessons.EnglishCollator(processor), lessons.English(12, name, read)

    def trained(folder, stops):
        for callbacks in stops:
            torch.manual_seed(0)
            made = learner.Learner(pretrain.build_model(processor.tokenizer, TINY), read.things)
            pretrain.run_stage(stage, made, data, collator, tmp_path / folder, workers=0, callbacks=callbacks)
        return made.state_dict()

    whole, half = trained("whole", [()]), trained("half", [(stop_at(2),)])
    resumed = trained("half", [()])
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert not all(torch.equal(whole[key], half[key]) for key in whole)


def test_pixels_are_the_processor_s(taught):
    read = meanings.Meanings.load(taught / "meanings.safetensors")
    processor = load_processor(str(taught / "base")) if (taught / "base").exists() else None
    processor = processor or pretrain.build_processor(pretrain.load_tokenizer(taught / "tokenizer", read, 400))
    images = [lessons.compose(f"pixels/{n}", ("noto",), things.stand_ins()).safe for n in range(2)]
    drawn = [scene.draw(lessons.load_sprites(taught / "sprites.parquet"))[0] for scene in images]
    wanted = processor.image_processor(drawn, return_tensors="pt")["pixel_values"]
    assert torch.allclose(lessons.image_tensor(drawn, processor), wanted, atol=1e-5)


def test_reached_figures_by_hand():
    reached = importlib.import_module("reached")
    assert reached.rank_correlation(torch.tensor([1.0, 2, 3]), torch.tensor([10.0, 200, 3000])) == pytest.approx(1)
    assert reached.rank_correlation(torch.tensor([1.0, 2, 3]), torch.tensor([2.0, 3, 1])) == pytest.approx(-0.5)
    some = normalize(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    assert reached.word_correlation(some, some, pairs=50) == pytest.approx(1)
    safe, unsafe = torch.linspace(-2, 0, 40)[:, None], torch.linspace(1, 2, 40)[:, None]
    fit = torch.arange(40) % 2 == 0
    assert reached.found_unseen(safe, unsafe, fit, ~fit) == 1
    unsafe[1::4] = -3  # every second of those that are asked about lies beyond the safe ones
    assert reached.found_unseen(safe, unsafe, fit, ~fit) == 0.5
    assert "| some | 0.70 | 0.6 |" in reached.table([("some", 0.7, "0.6")])


def test_captions_that_name_their_category_are_left_out(items_of):
    benchmark = load_script("benchmarks/second_world.py")
    items = items_of(unsafe_text=[[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0]])
    # The safe images lie at (1, 0) and the unsafe ones at (0, 1): the first and the last caption find a safe one.
    assert benchmark.plain_rate(items, [False] * 4) == 0.5
    assert benchmark.plain_rate(items, [True, False, False, False]) == pytest.approx(1 / 3)
    assert benchmark.plain_rate(items, [True, True, True, False]) == 1
    with pytest.raises(UserError, match="no base or no data"):
        benchmark.digest(ROOT / "docs")


@pytest.fixture
def items_of():
    from safe_clip.embedding.items import IdentifiedItems

    def made(unsafe_text):
        count, numbers = len(unsafe_text), torch.arange(len(unsafe_text))

        def items(vectors, first):
            return IdentifiedItems(torch.tensor(vectors), numbers, ids=numbers + first, count=count)

        towards = [1.0, 0.0], [0.0, 1.0]
        safe, unsafe = ([each] * count for each in towards)
        return QuadrupletItems(items(safe, 0), items(unsafe_text, 10), items(safe, 20), items(unsafe, 30))

    return made


def test_the_tables_lines_come_from_the_runs(monkeypatch, tmp_path, capsys):
    benchmark = load_script("benchmarks/second_world.py")
    figures = {name for _, _, name in benchmark.LINES} - {benchmark.PLAIN}
    asked = []

    def run(config, flags, splits, seed, runs):
        asked.append((config, flags, splits, seed))
        value = 0.5 + seed / 10
        return {
            when: {split: dict.fromkeys(figures, of) for split in splits}
            for when, of in (("before", 0.1), ("after", value))
        } | {"folder": "trained"}

    monkeypatch.setattr(benchmark, "run", run)
    monkeypatch.setattr(benchmark, "digest", lambda folder: "x")
    monkeypatch.setattr(benchmark.safe_clip, "load_quadruplets", lambda name: dict.fromkeys(benchmark.SPLITS))
    rates = {"trained": 0.4, "world/base": 0.2}
    monkeypatch.setattr(benchmark, "plain_rates", lambda model, rows: dict.fromkeys(rows, rates[model]))
    monkeypatch.setattr(sys, "argv", ["second_world.py", "world", "--seeds", "0", "2"])
    benchmark.main()
    flags = ["--model", "world/base", "--dataset", "world/data"]
    assert asked == [(None, flags, list(benchmark.SPLITS), seed) for seed in (0, 2)]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(benchmark.LINES)
    assert lines[2] == "| unsafe captions that find a safe image first | 10.0 | 60.0 ± 14.1 |"
    assert lines[9] == "| ... that do not name the category | 20.0 | 40.0 ± 0.0 |"
