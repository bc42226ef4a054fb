"""The counterfactual atlas end to end on tiny phantoms: files, refits and cross-fitting."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from data.phantom.write import make_phantom_cohort
from data.volumes import load_volume, write_like
from options.atlas_options import RefitOptions
from options.phantom_options import PhantomOptions
from pipelines.atlas.statistics.outcomes import OUTCOMES
from pipelines.atlas.statistics.regional import LUNG_REGIONS
from pipelines.refits.plan import OriginRun, Refit, planned_refits
from pipelines.refits.records import finished_refits
from pipelines.refits.training import train_arguments, train_refit
from pipelines.refits.worker import RefitWorker
from tests.atlas_run import discover, in_this_process, means, record, table
from tests.commands import TrainedRun, command, files, refused, train
from tests.pages import page_warnings, printed_warnings
from util.cli import UserError

COLUMNS = "SMOKING HISTORY,AGE,RISK OCCUPATIONAL"
FILES = (
    "attributes",
    "contrasts",
    "effects",
    "effects_by_case",
    "doses",
    "real",
    "tests",
    "findings",
    "not_found",
    "controls",
    "cautions",
    "ties",
    "cases",
    "arms",
    "refits",
    "maps",
    "volumes",
    "agreement",
)

AORTA = 4


def add_aorta(mask_path: Path, scan_path: Path) -> None:
    """Label a column of soft tissue between the lungs, where no disease of the lungs is."""
    mask = load_volume(mask_path).array.copy()
    scan = load_volume(scan_path).array
    middle = np.zeros(mask.shape, bool)
    middle[8:16, 6:18] = True
    mask[middle & (mask == 0) & (scan > -300)] = AORTA
    write_like(mask_path, mask, mask_path, np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A tiny run on 34 phantoms (30 for training, 1 for validation, 3 for test)."""
    place = tmp_path_factory.mktemp("atlas")
    cohort = make_phantom_cohort(
        PhantomOptions(
            OUT=str(place / "cohort"),
            cases=34,
            size=(24, 24, 16),
            seed=2,
            test_cases=3,
            val_cases=1,
            missing=0.05,
            patient_sd=5.0,
        )
    )
    for path in (cohort / "gtlung").iterdir():
        add_aorta(path, cohort / "img" / path.name)
    done = train(cohort, place / "ck", "--val_cases", "0", name="run")
    assert done.code == 0, done.text
    return TrainedRun(place / "ck", "run", cohort)


def train_with_a_warning(origin: OriginRun, o: RefitOptions, wanted: Sequence[Refit]) -> None:
    """Train refits in this process, after a warning, which the page has to show."""
    logging.getLogger("pipelines.refits.training").warning("Refits are trained in this process.")
    in_this_process(origin, o, wanted)


@pytest.fixture(scope="module")
def atlas(run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas with 3 resampled and 5 permuted refits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.atlas.run.train_refits", train_with_a_warning)
        out = tmp_path_factory.mktemp("made") / "atlas"
        done = discover(
            run,
            out,
            "--columns",
            COLUMNS,
            "--null_column",
            "RISK OCCUPATIONAL",
            "--refits",
            "3",
            "--permutations",
            "5",
            "--how_many",
            "2",
            "--volumes",
            "1",
            "--n_noise",
            "2",
        )
    assert done.code == 0, done.text
    printed = printed_warnings(done.text)
    (out / "printed.json").write_text(json.dumps(printed))
    return out


# --- what is written


def test_printed_warnings_stand_on_the_page(atlas: Path) -> None:
    printed = json.loads((atlas / "printed.json").read_text())
    text = page_warnings(atlas / "index.html")
    assert printed and [warning for warning in printed if warning not in text] == []


def test_every_file_and_column_that_the_docs_name(atlas: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "reference" / "atlas_tables.md").read_text()
    assert {p.stem for p in atlas.glob("*.csv")} >= set(FILES)
    described = " ".join(text.partition("## Columns")[2].split())
    for name in set(FILES) - {"volumes", "agreement"}:
        part = described.partition(f"`{name}.csv`")[2]
        missing = [c for c in table(atlas, name).columns if f"`{c}`" not in part]
        assert not missing, (name, missing)
    keys = set(record(atlas))
    named = text.partition("`atlas.json` |")[2].partition("\n")[0]
    assert keys <= {w for w in named.split("`") if w.isidentifier()} | {"version"}, keys


def test_contrasts_and_effects(atlas: Path) -> None:
    contrasts = table(atlas, "contrasts")
    assert (
        list(contrasts["kind"]).count("slope") == 1
        and list(contrasts["kind"]).count("quantiles") == 1
    )
    smoking = contrasts[contrasts["column"] == "SMOKING HISTORY"]
    assert set(smoking["from"]) == {"Never smoker"} and set(smoking["to"]) == {
        "Ex smoker",
        "Current smoker",
    }
    effects = means(atlas, "effects")
    assert {"lungs", "upper", "middle", "lower", "rim", "core", "outside", "label_1"} <= set(
        effects["region"]
    )
    lungs = effects[effects["region"] == "lungs"].set_index("contrast")
    by_case = means(atlas, "effects_by_case")
    averages = by_case[by_case["region"] == "lungs"].groupby("contrast")["effect"].mean()
    assert np.allclose(lungs["generated"], averages[lungs.index], atol=1e-3)
    assert (
        (lungs["refits"] == 3).all()
        and (lungs["permuted"] == 5).all()
        and (lungs["patients"] == 2).all()
    )
    middle = (lungs["refit_low"] + lungs["refit_high"]) / 2
    assert np.allclose(middle, lungs["generated"], atol=1e-3) and (lungs["refit_sd"] > 0).all()
    assert lungs["noise_change"].notna().all()
    age = lungs.loc["AGE=per_unit"]
    doses = table(atlas, "doses")
    in_lungs = doses[(doses["column"] == "AGE") & (doses["region"] == "lungs")]
    assert set(in_lungs["outcome"]) == set(OUTCOMES) and len(in_lungs) == 5 * len(OUTCOMES)
    ages = in_lungs[in_lungs["outcome"] == "mean"]
    assert len(ages) == 5 and np.isclose(
        np.polyfit(ages["value"].astype(float), ages["mean_change"], 1)[0],
        age["generated"],
        atol=1e-3,
    )


def test_the_real_scans_show_the_planted_truth(atlas: Path) -> None:
    real = means(atlas, "real")
    main = real[(real["primary"] == "yes") & (real["region"] == "lungs")].set_index("contrast")
    smoking = main.loc["SMOKING_HISTORY=Never_smoker_to_Current_smoker"]
    assert smoking["low"] < 41 < smoking["high"] and smoking["p"] < 1e-3
    assert main.loc["AGE=per_unit", "low"] < -0.95 < main.loc["AGE=per_unit", "high"]
    assert set(real["adjustment"]) == {
        "total",
        "direct: volume",
        "direct: diagnosis, volume",
        "direct: other columns",
        "direct",
    }
    exposures = real[~real["contrast"].str.startswith("AGE")]
    adjusted = exposures.groupby("effect")["adjusted_for"].agg(" ".join)
    for effect in ("total", "direct"):
        assert "AGE" in adjusted[effect] and "PACK" not in adjusted[effect]
        assert "label" not in adjusted[effect]
        assert ("PRECIPITINS" in adjusted[effect]) == (effect == "direct")  # a mediator


def test_verdicts_and_sentences(atlas: Path) -> None:
    atlas_record = record(atlas)
    assert (
        atlas_record["version"] == 3
        and not atlas_record["conclusive"]
        and "too few permuted refits" in atlas_record["summary"]
        and "Largest of them: " in atlas_record["summary"]
        and not atlas_record["findings"]
    )
    contrasts = atlas_record["findings"] + atlas_record["not_found"]
    assert len(contrasts) == 4 * len(OUTCOMES)
    for row in contrasts:
        unit = f" {OUTCOMES[row['outcome']].unit} ["
        assert row["sentence"].endswith(".") and unit in row["sentence"]
    assert (
        "3 refits" in atlas_record["methods"]
        and "5 refits were trained on permuted rows" in atlas_record["methods"]
    )
    assert (atlas / "methods.txt").read_text().strip() == atlas_record["methods"]
    tests = table(atlas, "tests")
    is_tested = tests["tested"] == "yes"
    # Thirty of the scans were trained on, and five permuted refits are too few.
    assert set(tests.loc[is_tested, "verdict"]) == {"not judged"}
    assert tests.loc[is_tested, "why"].str.contains("was trained on scans of 30").all()
    compared = tests[is_tested].groupby(["contrast", "outcome"])["permuted_max"]
    assert (compared.nunique() == 1).all()  # the largest of all regions


def test_every_outcome_is_measured_in_every_region_of_the_lungs(atlas: Path) -> None:
    for name in ("effects", "effects_by_case", "real", "tests"):
        places = table(atlas, name).groupby("outcome")["region"].agg(set)
        assert list(places.index) == sorted(OUTCOMES), name
        for outcome, regions in places.items():
            assert set(LUNG_REGIONS) <= regions, (name, outcome)
            assert ("outside" in regions) == (outcome == "mean"), (name, outcome)
    tests = table(atlas, "tests")
    tested = tests[tests["tested"] == "yes"]
    assert len(tested) == 4 * len(OUTCOMES) * len(LUNG_REGIONS)
    known = tested["real_p"].dropna()
    q = multipletests(known, method="fdr_bh")[1]
    assert np.allclose(tested.loc[known.index, "real_q"], q, rtol=1e-3, atol=1e-9)
    agreement = table(atlas, "agreement")
    assert set(agreement["outcome"]) == {"mean"} and len(agreement) == 4


def test_controls_and_maps(atlas: Path) -> None:
    controls = table(atlas, "controls").set_index(["control", "region"])
    assert controls.loc[("re-ordered", "lungs"), "max_abs_hu"] < 0.01  # phrases have no order
    assert controls.loc[("other noise", "lungs"), "voxel_abs_hu"] > 0
    assert (
        controls.loc[("re-worded", "lungs"), "max_abs_hu"] < 0.01
    )  # known phrases in other punctuation
    maps, arrays = table(atlas, "maps"), np.load(atlas / "maps.npz")
    kinds = maps.groupby("kind")["key"].count()
    assert kinds["detail_sd"] == kinds["share_below_950"] == kinds["share_above_700"] == 5
    assert kinds["effect"] == kinds["effect_sd"] == kinds["permuted"] == kinds["refit_sd"] == 5
    assert {"generated", "real", "coverage", "other noise", "re-ordered", "re-worded"} <= set(
        kinds.index
    )
    assert set(arrays.files) == set(maps["key"]) and arrays["map_000"].shape == (80, 64, 72)
    row = maps[(maps["kind"] == "effect") & (maps["contrast"] == "AGE=per_unit")].iloc[0]
    effects = means(atlas, "effects")
    mean = effects[(effects["contrast"] == "AGE=per_unit") & (effects["region"] == "lungs")][
        "generated"
    ].iloc[0]
    spread = effects[(effects["contrast"] == "AGE=per_unit") & (effects["region"] == "lungs")][
        "mean_abs_hu"
    ].iloc[0]
    assert abs(np.nanmean(arrays[row["key"]].astype(float)) - mean) < 0.2 * spread + 0.01


def test_cautions_cases_and_arms(atlas: Path, run: TrainedRun) -> None:
    cautions = table(atlas, "cautions")
    assert {"seen", "left out", "built in", "no permuted refits"} <= set(cautions["kind"])
    assert not cautions["kind"].eq("no refits").any()
    words = ("--name", "run", "--dataroot", str(run.cohort))
    texts = cautions.set_index("kind")["text"]
    refit = f"python scripts/refit.py {' '.join(words)} --checkpoints_dir {run.checkpoints}"
    assert texts["no permuted refits"].endswith(f"{refit} --refits 20 --permutations 19")
    assert "5 refits of 4 steps each" in texts["seen"] and "--fold all/5" in texts["seen"]
    assert cautions["forbids"].tolist() == sorted(cautions["forbids"], reverse=True)
    cases = table(atlas, "cases")
    assert (
        len(cases) == 34
        and (cases["generated"] == "yes").sum() == 2
        and (cases["seen"] == "yes").sum() == 30
    )
    assert (cases["lung_ml"] > 500).all()
    arms = table(atlas, "arms")
    never = arms[(arms["value"] == "Never smoker") & arms["dropped"].notna()]
    assert len(never) == 0 or never["dropped"].str.contains("PACK-YEARS|STOP DATE").all()
    with_file = arms[arms["file"].notna()]
    assert set(with_file["case"]) == {arms["case"].iloc[0]} and len(with_file) == 10
    image = nib.load(atlas / with_file["file"].iloc[0])
    mask = nib.load(run.cohort / "gtlung" / f"{with_file['case'].iloc[0]}.nii.gz")
    assert (
        image.shape == mask.shape
        and np.allclose(image.affine, mask.affine)
        and image.get_data_dtype() == np.int16
    )
    assert {"own", "varied"} <= set(table(atlas, "volumes")["kind"])


def test_refits_are_listed_and_differ_as_they_should(atlas: Path, run: TrainedRun) -> None:
    refits = table(atlas, "refits")
    assert (
        refits["kind"].value_counts().to_dict() == {"permuted": 5, "resampled": 3}
        and refits["seed"].is_unique is False
    )
    options = json.loads((run.folder / "refits" / "permuted_001" / "options.json").read_text())
    assert (
        "SMOKING HISTORY" in options["data"]["permute"]
        and "Mapping ID" not in options["data"]["permute"]
    )
    splits = [
        json.loads((run.folder / "refits" / f"resampled_00{k}" / "splits.json").read_text())
        for k in (1, 2)
    ]
    assert splits[0]["train"] != splits[1]["train"] and splits[0]["test"] == splits[1]["test"]


# --- vessels and labels that disease cannot change


def test_vessels_and_control_labels_from_the_command_to_the_page(
    run: TrainedRun, tmp_path: Path
) -> None:
    """The aorta of men is 40 HU denser: they were scanned with contrast."""
    cohort = Path(shutil.copytree(run.cohort, tmp_path / "cohort"))
    sexes = pd.read_csv(cohort / "clinical.csv", dtype=str).set_index("File Name")["SEX"]
    for path in (cohort / "img").iterdir():
        scan = load_volume(path).array.astype(np.float32)
        labels = load_volume(cohort / "gtlung" / path.name).array
        is_man = sexes[path.name.removesuffix(".nii.gz")] in ("1", "Male", "M")
        write_like(path, scan + 40.0 * is_man * (labels == AORTA), path)
    words = ("--columns", "SEX", "--how_many", "1", "--volumes", "0", "--without_vessels")
    out = tmp_path / "out"
    done = discover(run, out, *words, "--control_labels", str(AORTA), cohort=cohort)
    assert done.code == 0, done.text
    for name in ("effects", "effects_by_case", "real", "tests"):
        rows = table(out, name)
        variant = rows[rows["outcome"] == "mean_without_vessels"]
        assert set(variant["region"]) == set(LUNG_REGIONS), name
    tests = table(out, "tests").set_index(["outcome", "region"])
    judged = tests.loc[("mean_without_vessels", "lungs")]
    assert judged["tested"] == "no" and judged["why"] == "a variant of the mean"
    real = table(out, "real")
    real = real[(real["primary"] == "yes") & (real["region"] == "lungs")].set_index("outcome")
    means = real.loc[["mean", "mean_without_vessels"], "real"].to_numpy(float)
    assert np.isfinite(means).all() and abs(means[0] - means[1]) < 20
    controls = table(out, "negative_controls")
    aorta = controls[controls["region"] == f"control_label_{AORTA}"].set_index("outcome")
    row = aorta.loc["mean"]
    assert row["moved"] == "yes" and abs(abs(row["real"]) - 40) < 8
    cautions = table(out, "cautions")
    (warned,) = cautions[cautions["kind"] == "negative control"].to_dict("records")
    assert warned["column"] == "SEX" and warned["forbids"] == "yes"
    page = (out / "index.html").read_text()
    assert f"control label {AORTA}" in page and "groups were scanned differently: SEX" in page


# --- refits


def test_refit_is_a_program_that_keeps_what_is_finished(run: TrainedRun) -> None:
    """A process trains missing refits, resumes stopped ones, and leaves finished ones alone."""
    words = ("scripts/refit.py", *run.flags(), "--refits", "4", "--folds", "0")
    done = command(*words)
    assert done.code == 0, done.text
    folder = run.folder / "refits"
    assert json.loads((folder / "resampled_004.json").read_text())["kind"] == "resampled"
    assert (folder / "resampled_004.log").stat().st_size > 0
    before = {n: (folder / f"{n}.json").stat().st_mtime_ns for n in ("resampled_004",)}
    assert command(*words).code == 0
    assert all((folder / f"{n}.json").stat().st_mtime_ns == t for n, t in before.items())
    origin = OriginRun.load(run.folder)
    one = planned_refits(origin, RefitOptions(refits=4))[-1]
    (folder / "resampled_004.json").unlink()  # as if it had been stopped before its end
    assert "--continue_train" in train_arguments(origin, one, RefitOptions(), "")
    shutil.rmtree(folder / "resampled_004")
    assert "--resample" in train_arguments(
        origin, one, RefitOptions(), "1"
    ) and "--gpu_ids" in train_arguments(origin, one, RefitOptions(), "1")


def test_a_refit_that_fails_has_a_message(run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = OriginRun.load(run.folder)
    one = Refit("resampled_009", "resampled", 1009)
    worker = RefitWorker("", "1")
    monkeypatch.setattr(
        "pipelines.refits.training.train_arguments",
        lambda *_: ["--dataroot", "no/such", "--name", "x"],
    )
    with pytest.raises(
        UserError, match=r"resampled_009 ended with exit code 2: .*no/such.*resampled_009\.log"
    ):
        train_refit(origin, one, RefitOptions(), worker)
    worker.close()
    assert not one.record_path(run.folder).exists()


def test_a_column_is_shuffled_with_what_hangs_on_it_and_a_clip_trained_again(
    run: TrainedRun, tmp_path: Path
) -> None:
    origin = OriginRun.load(run.folder)
    one = planned_refits(origin, RefitOptions(permutations=1, permute=("SMOKING HISTORY",)))[0]
    assert one.permuted == ("SMOKING HISTORY", "PACK-YEARS", "SMOKING HISTORY STOP DATE")
    assert one.name == "permuted_SMOKING_HISTORY_001"
    (tmp_path / "clip.json").write_text("{}")
    text = replace(origin.options.text, text_encoder=str(tmp_path))
    with_clip = replace(origin, options=replace(origin.options, text=text))
    words = train_arguments(with_clip, one, RefitOptions(), "")
    assert words[words.index("--text_encoder") + 1] == "cohort"
    words = train_arguments(with_clip, one, RefitOptions(reuse_encoder=True), "")
    assert words[words.index("--text_encoder") + 1] == str(tmp_path)
    with pytest.raises(UserError, match="without a column 'HEIGHT'"):
        planned_refits(origin, RefitOptions(permutations=1, permute=("HEIGHT",)))


def test_refits_of_a_run_that_went_on_are_not_used(
    run: TrainedRun, atlas: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = run.folder / "refits" / "resampled_001.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), "run_step": 1}))
    assert "resampled_001" not in [r["name"] for r in finished_refits(run.folder)]
    assert "resampled_001" in caplog.text
    path.write_text(before)


def test_cross_fitting_generates_with_a_run_that_has_not_seen_the_case(
    run: TrainedRun,
    atlas: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.atlas.run.train_refits", in_this_process)
    done = discover(run, tmp_path / "out", "--columns", "SEX", "--fold", "2/10")
    assert done.code == 0, done.text
    cases = table(tmp_path / "out", "cases")
    assert (
        len(cases) == 3 and set(cases["run"]) == {"fold_2_of_10"} and set(cases["seen"]) == {"no"}
    )
    trained = json.loads((run.folder / "refits" / "fold_2_of_10" / "splits.json").read_text())[
        "train"
    ]
    assert not set(trained) & set(cases["case"]) and len(trained) == 27
    refits = table(tmp_path / "out", "refits").set_index("kind")
    assert refits.loc["fold", "name"] == "fold_2_of_10" and refits.loc["fold", "steps"] == 4
    assert "seen" not in set(table(tmp_path / "out", "cautions")["kind"])
    assert (
        "too small to conclude anything" in record(tmp_path / "out")["summary"]
    )  # three scans to compare with


def test_commands_of_refit_that_ask_for_nothing(run: TrainedRun) -> None:
    refused(command("scripts/refit.py", *run.flags()), "--refits, --permutations or --folds")
    refused(command("scripts/refit.py", *run.flags(), "--folds", "1"), "--folds is 1")
    words = ("--name", "other", "--checkpoints_dir", run.checkpoints, "--refits", "1")
    refused(command("scripts/refit.py", *words), "no run", "run")


# --- a folder that is there


def test_an_atlas_is_replaced_only_when_asked_for(
    trained_run: TrainedRun, atlas: Path, tmp_path: Path
) -> None:
    before = files(atlas)
    refused(discover(trained_run, atlas, "--columns", "SEX"), "exists already", "--overwrite")
    assert files(atlas) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    refused(
        discover(trained_run, tmp_path / "mine", "--columns", "SEX", "--overwrite"),
        "holds no atlas.json",
    )
    copy = Path(shutil.copytree(atlas, tmp_path / "copy"))
    done = discover(
        trained_run, copy, "--columns", "SEX", "--how_many", "1", "--volumes", "0", "--overwrite"
    )
    assert done.code == 0 and set(table(copy, "contrasts")["column"]) == {"SEX"}, done.text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "mine"]
