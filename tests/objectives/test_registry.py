import pytest

from safe_clip import SafeCLIPLoss, SafeCLIPTrainingArguments, SafeRankingLoss, UserError
from safe_clip.objectives import OBJECTIVES, build_objective


def test_objectives_are_found_by_name():
    assert type(build_objective("safe_clip", 31.0)) is SafeCLIPLoss
    made = build_objective("safe_ranking", 31.0, {"redirection_text_ranking": 2}, {"anchors": 7})
    assert type(made) is SafeRankingLoss
    assert (made.logit_scale, made.anchors, made.weights["redirection_text_ranking"]) == (31.0, 7, 2.0)
    assert SafeCLIPTrainingArguments(output_dir="x", report_to="none").objective == "safe_ranking"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "safest"}, "--objective safest is none of safe_ranking, safe_clip, safer_clip, shield_clip"),
        ({"objective_options": {"anchor": 1}}, "names 'anchor', but for safe_ranking its options are anchors,"),
        ({"objective": "safe_clip", "objective_options": {"anchors": 1}}, "for safe_clip it has no options"),
        ({"objective_options": {"unsafe_per_safe": "many"}}, "--objective_options .* do not fit safe_ranking"),
        ({"loss_weights": {"redirection_text": 1}}, "names 'redirection_text'; the terms are"),
        ({"objective_options": "5"}, "--objective_options must be a JSON object"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_loaded(settings, message):
    with pytest.raises(UserError, match=message):
        SafeCLIPTrainingArguments(output_dir="x", report_to="none", **settings)


def test_the_terms_of_every_objective_are_losses(tmp_path):
    """Lower is better where the best checkpoint is chosen by one."""
    common = {"output_dir": str(tmp_path), "eval_strategy": "epoch", "save_strategy": "epoch"}
    for objective in OBJECTIVES.values():
        for term in objective.WEIGHTS:
            args = SafeCLIPTrainingArguments(
                metric_for_best_model=f"eval_{term}", load_best_model_at_end=True, **common
            )
            assert args.greater_is_better is False


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_weight_means_the_same_for_every_term(objective):
    """Those over hidden states included."""
    kind = OBJECTIVES[objective]
    first = next(iter(kind.WEIGHTS))
    made = build_objective(objective, 1.0, {first: 0.5, "preservation_text_states": 2, "redirection_image_states": 0.5})
    by_weight = {name: made.total({name: 1.0}) / weight for name, weight in made.weights.items() if weight}
    assert {"preservation_text_states", "redirection_image_states"} <= set(by_weight)
    assert list(by_weight.values()) == pytest.approx([1 / made.divisor] * len(by_weight))
    alone = build_objective(objective, 1.0, dict.fromkeys(kind.WEIGHTS, 0) | {"preservation_text_states": 2})
    assert 0 < alone.total({"preservation_text_states": 1.0}) < float("inf")
