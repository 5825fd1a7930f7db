"""Scores against plain twins and scikit-learn; intervals against what they claim."""

import json
import time

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, precision_score, top_k_accuracy_score

from vjepa.data.stills import read_image
from vjepa.errors import UserError
from vjepa.probing import scores
from vjepa.records import ClipBatch
from vjepa.reporting import pictures

NAMES = [f"class {i}" for i in range(8)]


@pytest.fixture
def answers():
    """probabilities [300, 8], truth [300], clip ids: classes of unequal size, right about half of the time."""
    rng = np.random.default_rng(1)
    truth = rng.choice(8, size=300, p=np.arange(1, 9) / 36)
    logits = rng.normal(size=(300, 8)) + 1.5 * np.eye(8)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities, [NAMES[i] for i in truth], np.arange(1000, 1300)


@pytest.mark.fast
def test_shares_and_confusions_agree_with_scikit_learn(answers):
    probabilities, truth, clip_ids = answers
    found = scores.score(probabilities, NAMES, truth, clip_ids)
    predicted = [NAMES[i] for i in probabilities.argmax(1)]
    np.testing.assert_array_equal(found.confusion, confusion_matrix(truth, predicted, labels=NAMES))
    assert found.top1.value == pytest.approx(top_k_accuracy_score(truth, probabilities, k=1, labels=NAMES))
    assert found.top5.value == pytest.approx(top_k_accuracy_score(truth, probabilities, k=5, labels=NAMES))
    assert found.mean_class.value == pytest.approx(balanced_accuracy_score(truth, predicted))
    precisions = precision_score(truth, predicted, labels=NAMES, average=None)
    assert [one.precision for one in found.per_class] == pytest.approx(precisions.tolist())
    assert sum(one.num for one in found.per_class) == found.num_clips == 300


@pytest.mark.fast
def test_recall_at_k_agrees_with_a_plain_twin(answers):
    probabilities, truth, _ = answers
    probabilities = probabilities.round(1)  # many ties

    def recall(name):
        rows = [row.tolist() for row, true in zip(probabilities, truth, strict=True) if true == name]
        return sum(NAMES.index(name) in sorted(range(8), key=lambda c: (-row[c], c))[:5] for row in rows) / len(rows)

    found = scores.score(probabilities, NAMES, truth, range(300))
    assert found.recall_at_5.value == pytest.approx(np.mean([recall(name) for name in set(truth)]))


@pytest.mark.fast
def test_worst_are_the_most_confident_mistakes(answers):
    probabilities, truth, clip_ids = answers
    worst = scores.score(probabilities, NAMES, truth, clip_ids).worst
    mistakes = [
        (row.max(), i, true, NAMES[row.argmax()], row[NAMES.index(true)])
        for i, (row, true) in enumerate(zip(probabilities, truth, strict=True))
        if NAMES[row.argmax()] != true
    ]
    expected = [
        (1000 + i, true, answer, own, best)
        for best, i, true, answer, own in sorted(mistakes, reverse=True)[: scores.NUM_WORST]
    ]
    assert [(one.clip_id, one.truth, one.predicted, one.probability, one.confidence) for one in worst] == expected


@pytest.mark.fast
def test_top_five_is_not_reported_where_it_says_nothing(answers):
    probabilities, _, clip_ids = answers
    found = scores.score(probabilities[:, :5], NAMES[:5], ["class 1"] * 300, clip_ids)
    assert found.top5 is None and found.to_dict()["top5"] is None


@pytest.mark.fast
def test_a_class_that_was_never_learned_is_a_mistake_wherever_it_occurs():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    found = scores.score(probabilities, ["a", "b"], ["a", "b", "c"], [7, 8, 9])
    assert found.names == ("a", "b", "c")
    assert found.top1.value == found.mean_class.value == pytest.approx(2 / 3)
    assert found.confusion.tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert found.per_class[2] == scores.ClassScore("c", 1, 0.0, None)
    assert found.worst == (scores.Mistake(9, "c", "a", 0.0, 0.6),)


@pytest.mark.fast
def test_a_class_without_clips_has_no_recall_and_does_not_count():
    found = scores.score(np.array([[0.9, 0.1], [0.8, 0.2]]), ["a", "b"], ["a", "a"], [0, 1])
    assert found.per_class[1] == scores.ClassScore("b", 0, None, None)
    assert found.mean_class.value == 1


@pytest.mark.fast
def test_the_report_is_json(answers):
    found = scores.score(*answers[:1], NAMES, *answers[1:], groups=["x", None] * 150)
    report = json.loads(json.dumps(found.to_dict()))
    assert report["top1"] == {"value": found.top1.value, "low": found.top1.low, "high": found.top1.high}
    assert report["num_groups"] == 151 and report["confusion"] == found.confusion.tolist()


@pytest.mark.fast
def test_intervals_are_those_of_a_plain_bootstrap(answers):
    probabilities, truth, clip_ids = answers
    found = scores.score(probabilities, NAMES, truth, clip_ids)
    truth, predicted = np.array(truth), np.array(NAMES)[probabilities.argmax(1)]
    rng = np.random.default_rng(0)
    draws = [rng.integers(300, size=300) for _ in range(2000)]
    top1 = [np.mean(predicted[draw] == truth[draw]) for draw in draws]
    mean_class = [
        np.mean([np.mean(predicted[draw][truth[draw] == name] == name) for name in set(truth[draw])])
        for draw in draws[:500]
    ]
    assert (found.top1.low, found.top1.high) == pytest.approx(np.quantile(top1, (0.025, 0.975)), abs=0.01)
    assert (found.mean_class.low, found.mean_class.high) == pytest.approx(
        np.quantile(mean_class, (0.025, 0.975)), abs=0.02
    )


@pytest.mark.fast
def test_groups_are_drawn_whole(answers):
    probabilities, truth, clip_ids = answers
    alone = scores.score(probabilities, NAMES, truth, clip_ids, groups=[str(i) for i in range(300)])
    clips = scores.score(probabilities, NAMES, truth, clip_ids)
    assert (alone.top1.low, alone.top1.high) == pytest.approx((clips.top1.low, clips.top1.high), abs=0.015)
    # ten copies of every clip are no new evidence, as long as copies stay together
    ten = [np.repeat(part, 10, axis=0) for part in (probabilities, np.array(truth), clip_ids)]
    together = scores.score(ten[0], NAMES, ten[1], ten[2], groups=np.repeat(np.arange(300), 10).astype(str).tolist())
    apart = scores.score(ten[0], NAMES, ten[1], ten[2])
    width = {
        name: one.top1.high - one.top1.low
        for name, one in {"clips": clips, "together": together, "apart": apart}.items()
    }
    assert width["together"] == pytest.approx(width["clips"], abs=0.015)
    assert width["apart"] < width["clips"] / 2.5


@pytest.mark.fast
def test_groups_against_a_plain_twin(answers):
    probabilities, truth, clip_ids = answers
    groups = np.random.default_rng(2).integers(12, size=300)
    found = scores.score(probabilities, NAMES, truth, clip_ids, groups=groups.astype(str).tolist())
    right = np.array(truth) == np.array(NAMES)[probabilities.argmax(1)]
    rng = np.random.default_rng(0)
    many = [np.concatenate([right[groups == group] for group in rng.integers(12, size=12)]).mean() for _ in range(2000)]
    assert (found.top1.low, found.top1.high) == pytest.approx(np.quantile(many, (0.025, 0.975)), abs=0.012)
    assert found.num_groups == 12


@pytest.mark.fast
def test_no_spread_is_no_certainty():
    sure = np.tile([1.0, 0.0], (20, 1))
    all_right = scores.score(sure, ["a", "b"], ["a"] * 20, range(20)).top1
    assert all_right.value == all_right.high == 1 and all_right.low == pytest.approx(
        0.8389, abs=1e-4
    )  # Wilson, 20 of 20
    one_group = scores.score(sure, ["a", "b"], ["a", "b"] * 10, range(20), groups=["x"] * 20).top1
    assert one_group.value == 0.5 and one_group.low < 0.1 and one_group.high > 0.9


@pytest.mark.fast
def test_an_interval_covers_the_true_share_as_often_as_it_says():
    hits = np.random.default_rng(3).random((400, 120)) < 0.7
    covered = 0
    for seed, right in enumerate(hits):
        share = scores.score(
            np.stack([right, ~right], 1).astype(float), ["a", "b"], ["a"] * 120, range(120), seed=seed
        ).top1
        covered += share.low <= 0.7 <= share.high
    assert 0.91 <= covered / 400 <= 0.98


@pytest.mark.fast
def test_same_seed_same_interval(answers):
    probabilities, truth, clip_ids = answers
    first, again, other = (scores.score(probabilities, NAMES, truth, clip_ids, seed=seed).top1 for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.fast
def test_ten_thousand_clips_take_well_under_a_second():
    rng = np.random.default_rng(0)
    probabilities, truth = rng.random((10_000, 50)), [str(i) for i in rng.integers(50, size=10_000)]
    names, groups = [str(i) for i in range(50)], [str(i) for i in rng.integers(2000, size=10_000)]
    start = time.process_time()
    scores.score(probabilities, names, truth, np.arange(10_000))
    scores.score(probabilities, names, truth, np.arange(10_000), groups=groups)
    assert time.process_time() - start < 2  # both; about 0.6 s on one core


@pytest.mark.parametrize("num_classes", [2, 30])
def test_pictures_are_drawn_of_few_and_many_classes(tmp_path, num_classes):
    rng = np.random.default_rng(0)
    names = [f"a rather long name of class number {i}" for i in range(num_classes)]
    truth = [names[i] for i in rng.integers(num_classes, size=60)]
    found = scores.score(rng.random((60, num_classes)), names, truth, range(60))
    video = torch.from_numpy(rng.integers(256, size=(120, 3, 2, 8, 8), dtype=np.uint8))
    frames = pictures.middle_frames([ClipBatch(video, torch.arange(60).repeat_interleave(2))])
    np.testing.assert_array_equal(frames[3], video[7, :, 1].permute(1, 2, 0).numpy())
    pictures.confusion_picture(tmp_path / "confusion.png", found, "val of x.parquet")
    pictures.worst_picture(tmp_path / "worst.png", found.worst, frames)
    pictures.worst_picture(tmp_path / "none.png", (), {})
    for name in ("confusion", "worst", "none"):
        picture = read_image(tmp_path / f"{name}.png")
        assert (picture[0] == 255).all() and min(picture.shape[:2]) > 250
        assert (picture[-2:] == 255).all() and (picture[:, -2:] == 255).all()  # nothing is cut off


@pytest.mark.fast
def test_what_cannot_be_scored_is_refused(answers):
    probabilities, truth, clip_ids = answers
    with pytest.raises(UserError, match="NaN or infinity"):
        scores.score(np.full_like(probabilities, np.nan), NAMES, truth, clip_ids)
    for arguments in (
        (probabilities[:5], NAMES, truth, clip_ids),
        (probabilities, NAMES[:3], truth, clip_ids),
        (probabilities, NAMES, truth, [1]),
    ):
        with pytest.raises(ValueError, match="clips"):
            scores.score(*arguments)
    with pytest.raises(ValueError, match="2 groups for 300 clips"):
        scores.score(probabilities, NAMES, truth, clip_ids, groups=["a", "b"])


@pytest.mark.fast
def test_a_share_that_is_right_has_the_interval_of_the_same_accuracy():
    probabilities = np.tile([[0.9, 0.1]], (60, 1))
    truth = ["a"] * 40 + ["b"] * 20
    for groups in (None, [f"{i // 3}" for i in range(60)]):
        found = scores.score(probabilities, ["a", "b"], truth, np.arange(60), groups).top1
        share = scores.share_right(np.array(truth) == "a", groups)
        assert share.value == found.value == 2 / 3
        assert (share.low, share.high) == pytest.approx((found.low, found.high), abs=0.02)
