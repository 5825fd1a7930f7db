from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import pytest
import yaml

from vjepa import command, config
from vjepa.config import reading

pytestmark = pytest.mark.fast
MINIMAL = "data: {train: a.parquet}\noptim: {total_steps: 10, lr: 1e-4}\n"


@pytest.fixture
def load(tmp_path):
    path = tmp_path / "x.yaml"

    def load(*overrides: str, text: str = MINIMAL) -> config.Config:
        path.write_text(text)
        return config.load(str(path), overrides)

    return load


def test_numbers_without_a_point_are_numbers(load) -> None:
    assert load().optim.lr == 1e-4
    assert load("optim.lr=5e-5").optim.lr == 5e-5


def test_overrides_reach_every_depth(load) -> None:
    settings = load(
        "model.encoder.width=48",
        "masks=[{ratio: .5}, {}]",
        "masks.1.ratio=.25",
        "data.train.where.fold=[0, 1]",
        "data.val=b.parquet",
    )
    assert settings.model.encoder.width == 48
    assert [mask.ratio for mask in settings.masks] == [0.5, 0.25]
    assert settings.data.train == config.Source(index="a.parquet", where={"fold": ["0", "1"]})
    assert settings.data.val == config.Source(index="b.parquet")


def test_a_source_of_a_mix_has_the_settings_of_data_unless_it_says_otherwise(load) -> None:
    mix = (
        "data.mix=[{index: i.parquet, ratio: .1, num_frames: 1, global_batch: 64}, {index: b.parquet, ratio: .2, "
        "clip_fps: 2}]"
    )
    settings = load(mix, "data.mix.1.where.split=train", "data.clip_fps=4", "data.crop_px=32")
    train, images, slow = settings.data.sources.values()
    assert list(settings.data.sources) == [
        "data.train",
        "data.mix.0",
        "data.mix.1",
    ] and train == settings.data.model_copy(update={"mix": []})
    assert (images.train.index, images.num_frames, images.global_batch, images.clip_fps, images.crop_px) == (
        "i.parquet",
        1,
        64,
        4,
        32,
    )
    assert (slow.train.where, slow.num_frames, slow.global_batch, slow.clip_fps) == ({"split": "train"}, 16, 32, 2)
    assert settings.data.mix_ratios == (Fraction(1, 10), Fraction(1, 5))
    assert [(grid.t, grid.h, grid.w) for grid in settings.grids.values()] == [(8, 2, 2), (1, 2, 2), (8, 2, 2)]


def test_short_names_stand_for_settings_in_files_and_overrides(load) -> None:
    text = "mask_ratio: 0.5\nbatch_size: 256\nlearning_rate: 1e-4\nepochs: 100\nema_decay: 0.99\nloss_type: mse\n"
    settings = load("data.train=a.parquet", text=text)
    found = (
        settings.masks[0].ratio,
        settings.data.global_batch,
        settings.optim.lr,
        settings.optim.epochs,
        settings.optim.ema_decay,
        settings.objective.loss,
    )
    assert found == (0.5, 256, 1e-4, 100, 0.99, "mse")
    assert load("data.train=a.parquet", "mask_ratio=.6", "masks.0.num_blocks=4", text=text).masks == [
        config.TubeMask(ratio=0.6, num_blocks=4)
    ]
    assert (
        load("learning_rate=2e-4").optim.lr
        == load("optim.lr=2e-4", text="data: {train: a}\nlearning_rate: 1\nepochs: 1").optim.lr
        == 2e-4
    )
    assert config.validate(yaml.safe_load(config.dump(settings)), "again") == settings
    assert set(config.describe_aliases()) >= {"  mask_ratio = masks.0.ratio", "  epochs = optim.epochs"}


def test_mask_sets_are_told_apart_by_kind_and_are_tubes_without_one(load) -> None:
    settings = load(
        "masks=[{num_blocks: 2}, {kind: random, ratio: .9}, {kind: multiblock}, {kind: ijepa}]",
        "masks.2.temporal_scale=[.5, 1]",
    )
    assert [type(mask) for mask in settings.masks] == list(config.MASK_KINDS.values())
    assert settings.masks[0] == config.TubeMask(num_blocks=2)
    assert settings.masks[2].temporal_scale == (0.5, 1.0)
    assert config.validate(yaml.safe_load(config.dump(settings)), "again") == settings


AS_WRITTEN = ["01", "010", "1_2", "12:30", "no", "1.0", "2024-01-01", "~", "null", "0x1f", "1e3"]


def test_rows_are_named_by_text_as_it_is_written(load) -> None:
    listed = ", ".join(AS_WRITTEN)
    for settings in (
        load(text=f"data: {{train: {{index: a, where: {{01: [{listed}], no: 010}}}}}}\noptim: {{total_steps: 9}}"),
        load("data.train=a", f"data.train.where.01=[{listed}]", "data.train.where.no=010"),
        load("data.train=a", f"data.train.where.01={listed}", "data.train.where={01: [" + listed + "], no: 010}"),
        load(f"data.train={{index: a, where: {{01: [{listed}], no: 010}}}}"),
    ):
        assert settings.data.train == config.Source(index="a", where={"01": AS_WRITTEN, "no": "010"})
        assert config.validate(reading.parse(config.dump(settings)), "again") == settings
    assert load("data.train.where.my.col=a.b").data.train.where == {"my.col": "a.b"}
    assert load("data.train.where.label='a, b',c").data.train.where == {"label": ["a, b", "c"]}
    assert load("data.train.where.label=[]", "data.train.where.fold=[0]").data.train.where == {
        "label": [],
        "fold": ["0"],
    }
    assert config.Source(index="a", where={"fold": 0}) == config.Source(index="a", where={"fold": "0"})


def test_paths_and_names_are_text_whatever_they_look_like(load) -> None:
    settings = load("run.dir=2024-06-01", "eval.labels=[01, no]", "data.val=010", "data.selection=null")
    assert (settings.run.dir, settings.eval.labels, settings.data.val) == (
        "2024-06-01",
        ["01", "no"],
        config.Source(index="010"),
    )
    assert settings.data.selection is None
    assert load(text="data: {train: 1_0}\nrun:\n  dir: 12:30\noptim: {total_steps: 9}").run.dir == "12:30"


def test_a_quote_that_does_not_close_is_one_line(load) -> None:
    with pytest.raises(config.ConfigError, match=r'where.label="a.*opens with a quote that does not close'):
        load('data.train.where.label="a')


def test_embeddings_are_scaled_where_features_themselves_have_to_agree(load) -> None:
    assert load().objective.initial_std == 0.1
    assert load("objective.initial_std=.5").objective.initial_std == 0.5
    for other in (
        "{view_invariance: 0}",
        "{projector_widths: [8]}",
        "{sigreg: .02}",
        "{vicreg_variance: 0, sigreg: .02}",
    ):
        assert load(f"objective={other}").objective.initial_std == 0


def test_a_config_made_in_python_is_resolved_as_one_from_a_file(load) -> None:
    settings = load("optim.lr=null")
    made = config.Config(data={"train": "a.parquet"}, optim={"total_steps": 10}, run={"dir": settings.run.dir})
    assert made.optim.lr == settings.optim.lr == made.optim.peak_lr
    assert made == settings


def test_dump_reads_back_the_same(load, tmp_path) -> None:
    settings = load("data.clip_fps=2.5", "data.mix=[{index: i.parquet, ratio: .1, num_frames: 1}]")
    (tmp_path / "again.yaml").write_text(config.dump(settings))
    assert config.load(str(tmp_path / "again.yaml")) == settings


def test_a_clip_is_a_square_or_has_two_sides(load, tmp_path) -> None:
    wide, square = load("data.crop_px=[32, 64]"), load("data.crop_px=[32, 32]")
    assert wide.data.clip_size == (wide.data.num_frames, 32, 64) and (wide.grid.h, wide.grid.w) == (2, 4)
    assert square.data.crop_px == 32 and square == load("data.crop_px=32")
    (tmp_path / "again.yaml").write_text(config.dump(wide))
    assert config.load(str(tmp_path / "again.yaml")).data == wide.data


def test_a_config_cannot_be_changed(load) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().optim.lr = 1.0


def test_run_folder_is_named_after_the_config(load) -> None:
    assert load().run.dir == "runs/x"


# What else a config says that an override goes wrong with.
NEXT_TO = {
    "objective={prediction: 0, targets: none}": "masks: [{}]\n",
    "objective={view_invariance: 1, sigreg: 1}": "masks: [{}]\n",
    "data.global_batch=1": "objective: {sigreg: 1}\n",
    "objective.cycle=1": "model: {predictor: {out_width: 9}}\n",
    "objective.targets=pixels": "model: {levels: 4, level_norms: true}\n",
    "eval.encoder=target_encoder": "objective: {targets: pixels}\n",
}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "optim.lrr: unknown key; did you mean 'lr'?"),
        ("modle.x=1", "modle: unknown key; did you mean 'model'?"),
        ("masks=[{ratoi: .5}]", "masks.0.ratoi: unknown key; did you mean 'ratio'?"),
        ("masks=[{kind: multiblok}]", "masks.0: kind is one of tube, random, multiblock, ijepa"),
        ("masks=[{kind: multiblock, ratio: .5}]", "masks.0.ratio: unknown key"),
        ("masks=[{kind: random, ratio: 1.5}]", "masks.0.ratio: Input should be less than 1, got 1.5"),
        ("masks=[{kind: multiblock, spatial_scale: [.5, 2]}]", "masks.0.spatial_scale: a share is at most 1, got 2"),
        ("masks=[{kind: ijepa, target_aspect: [2, 1]}]", "masks.0.target_aspect: needs 0 < low <= high, got [2, 1]"),
        (
            "masks=[{kind: multiblock, trim: raster, num_context: 9}]",
            "masks.0.trim: raster takes its counts from the batch",
        ),
        (
            "masks=[{kind: multiblock, full_complement: true, num_target: 9}]",
            "masks.0.num_target: with full_complement it follows from the context",
        ),
        ("masks=[{kind: multiblock, max_keep: 9, num_context: 9}]", "masks.0.max_keep: num_context is exact already"),
        ("mask_ration=.5", "mask_ration: unknown key; did you mean 'mask_ratio'?"),
        ("mask_ratio=1", "masks.0.ratio: Input should be less than 1, got 1"),
        ("learning_rate.x=1", "lr is a value, it has no settings inside"),
        ("data.zzz=1", "data.zzz: unknown key; known here: prepare, train"),
        ("data.workers=two", "data.workers: Input should be a valid integer, got 'two'"),
        ("data.workers=1.5", "data.workers: Input should be a valid integer, got 1.5"),
        ("run.seed=true", "run.seed: Input should be a valid integer, got True"),
        ("optim.lr=0", "optim.lr: Input should be greater than 0, got 0"),
        ("optim.epochs=3", "optim.total_steps: give either total_steps or epochs"),
        ("run.precision=fp16", "run.precision: Input should be 'auto', 'fp32' or 'bf16', got 'fp16'"),
        (
            "model.predictor={kind: mlp, drop_path: .1}",
            "model.predictor.drop_path: kind: mlp has none, only transformer",
        ),
        ("model.encoder.heads=5", "model.encoder.heads: 5 heads do not divide a width of 192"),
        ("data.crop_px=33", "data.crop_px: 33 px is not a whole number of patches of model.patch_px=16"),
        ("data.crop_px=[32, 40]", "data.crop_px: 40 px is not a whole number of patches of model.patch_px=16"),
        ("data.crop_px=[32]", "data.crop_px: a side of 8 px or more, or [height, width], got [32]"),
        ("data.crop_px=4", "data.crop_px: a side of 8 px or more, or [height, width], got 4"),
        (
            "data={train: x, fit: pad, clips_per_decode: 2}",
            "data.clips_per_decode: 2 random crops of one clip, while fit",
        ),
        ("data.num_frames=7", "data.num_frames: 7 is not a whole number of tubelets"),
        ("data.crop_scale=[.9, .3]", "data.crop_scale: needs 0 < low <= high"),
        ("data.mix=[{index: i, ratio: 0}]", "data.mix.0.ratio: Input should be greater than 0, got 0"),
        ("data.mix=[{index: i, ratio: .inf}]", "data.mix.0.ratio: Input should be less than 1"),
        ("data.mix=[{index: i}]", "data.mix.0.ratio: required, and not given"),
        ("data.mix=[i.parquet]", "data.mix.0.ratio: required, and not given"),
        ("data.mix=[{index: i, ratoi: .1}]", "data.mix.0.ratoi: unknown key; did you mean 'ratio'?"),
        (
            "data.mix=[{index: i, ratio: .7}, {index: j, ratio: .2}, {index: k, ratio: .1}]",
            "data.mix: the ratios sum to 1, which leaves data.train no step",
        ),
        (
            "data.mix=[{index: i, ratio: .1}, {index: j, ratio: .1, num_frames: 5}]",
            "data.mix.1.num_frames: 5 is not a whole number of tubelets",
        ),
        ("objective.loss=hubert", "objective.loss: Input should be 'l1', 'smooth_l1', 'huber' or 'mse', got 'hubert'"),
        ("objective.huber_delta=.5", "objective.huber_delta: loss: l1 has none; set loss: huber, or leave it out"),
        (
            "objective.targets=frozen",
            "objective.teacher: targets: frozen needs one; name a run, a checkpoint or a weights file",
        ),
        ("objective.teacher=x", "objective.teacher: targets: ema has none; set targets: frozen, or leave it out"),
        (
            "objective={targets: none, vicreg_variance: 0}",
            "objective.sigreg: the same features for all clips would be perfect here (collapse); give sigreg "
            "or vicreg_variance a weight",
        ),
        (
            "objective={prediction: 0, view_invariance: 0}",
            "objective.prediction: nothing is predicted, and no views have to agree",
        ),
        (
            "objective={prediction: 0, targets: none}",
            "objective.prediction: nothing is predicted, and no views have to agree",
        ),
        (
            "objective={prediction: 0, view_invariance: 1, sigreg: 1}",
            "objective.targets: nothing is predicted, so ema is of no use; set targets: none",
        ),
        (
            "objective={view_invariance: 1, sigreg: 1}",
            "objective.view_invariance: a clip has a single view; give masks a second set, or set "
            "data.clips_per_decode: 2",
        ),
        (
            "objective={view_invariance: 1, vicreg_variance: 0}",
            "objective.sigreg: the same features for all clips would be perfect here (collapse)",
        ),
        (
            "objective={projector_widths: [64], view_invariance: 0, vicreg_variance: 0, vicreg_covariance: 0}",
            "objective.projector_widths: no term reads embeddings",
        ),
        ("objective={sigreg: 1, projector_widths: [0]}", "objective.projector_widths: widths are 1 or more, got [0]"),
        (
            "objective={targets: pixels, cycle: 1}",
            "objective.cycle: the context is predicted back from predicted features, and targets: pixels predicts none",
        ),
        (
            "data.global_batch=1",
            "data.global_batch: terms of objective compare clips, and a batch shows a single one; set 2 or more",
        ),
        (
            "model.predictor.out_width=9",
            "model.predictor.out_width: with objective.targets: ema it is 192, not 9; leave it out",
        ),
        (
            "objective.cycle=1",
            "objective.cycle: predictions go into the predictor again, so they need the width of the encoder",
        ),
        (
            "objective.targets=pixels",
            "model.levels: pixels have one level; set model.levels: 1, or objective.targets: ema",
        ),
        (
            "eval.encoder=target_encoder",
            "eval.encoder: with objective.targets: pixels there is no target_encoder; set eval.encoder: encoder",
        ),
        ("masks=[]", "masks: List should have at least 1 item"),
        ("masks.3.ratio=.5", "'3' is not a place in a list"),
        ("optim.lr.x=1", "lr is a value, it has no settings inside"),
        ("nonsense", "an override is written section.key=value"),
        ("optim.lr=[", "'[' is not a YAML value"),
    ],
)
def test_bad_settings_are_one_line_with_the_path(load, override: str, message: str) -> None:
    with pytest.raises(config.ConfigError) as error:
        load(override, text=MINIMAL + NEXT_TO.get(override, "masks: [{}]\n" if override.startswith("masks.") else ""))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {train: a.parquet", "not valid YAML"),
        ("- 1", "a config is a mapping of sections, this is a list"),
        ("data: {train: a}\ndata: {train: b}\n", "the key 'data' is given twice"),
        (
            "optim: {total_steps: 1}",
            "data.train: required, and not given; `python -m data_prep.index FOLDER --out x.parquet` makes",
        ),
        ("optim: {total_steps: 1, lr: 1}\nlearning_rate: 1", "learning_rate is short for optim.lr, which is given too"),
        (
            "mask_ratio: .5\nmasks: [{kind: random, ratio: .5}]",
            "mask_ratio is short for masks.0.ratio, which is given too",
        ),
        ("mask_ratio: .5\nmasks: tube", "mask_ratio: masks is a value, it has no settings inside"),
        ("mask_ratio: .5\nmasks: []", "mask_ratio: '0' is not a place in a list of 0"),
        ("data: {train: a}\noptim: {total_steps: 1}\nrun: {seed: 2020-01-01}", "date is not JSON serializable"),
    ],
)
def test_bad_files_are_one_line(load, text: str, message: str) -> None:
    with pytest.raises(config.ConfigError) as error:
        load(text=text)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_config_lists_the_shipped_ones() -> None:
    with pytest.raises(config.ConfigError, match=r"nope: no such config file.*shipped: .*demo"):
        config.load("nope")
    assert config.load("demo") == config.load("configs/demo.yaml") == config.load("demo.yaml")


def test_command_prints_one_line_and_fails() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "vjepa.train", "demo", "optim.lrr=1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 2 and answer.stderr.startswith("error: ") and answer.stderr.count("\n") == 1


@pytest.mark.fast
def test_overrides_may_stand_before_and_after_options():
    parser = command.config_parser("train", "")
    given = parser.parse_args(["demo", "--print-config", "run.seed=3"])
    assert given.print_config and command.read_config(given).run.seed == 3


def test_the_width_of_predicted_pixels_is_filled_in_and_reads_back(load, tmp_path) -> None:
    settings = load("objective.targets=pixels", "model.patch_px=8")
    assert settings.model.predictor.out_width == 3 * 2 * 8 * 8
    (tmp_path / "again.yaml").write_text(config.dump(settings))
    assert config.load(str(tmp_path / "again.yaml")) == settings


@pytest.mark.parametrize(
    ("batch", "width", "crop_px", "lr"),
    [
        (32, 192, 64, 6e-4),
        (4096, 192, 64, 6e-4),
        (8, 192, 64, 3e-4),
        (32, 768, 64, 3e-4),
        (32, 96, 64, 6e-4),
        (32, 192, 128, 3e-4),
        (32, 192, 32, 6e-4),
    ],
)
def test_the_learning_rate_follows_batch_width_and_tokens_where_none_is_given(
    load, batch: int, width: int, crop_px: int, lr: float
) -> None:
    """Clips of 64 px have 128 tokens."""
    shape = f"model: {{encoder: {{width: {width}, heads: 3}}, tubelet_frames: 2, patch_px: 8}}\n"
    words = [f"data.global_batch={batch}", f"data.crop_px={crop_px}", "data.num_frames=4"]
    settings = load(*words, text=MINIMAL.replace(", lr: 1e-4", "") + shape)
    assert settings.optim.lr == pytest.approx(lr)
    assert config.validate(yaml.safe_load(config.dump(settings)), "again") == settings


def test_views_agree_where_there_are_several_and_something_keeps_clips_apart(load) -> None:
    assert load("objective.loss=l1").objective.view_invariance == 0.05
    assert load("masks=[{ratio: .75}]").objective.view_invariance == 0
    assert load("objective={vicreg_variance: 0, vicreg_covariance: 0}").objective.view_invariance == 0
    assert load("objective.view_invariance=.3").objective.view_invariance == 0.3
