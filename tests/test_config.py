"""Settings: presets, a file, single changes, and errors that name the setting and the nearest known one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from rarebox import config, settings_text
from rarebox.config import PseudoSettings, Section, Settings
from rarebox.errors import UserError
from rarebox.labels.leases import LONGEST_LEASE
from rarebox.pool.views import VIEWS


def write(folder: Path, text: str) -> Path:
    file = folder / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    return file


# ------------------------------------------------------------------------------------------- presets


def test_the_laptop_preset_is_the_default_and_has_the_measured_changes() -> None:
    assert config.resolve() == config.resolve("laptop")
    assert config.difference(Settings(), config.resolve()) == [
        "detector.name: retinanet -> faster_rcnn",
        "detector.backbone: efficientnet_lite0 -> auto",
        "detector.weights: imagenet -> auto",
        "detector.normaliser: own -> batch",
        "scoring.shard_size: 2000 -> 100",
        "selection.exploration: 0.0 -> 0.2",
        "selection.slivers_last: False -> True",
        "selection.duplicate_cosine: 1.0 -> 0.95",
        "pseudo.method: soft -> ignore_only",
        "pseudo.calibrated: False -> True",
    ]


def test_the_settings_page_is_up_to_date() -> None:
    page = Path(__file__).parent.parent / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8") == settings_text.reference(), "run make docs"
    assert all(f"`{name}`" in page.read_text(encoding="utf-8") for name in config.NAMES)


def test_the_paper_preset_is_section_4_1() -> None:
    paper = config.resolve("paper")
    assert (paper.initial_images, paper.budget) == (1000, (2000, 4000, 8000))
    assert (paper.detector.backbone, paper.detector.size) == ("resnet50", (600, 1000))
    training = paper.training
    assert (training.steps, training.epochs, training.batch_size, training.lr) == (None, 26, 2, 1e-3)
    assert (training.schedule, training.drop_at) == ("step", 20 / 26)
    pseudo = paper.pseudo
    assert (pseudo.class_high, pseudo.class_low, pseudo.box_high, pseudo.box_low) == (0.8, 0.1, 0.7, 0.3)
    assert (paper.selection.sigma, paper.scoring.beta) == (1.0, 1.3)
    assert (pseudo.rejected, pseudo.difficult) == ("forget", "background")
    # The framework's own, where section 4.1 is silent (decisions row 32).
    network = paper.detector
    assert (network.batch_norm, network.box_loss, network.normaliser) == ("affine", "l1", "batch")
    assert (network.low_quality_iou, network.proposals) == (0.3, 1000)
    assert (training.precision, training.optimiser, training.momentum, training.weight_decay) == (
        "float32",
        "sgd",
        0.9,
        1e-4,
    )
    assert (training.backbone_lr, training.flip, training.scale_jitter) == (1.0, 0.5, 0.0)


@pytest.mark.parametrize("name", ["training.steps", "training.lr", "seed", "selection.exploration"])
def test_yes_is_not_a_number(name: str) -> None:
    with pytest.raises(UserError, match=rf"setting {name}: must be a number, got True"):
        config.resolve(changes={name: True})


def test_a_lease_lasts_a_week_at_most() -> None:
    assert config.resolve(changes={"people.lease_seconds": LONGEST_LEASE}).people.lease_seconds == LONGEST_LEASE
    with pytest.raises(UserError, match=r"people\.lease_seconds: .* less than or equal to 604800"):
        config.resolve(changes={"people.lease_seconds": LONGEST_LEASE + 1})


def test_looks_is_the_former_name_of_reviews(tmp_path: Path) -> None:
    (file := tmp_path / "settings.yaml").write_text("budget_unit: looks\n", encoding="utf-8")
    for settings in (config.resolve(file=file), config.resolve(changes={"budget_unit": "looks"})):
        assert settings.budget_unit == "reviews"
        assert "looks" not in config.dump(settings)
    with pytest.raises(UserError, match=r"budget_unit 'glances'.* labels, reviews"):
        config.resolve(changes={"budget_unit": "glances"})


def test_the_papers_oracle_returns_the_true_box_as_those_of_earlier_versions_did(tmp_path: Path) -> None:
    assert Settings().oracle.accept_iou == config.resolve("laptop").oracle.accept_iou == 0.75
    assert config.resolve("paper").oracle.accept_iou is None
    assert config.check(config.as_written_before({"seed": 1})).oracle.accept_iou is None
    assert config.resolve(file=write(tmp_path, "oracle: {accept_iou: null}")).oracle.accept_iou is None


@pytest.mark.parametrize("name", ["confirm", "mend", "reject", "cannot_tell", "draw", "scan"])
def test_an_answer_is_never_free(name: str) -> None:
    """Otherwise a budget of seconds might never be spent."""
    with pytest.raises(UserError, match=rf"cost\.{name}: .* greater than 0"):
        config.resolve(changes={f"cost.{name}": 0})


def test_candidates_and_pseudo_labels_have_separate_floors() -> None:
    assert (Settings().scoring.candidate_threshold, Settings().lowest_pseudo_score, Settings().lowest_score) == (
        0.1,
        0.05,
        0.05,
    )
    for floor, wanted in ((0.3, 0.1), (None, 0.1), (0.0, 0.0)):
        assert config.resolve(changes={"pseudo.score_floor": floor}).lowest_score == wanted


def test_the_papers_learning_rate_depends_on_the_detector_unless_one_is_given(tmp_path: Path) -> None:
    faster = {"detector.name": "faster_rcnn"}
    assert config.resolve("paper", changes=faster).training.lr == 5e-3
    assert config.resolve("paper", write(tmp_path, "detector: {name: faster_rcnn}")).training.lr == 5e-3
    assert config.resolve("paper", changes={**faster, "training.lr": 0.02}).training.lr == 0.02
    assert config.resolve("paper", write(tmp_path, "training: {lr: 0.02}"), faster).training.lr == 0.02
    assert config.resolve("laptop", changes=faster).training.lr == Settings().training.lr


@pytest.mark.parametrize("preset", sorted(config.PRESETS))
def test_every_preset_is_valid_for_both_detectors(preset: str) -> None:
    for name in ("retinanet", "faster_rcnn"):
        assert config.resolve(preset, changes={"detector.name": name}).detector.name == name


def test_the_long_side_is_five_thirds_of_the_short_one_unless_given() -> None:
    assert config.resolve(changes={"detector.image_size": 300}).detector.size == (300, 500)
    assert config.resolve(changes={"detector.long_side": 400}).detector.size == (320, 400)


# ------------------------------------------------------------------------------------------- layers


def test_a_file_overrides_the_preset_and_single_changes_override_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "seed: 3\npseudo: {method: hard, class_high: 0.9}\nbudget: [10, 20]\n")
    settings = config.resolve("paper", file, {"pseudo.method": "none"})
    assert (settings.seed, settings.budget) == (3, (10, 20))
    assert (settings.pseudo.method, settings.pseudo.class_high) == ("none", 0.9)
    assert settings.pseudo.rejected == "forget"  # the preset's, in the same section


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert config.resolve(file=write(tmp_path, "# nothing\n")) == config.resolve()


def test_a_section_with_nothing_in_it_changes_nothing(tmp_path: Path) -> None:
    assert config.resolve(file=write(tmp_path, "detector:\nseed: 3\n")) == config.resolve(changes={"seed": 3})


def test_changes_are_read_as_yaml() -> None:
    given = ["seed=3", "pseudo.method = hard", "budget=[10, 20]", "training.steps=null", "data=a=b", "training.lr=1e-3"]
    settings = config.resolve(changes=config.parse_changes(given))
    assert (settings.seed, settings.pseudo.method, settings.budget) == (3, "hard", (10, 20))
    assert (settings.training.steps, settings.data, settings.training.lr) == (None, "a=b", 1e-3)


def test_a_change_may_hold_a_whole_section() -> None:
    changes = config.parse_changes(["detector={name: faster_rcnn, image_size: 128}"])
    settings = config.resolve("paper", changes=changes)
    assert (settings.detector.name, settings.detector.image_size) == ("faster_rcnn", 128)
    assert settings.detector.backbone == "resnet50"  # the rest of the preset's section stays


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pseudo.metod": "hard"}, "unknown setting 'pseudo.metod'; did you mean 'pseudo.method'"),
        ({"sed": 1}, "unknown setting 'sed'; did you mean 'seed'"),
        ({"seed.x": 1}, "unknown setting 'seed.x'"),
        ({"detector": 5}, "unknown setting 'detector'"),
        ({"pseudo.method": "hart"}, "unknown pseudo.method 'hart'; did you mean 'hard'.*task_hard"),
        ({"detector.name": "yolo"}, "unknown detector.name 'yolo' .*faster_rcnn, retinanet"),
        ({"seed": -1}, "setting seed: .*got -1"),
        ({"pseudo.class_high": 1.2}, "setting pseudo.class_high: .*got 1.2"),
        ({"selection.sigma": 0}, "setting selection.sigma: .*got 0"),
        ({"scoring.views": []}, "setting scoring.views: "),
        ({"scoring.js_base": 1.5}, "setting scoring.js_base: .*got 1.5"),
        ({"training.lr": float("nan")}, "setting training.lr: "),
        ({"budget": "many"}, "setting budget: .*got 'many'"),
        ({"budget": [5, -1]}, "^budget must not be negative$"),
        ({"pseudo.class_low": 0.9}, r"^pseudo.class_low \(0.9\) must not be above pseudo.class_high \(0.8\)$"),
        ({"pseudo.box_high": 0.2}, r"^pseudo.box_low \(0.3\) must not be above pseudo.box_high \(0.2\)$"),
    ],
)
@pytest.mark.parametrize("preset", sorted(config.PRESETS))
def test_a_wrong_setting_is_named(preset: str, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.resolve(preset, changes=changes)


def test_equal_thresholds_are_fine() -> None:
    assert config.resolve(changes={"pseudo.class_low": 0.8}).pseudo.class_low == 0.8


def test_an_unknown_preset_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="unknown preset 'papr'; did you mean 'paper'"):
        config.resolve("papr")


@pytest.mark.parametrize("change", ["seed", "pseudo.method:hard"])
def test_a_change_without_an_equals_sign_is_refused(change: str) -> None:
    with pytest.raises(UserError, match=f"name=value, got '{change}'"):
        config.parse_changes([change])


def test_a_change_that_is_not_yaml_is_refused() -> None:
    with pytest.raises(UserError, match=r"budget=\[10.*not valid YAML"):
        config.parse_changes(["budget=[10"])


@pytest.mark.parametrize(
    ("text", "message"), [("seed: [1", "not valid YAML"), ("- 1\n- 2\n", "must hold names and values, got list")]
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"settings.yaml .*{message}"):
        config.resolve(file=write(tmp_path, text))


def test_a_missing_file_and_one_that_is_not_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.yaml cannot be read"):
        config.resolve(file=tmp_path / "nowhere.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match=r"bytes.yaml: this is not UTF-16 text"):
        config.resolve(file=tmp_path / "bytes.yaml")


# ------------------------------------------------------------------------------------------- round trip


LONG = "/a folder/with spaces/" * 10
UNUSUAL = {
    "data": LONG,
    "training.steps": None,
    "budget": [7],
    "scoring.views": ["flip", "noise"] * 12,
    "detector.weights": "a # b: c",
}


@pytest.mark.parametrize("text", [config.dump, settings_text.commented])
def test_settings_written_and_read_again_are_the_same(tmp_path: Path, text: Callable[[Settings], str]) -> None:
    for settings in (config.resolve("paper"), config.resolve(changes=UNUSUAL)):
        written = text(settings)
        assert config.resolve(file=write(tmp_path, written)) == settings
        assert config.check(yaml.safe_load(written)) == settings


def test_the_commented_settings_say_the_choices_and_where_to_read_on() -> None:
    lines = [line.strip() for line in settings_text.commented(Settings()).splitlines()]
    units = "one of labels, reviews, seconds"
    assert f"budget_unit: labels  # what a budget counts (docs/decisions.md, row 12); {units}" in lines
    assert "training:  # How a detector is fitted (docs/decisions.md, row 26)." in lines
    assert (
        "name: retinanet  # network architecture; dfine requires the extra detr; one of retinanet, faster_rcnn, dfine"
        in lines
    )
    assert "seed: 0  # root seed" in lines
    assert any(line.startswith("views: ") and line.endswith("any of " + ", ".join(VIEWS)) for line in lines)
    assert not [line for line in lines if "[" in line.partition("#")[2]]


def test_the_difference_names_what_changed_and_nothing_else() -> None:
    one, other = config.resolve(), config.resolve(changes={"seed": 4, "pseudo.method": "hard", "budget": [1]})
    assert config.difference(one, other) == [
        "seed: 0 -> 4",
        f"budget: {list(one.budget)} -> [1]",
        "pseudo.method: ignore_only -> hard",
    ]
    assert config.difference(one, one) == []


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().seed = 3  # type: ignore[misc]


# ------------------------------------------------------------------------------------------- descriptions


def undescribed(section: type[Section], prefix: str = "") -> Iterator[str]:
    for name, about in section.model_fields.items():
        if isinstance(about.annotation, type) and issubclass(about.annotation, Section):
            yield from undescribed(about.annotation, f"{prefix}{name}.")
        elif not about.description:
            yield prefix + name


def test_every_setting_is_described_and_listed() -> None:
    assert list(undescribed(Settings)) == []
    assert "pseudo.method" in config.NAMES
    assert "detector" not in config.NAMES
    page = settings_text.reference()
    assert [name for name in config.NAMES if f"`{name}`" not in page] == []


def test_each_named_choice_of_pseudo_labels_exists() -> None:
    from rarebox.labels.targets import METHODS

    choices = PseudoSettings.model_fields["method"].annotation
    assert set(METHODS) == set(getattr(choices, "__args__", ()))


@pytest.mark.parametrize(
    "name",
    [
        "detector.image_size",
        "detector.long_side",
        "detector.proposals",
        "training.batch_size",
        "scoring.batch_size",
        "scoring.per_image",
        "scoring.shard_size",
    ],
)
def test_settings_that_would_exhaust_the_memory_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}: must be less than or equal to \d+, got 1000000"):
        config.resolve(changes={name: 1_000_000})
