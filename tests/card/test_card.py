"""The card: what it says is what was trained and measured, and what a person wrote in it stays."""

import json
import re
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from huggingface_hub import EvalResult, ModelCard
from PIL import Image

from safe_clip import (
    SafeCLIPTrainer,
    SafeCLIPTrainingArguments,
    UserError,
    load_quadruplets,
    lora_config,
    update_model_card,
    write_model_card,
)
from safe_clip.card.results import combine, eval_results, results_section, worst_cases
from safe_clip.card.training import unlearned
from safe_clip.card_text import code, plain, read_blocks, replace_blocks
from safe_clip.evaluation.quadruplets import LONGEST_NAME, row_categories
from safe_clip.names import redact_paths

from ..helpers import FEATURES, make_rows
from ..models.test_drop_in import snippets

SECRET = "hf_notForOthers"


def figure(value: float, **more) -> dict:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, **more}


def make_results(dataset="you/quadruplets", weights="a", unsafe_text=0.4, splits=("test",)) -> dict:
    def measured(rate: float) -> dict:
        return {
            "retrieval": {"safe_t2i_recall_at_1": figure(0.7)},
            "redirection": {
                "unsafe_text_safe_rate_at_1": figure(
                    rate,
                    by_category={
                        "gore": {"value": rate - 0.2, "n": 20},
                        "drugs": {"value": rate + 0.2, "n": 20},
                        "abuse": {"value": 0.0, "n": 19},  # too few to say anything
                    },
                ),
                "unsafe_image_safe_rate_at_1": figure(0.9),
                "safe_text_safe_rate_at_1": figure(0.1),  # no worst case: the query is safe
            },
            "geometry": {"text_cosine_to_original": figure(0.5)},
            "robustness": {"unsafe_text_worst_case": figure(0.3), "unsafe_image_mean": figure(0.8)},
        }

    return {
        "names": {"baseline": "openai/clip-vit-large-patch14", "model": "safe-clip"},
        "weights": {"baseline": "o", "model": weights},
        "dataset": dataset,
        "settings": {"splits": list(splits)},
        "samples": {"splits": {split: {"used": 8, "of": 8} for split in splits}, "zero_shot": {}},
        "models": {
            role: {"splits": {split: measured(rate) for split in splits}, "zero_shot": {}}
            for role, rate in (("baseline", 0.2), ("model", unsafe_text))
        },
    }


def zero_shot_results(weights="a") -> dict:
    results = make_results(dataset="demo", weights=weights, splits=())  # of which nothing was measured
    results["settings"] = {"tasks": ["zero_shot"], "zero_shot": ["cifar10"]}
    results["samples"]["zero_shot"] = {"cifar10": {"used": 9, "of": 9, "classes": 10}}
    for role in results["models"]:
        results["models"][role]["zero_shot"] = {"cifar10": {"top_1": figure(0.6)}}
    return results


# ---- Parts of a card ----


def test_a_mark_that_a_person_removed_takes_no_text_along():
    begin, end = "<!-- safe-clip: results -->", "<!-- /safe-clip: results -->"
    for broken in (
        f"{begin}\nold\n\n## Mine\n",
        f"Mine\n{end}\n",
        f"{begin}{end}\n## Mine\n",
        f"{begin}\n{end}\n## Mine\n",
    ):
        once = replace_blocks(broken, {"results": "first"})
        twice = replace_blocks(once, {"results": "second"})
        assert "Mine" in twice and "second" in twice and "first" not in twice and twice.count("second") == 1
        assert "old" not in broken or "old" in twice


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_what_stands_between_marks_is_replaced(end):
    human = ["Mine: é 🙂", "", "| a | b |", ""]
    old = end.join([*human, "<!-- safe-clip: results -->", "old", "older", "<!-- /safe-clip: results -->", *human])
    new = replace_blocks(old, {"results": r"new \1 \g<0>", "worst": "bad"})
    before, after = old.split(f"{end}old{end}older{end}")
    assert new == f"{before}\nnew \\1 \\g<0>\n{after}\n<!-- safe-clip: worst -->\nbad\n<!-- /safe-clip: worst -->\n"
    assert read_blocks(new) == {"results": r"new \1 \g<0>", "worst": "bad"}
    assert replace_blocks(new, {"worst": "bad"}) == new


def test_names_from_data_are_text_and_nothing_else():
    assert plain("a|b\n<script>`x`") == r"a\|b &lt;script&gt;\`x\`"
    assert "<!--" not in plain("<!-- safe-clip: results -->")
    assert code("pipe:text_encoder") == "`pipe:text_encoder`" and code("a`b<!--") == r"`a\`b&lt;!--`"


# ---- Results ----


def test_results_of_the_same_weights_and_data_are_added_and_others_replaced():
    first = combine(None, make_results())
    both = combine(first, zero_shot_results())
    assert both["dataset"] == "you/quadruplets"
    original = "--baseline openai/clip-vit-large-patch14"
    assert (
        f"```bash\nsafe-clip eval --model me/it {original} --dataset you/quadruplets --splits test\n"
        f"safe-clip eval --model me/it {original} --tasks zero_shot --zero_shot cifar10\n```"
    ) in results_section(both, "me/it")
    # In either order, with the original or without.
    alone = zero_shot_results()
    for part in ("models", "weights", "names"):
        del alone[part]["baseline"]
    for earlier in (alone, zero_shot_results()):
        later = combine(combine(None, earlier), make_results())
        assert later["dataset"] == "you/quadruplets"
        assert later["models"]["model"] == both["models"]["model"]
    # Other quadruplets replace these quadruplets, and nothing else.
    moved = combine(both, make_results(dataset="me/others", splits=("x",)))
    assert set(moved["models"]["model"]["splits"]) == {"x"} and set(moved["samples"]["splits"]) == {"x"}
    assert moved["models"]["model"]["zero_shot"] == both["models"]["model"]["zero_shot"]
    assert [run.get("splits") for run in moved["runs"]] == [None, ["x"]]
    assert both["models"]["model"]["splits"] == first["models"]["model"]["splits"]
    assert both["models"]["model"]["zero_shot"]["cifar10"]["top_1"]["value"] == 0.6
    assert both["samples"] == {
        "splits": {"test": {"used": 8, "of": 8}},
        "zero_shot": {"cifar10": {"used": 9, "of": 9, "classes": 10}},
    }
    again = combine(first, make_results(unsafe_text=0.5, splits=("test", "other")))
    rates = {split: tasks["redirection"] for split, tasks in again["models"]["model"]["splits"].items()}
    assert rates["test"]["unsafe_text_safe_rate_at_1"]["value"] == 0.5 and "other" in rates
    alone = make_results(splits=("x",))
    for part in ("models", "weights", "names"):  # without the original beside it
        del alone[part]["baseline"]
    partly = combine(first, alone)
    assert set(partly["models"]["baseline"]["splits"]) == {"test"}
    assert "| unsafe captions | - | 40.0 [30.0, 50.0] |" in results_section(partly, "me/it").split("### x")[1]
    for other in (make_results(weights="b", splits=("x",)), make_results(dataset="me/others", splits=("x",))):
        assert set(combine(first, other)["models"]["model"]["splits"]) == {"x"}


def test_tables_metadata_and_worst_cases_have_the_measured_values(tmp_path):
    results = combine(None, make_results())
    section = results_section(results, "you/safe-clip")
    command = "safe-clip eval --model you/safe-clip --baseline openai/clip-vit-large-patch14 --dataset you/quadruplets"
    command += " --splits test"
    assert f"```bash\n{command}\n```" in section
    assert "### test (8 quadruplets)\n\n| | original | this model | change |\n|---|---|---|---|" in section
    assert "| unsafe captions | 20.0 [10.0, 30.0] | 40.0 [30.0, 50.0] |" in section
    found = {(each.dataset_split, each.metric_name, each.metric_type): each for each in eval_results(results)}
    name = "Redirection: the first result from the mixed pool is safe: unsafe captions"
    assert found["test", name, "safe_rate"].metric_value == 0.4
    assert found["test", f"{name} (original)", "safe_rate"].metric_value == 0.2
    assert {each.dataset_type for each in found.values()} == {"you/quadruplets"}
    assert not any("cosine" in each.metric_name for each in found.values())  # no share
    (only,) = (each for each in eval_results(combine(None, zero_shot_results())) if "original" not in each.metric_name)
    assert (only.task_type, only.metric_type, only.metric_value) == ("zero-shot-image-classification", "accuracy", 0.6)
    assert (only.dataset_type, only.dataset_name, only.dataset_split) == ("cifar10", "cifar10", None)
    lines = worst_cases(results).splitlines()[2:]
    assert lines == [
        "- in the mixed pool: **40.0 %** of unsafe captions in `test`",
        "- under small changes of the query: **30.0 %** of unsafe captions, under every change in `test`",
        "- by category, in the mixed pool: **20.0 %** of unsafe captions of the category gore in `test`",
    ]
    assert worst_cases(zero_shot_results()).endswith("was not measured.")


def test_local_paths_are_nobody_s_business(tmp_path):
    results = make_results(dataset=str(tmp_path))
    results["names"] = {"model": str(tmp_path), "baseline": f"{tmp_path}@main"}
    results["settings"] = {"zero_shot": [f"cifar10={tmp_path}:test"], "synonyms": f"{tmp_path}/s.yaml"}
    results["samples"]["zero_shot"][str(tmp_path / "kinds")] = {"used": 9, "of": 9, "classes": 10}
    for role in results["models"]:
        results["models"][role]["zero_shot"][str(tmp_path / "kinds")] = {"top_1": figure(0.6)}
    results["unreadable"] = {f"--zero_shot {tmp_path}": ["row 1"]}
    results = combine(None, results)
    assert results["dataset"] == results["names"]["model"] == tmp_path.name
    assert str(tmp_path.parent) not in json.dumps(results)
    section = results_section(results, "you/safe-clip")
    assert f"--zero_shot cifar10={tmp_path.name}:test --synonyms s.yaml" in section and "| kinds, top-1 |" in section
    assert redact_paths({"a": ["../b/c", "~/d/e.yaml", "you/it", 3]}) == {"a": ["c", "e.yaml", "you/it", 3]}


# ---- What was unlearned ----


def test_categories_and_concepts_are_named_by_how_often_they_occur_and_content_is_left_out():
    content = "x" * (LONGEST_NAME + 1)
    rows = Dataset.from_dict(
        {
            "category": [1, 0, 1, 1, 1, None],
            "concept": ["pistol", "pill", "axe", "pistol", content, "axe"],
        }
    ).cast_column("category", ClassLabel(names=["drugs", "weapons"]))
    assert unlearned(rows) == {"weapons": ["pistol", "axe"], "drugs": ["pill"]}
    assert list(unlearned(rows)) == ["weapons", "drugs"]
    assert unlearned(rows.select_columns(["concept"])) == {}
    named = Dataset.from_dict({"category": [content, "gore", ""]})
    assert unlearned(named) == {"gore": []} and row_categories(named) == ["other", "gore", "other"]


# ---- The whole ----


@pytest.fixture
def trained(processor, model_dir, tmp_path):
    table = Dataset.from_dict({**make_rows(16), "category": ["weapons"] * 16}, features=None)
    for column in ("safe_image", "unsafe_image"):
        table = table.cast_column(column, FEATURES[column])
    rows = DatasetDict(train=table, validation=table.select(range(8)))
    args = SafeCLIPTrainingArguments(
        str(tmp_path / "out"),
        max_steps=3,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        learning_rate=5e-3,
        loss_weights={"preservation_text_cosine": 12.5},
        hub_token=SECRET,
        hub_model_id="you/safe-clip",
        disable_tqdm=True,
        use_cpu=True,
        report_to="none",
    )
    trainer = SafeCLIPTrainer(model_dir, args, rows["train"], rows["validation"], peft_config=lora_config(4, 8))
    trainer.train()
    trainer.save_model()
    return trainer, rows, tmp_path / "out"


def test_the_card_tells_what_was_trained(trained, dataset_dir, model_dir):
    trainer, rows, folder = trained
    path = write_model_card(trainer, rows, dataset_dir)
    text = path.read_text()
    assert path == folder / "README.md"
    parts = read_blocks(text)
    assert parts["about"].splitlines()[0].startswith(f"`{Path(model_dir).name}`, fine-tuned with safe-clip")
    assert "- **weapons**" in parts["about"].splitlines()
    training = parts["training"]
    assert "train 16, validation 8 quadruplets" in training
    assert "- `learning_rate`: 0.005" in training and "- `max_steps`: 3" in training
    assert r"- `loss\_weights`" not in training
    assert '- `loss_weights`: {"preservation\\_text\\_cosine": 12.5}' in training
    listed = set(re.findall(r"^- `(\w+)`:", training, re.MULTILINE))
    assert listed == {
        *("max_steps", "logging_steps", "eval_strategy", "eval_steps", "learning_rate", "loss_weights"),
        *("hub_model_id", "disable_tqdm", "use_cpu"),
    }
    assert "rank 4, alpha 8, dropout 0, on" in training and "for 3 steps on 1 x" in training
    assert f", computing in {'bfloat16' if trainer.args.bf16 else 'float32'}" in training
    assert "- Energy: not measured" in training
    assert "torchvision" in training and re.search(r"torch \d+\.\d+.*pillow \d+", training)
    width, height = Image.open(folder / "loss_curves.png").size
    assert width > 1000 and height > 400 and "(loss_curves.png)" in training
    assert "safe-clip eval --model you/safe-clip" in parts["results"] and "--update_card" in parts["results"]
    assert re.search(r"\{\{ ?Safe-CLIP|\{\{Safe-CLIP", text) and "None" not in text and "{%" not in text
    metadata = ModelCard(text).data.to_dict()
    assert metadata["pipeline_tag"] == "zero-shot-image-classification"
    assert "base_model" not in metadata and "datasets" not in metadata  # neither is on the Hub
    home = {str(folder.parent), str(Path(model_dir).parent), SECRET}
    for file in folder.rglob("*"):
        if file.is_file():
            assert not any(secret.encode() in file.read_bytes() for secret in home), file
    checkpoint = json.loads((folder / "checkpoint-3" / "training_args.json").read_text())
    assert checkpoint["learning_rate"] == 5e-3 and checkpoint["hub_token"] == "<HUB_TOKEN>"
    assert not list(folder.rglob("training_args.bin"))


def test_a_person_s_words_survive_measuring_and_training_again(trained, dataset_dir):
    trainer, rows, folder = trained
    path = write_model_card(trainer, rows, dataset_dir)
    text = path.read_text().replace("## Limits\n", "## Limits\n\nMy own warning: ½ as good on Mondays.\n")
    text = text.replace("library_name: transformers\n", "library_name: transformers\nlicense: mit\nlanguage: en\n")
    text = text.replace("- safety\n", "- safety\n- mine\n", 1)
    path.write_text(text)
    results = make_results(dataset=dataset_dir)
    assert update_model_card(str(folder), results) == str(path)
    others = EvalResult("image-classification", "imagenet-1k", "ImageNet", "accuracy", 0.123)
    mine = ModelCard.load(path)
    mine.data.eval_results.append(others)
    mine.save(path)
    update_model_card(str(folder), results)
    updated = path.read_text()
    assert "| unsafe captions | 20.0 [10.0, 30.0] | 40.0 [30.0, 50.0] |" in read_blocks(updated)["results"]
    assert "**40.0 %** of unsafe captions in `test`" in read_blocks(updated)["worst"]

    def human(card: str) -> str:
        return re.sub(
            r"(<!-- safe-clip: (\w+) -->).*?(<!-- /safe-clip: \2 -->)", r"\1\3", ModelCard(card).text, flags=re.S
        )

    assert human(updated) == human(text) and "½ as good on Mondays" in updated
    data = ModelCard(updated).data
    assert (data.license, data.language, data.tags[-1]) == ("mit", "en", "mine")
    assert data.model_name == "you/safe-clip"
    assert {each.metric_value for each in data.eval_results} == {0.123, 0.7, 0.2, 0.4, 0.9, 0.1, 0.3, 0.8}
    assert len(data.eval_results) == 1 + len(eval_results(combine(None, results)))
    assert json.loads((folder / "evaluation.json").read_text())["dataset"] == Path(dataset_dir).name
    update_model_card(str(folder), zero_shot_results())
    assert "| cifar10, top-1 |" in path.read_text() and "| unsafe captions | 20.0" in path.read_text()

    write_model_card(trainer, rows, dataset_dir)  # after another training: what was measured is of other weights
    renewed = path.read_text()
    assert human(renewed) == human(text)
    data = ModelCard(renewed).data
    assert data.eval_results == [others] and data.license == "mit" and "mine" in data.tags
    assert "Not measured yet" in renewed and not (folder / "evaluation.json").exists()


def test_a_card_of_another_hand_gets_the_figures_at_its_end(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n\nText.\n")
    update_model_card(str(tmp_path), make_results())
    text = (tmp_path / "README.md").read_text()
    assert "# Mine\n\nText.\n" in text and set(read_blocks(text)) == {"results", "worst"}
    (tmp_path / "README.md").unlink()
    update_model_card(str(tmp_path), make_results())
    assert f"# {tmp_path.name}\n" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n# Mine\n")
    with pytest.raises(UserError, match=r"the metadata of the card .*README\.md cannot be read"):
        update_model_card(str(tmp_path), make_results())


def test_the_card_s_snippets_are_those_of_the_readme(trained, dataset_dir):
    """Which are each run as written elsewhere."""
    trainer, rows, _ = trained
    trainer.args.hub_model_id = "safe-clip"
    card = write_model_card(trainer, rows, dataset_dir).read_text()
    blocks = re.findall(r"```(?:python|bash)\n(.*?)```", card, re.DOTALL)
    for name, snippet in snippets().items():
        if name == "adapter":  # of a repository it lies in a subfolder: see the tests of pushing
            continue
        for line in [snippet] if "command" not in name else [snippet.strip()]:
            assert any(line in block for block in blocks), name


def test_a_resumed_run_tells_of_its_own_steps_alone(trained, dataset_dir, processor, model_dir):
    first, rows, folder = trained
    assert "s for 3 steps on 1 x" in write_model_card(first, rows, dataset_dir).read_text()
    args = SafeCLIPTrainingArguments(
        str(folder), max_steps=5, report_to="none", disable_tqdm=True, use_cpu=True, save_strategy="no"
    )
    args.loss_weights = first.args.loss_weights  # without which it would be another run
    trainer = SafeCLIPTrainer(model_dir, args, rows["train"], peft_config=lora_config(4, 8))
    trainer.train("last")
    assert "s for steps 4 to 5 alone, being resumed, on" in write_model_card(trainer, rows, dataset_dir).read_text()


def test_full_fine_tuning_leaves_no_adapter_of_an_earlier_training(trained, dataset_dir, model_dir):
    _, rows, folder = trained
    assert (folder / "adapter").is_dir()
    args = SafeCLIPTrainingArguments(
        str(folder), max_steps=1, report_to="none", disable_tqdm=True, use_cpu=True, save_strategy="no"
    )
    trainer = SafeCLIPTrainer(model_dir, args, rows["train"], peft_config=None)
    trainer.train()
    trainer.save_model()
    card = write_model_card(trainer, rows, dataset_dir, {"full_finetuning": True}).read_text()
    assert not (folder / "adapter").exists() and "PeftModel" not in card
    assert "- Trained: all weights (" in card and "- `full_finetuning`: True" in card


def test_energy_is_told_where_it_is_measured(processor, model_dir, dataset_dir, tmp_path):
    pytest.importorskip("codecarbon")
    rows = load_quadruplets(dataset_dir)
    args = SafeCLIPTrainingArguments(
        str(tmp_path), max_steps=1, report_to="codecarbon", disable_tqdm=True, use_cpu=True, save_strategy="no"
    )
    trainer = SafeCLIPTrainer(model_dir, args, rows["train"])
    trainer.train()
    trainer.save_model()
    training = read_blocks(write_model_card(trainer, rows, dataset_dir).read_text())["training"]
    assert re.search(
        r"- Energy: [\d.e-]+ kWh in this time, about [\d.e-]+ g of CO2 where it ran .*by codecarbon \d", training
    )
