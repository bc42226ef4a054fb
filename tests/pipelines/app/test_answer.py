"""Questions to a run and their answers, without the page: texts, volumes, support, exports."""

from __future__ import annotations

import json
import shutil
import threading
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image, ImageSequence

from options.app_options import AppCommand, AppOptions
from options.test_options import ModelOptions
from pipelines.app.answer import Answer, AnswerDesk
from pipelines.app.exports import FORMATS, export
from pipelines.app.progress import CancelledError, GenerationProgress
from pipelines.app.question import Question
from pipelines.app.session import AppSession
from tests.commands import TrainedRun
from util.cli import UserError
from util.files import read_csv

COLUMN = "SMOKING HISTORY"
NEVER, CURRENT = "Never smoker", "Current smoker"


def opened(run: TrainedRun, folder: Path, cohort: Path | None) -> AppSession:
    options = AppCommand(
        AppOptions(dataroot=str(cohort or "")),
        ModelOptions(run.name, str(run.checkpoints), gpu_ids="-1"),
    )
    return AppSession.from_options(options, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="module")
def session(trained_run: TrainedRun, folder: Path) -> AppSession:
    return opened(trained_run, folder, trained_run.cohort)


@pytest.fixture(scope="module")
def desk(session: AppSession, folder: Path) -> AnswerDesk:
    return AnswerDesk(session, folder / "answers")


def ask(desk: AnswerDesk, question: Question) -> Answer:
    return desk.answer(question, GenerationProgress())


@pytest.fixture(scope="module")
def case(session: AppSession) -> str:
    return session.plan.cohort.split("test")[0].id


@pytest.fixture(scope="module")
def answer(desk: AnswerDesk, case: str) -> Answer:
    return ask(desk, Question(case, {COLUMN: CURRENT}, {COLUMN: NEVER}, seed=3))


# Columns and texts.
def test_columns_have_roles_units_and_known_values(session: AppSession) -> None:
    age, smoking = session.columns["AGE"], session.columns[COLUMN]
    assert age.numeric and age.unit == "years" and age.role == "demographic"
    assert age.info.endswith("in training") and age.values[0] in age.info
    assert smoking.role == "exposure" and NEVER in smoking.values and not smoking.numeric
    assert "Mapping ID" not in session.columns  # it identifies


def test_what_contradicts_a_value_leaves_the_text_and_is_named(
    session: AppSession, case: str
) -> None:
    known = {COLUMN: "Ex smoker", "PACK-YEARS": "20"}
    texts = session.texts(Question(case, known, {COLUMN: NEVER}))
    assert "PACK-YEARS is 20" in texts.a.texts and "PACK-YEARS is 20" not in texts.b.texts
    assert texts.columns == {COLUMN: ("Ex smoker", NEVER)}
    assert any("PACK-YEARS was removed" in n.text for n in texts.notices)


def test_values_can_be_not_known(session: AppSession, case: str) -> None:
    empty = dict.fromkeys(session.columns, "")
    assert session.texts(Question(case, empty)).a.texts == []
    gone = session.texts(Question(case, {COLUMN: NEVER}, {COLUMN: ""}))
    assert gone.differs and gone.contrast == (COLUMN, NEVER, "not known")


def test_several_attributes_make_one_contrast(session: AppSession, case: str) -> None:
    known = {COLUMN: CURRENT, "AGE": "50"}
    texts = session.texts(Question(case, known, {COLUMN: NEVER, "AGE": "70"}))
    assert texts.contrast == (f"{COLUMN} and AGE", f"{CURRENT}, 50", f"{NEVER}, 70")


def test_changes_edit_a_free_text(session: AppSession, case: str) -> None:
    text = f"Patient age: 60. {COLUMN} is {CURRENT}"
    texts = session.texts(Question(case, {}, {COLUMN: NEVER}, text_a=text))
    assert texts.a.texts[0] == texts.b.texts[0] == "Patient age: 60."
    assert texts.b.texts[1] == f"{COLUMN} is {NEVER}"
    with pytest.raises(UserError, match="does not state DIAGNOSIS"):
        session.texts(Question(case, {}, {"DIAGNOSIS": "HP"}, text_a=text))
    both = session.texts(Question(case, text_a="Patient age: 60.", text_b="Patient age: 70."))
    assert both.b.texts == ["Patient age: 70."] and both.contrast == ("free text", "A", "B")


@pytest.mark.parametrize(
    ("question", "part"),
    [
        (Question("nobody"), "no case 'nobody'"),
        (Question(""), "Choose a case"),
        (Question("CASE", {"HEIGHT": "1"}), "no column 'HEIGHT'"),
        (Question("CASE", {}, {"AGE": "old"}), "must hold a number"),
        (Question("CASE", text_a="x" * 5000), "4000 characters"),
    ],
)
def test_what_does_not_fit_the_run_is_refused(
    session: AppSession, case: str, question: Question, part: str
) -> None:
    asked = Question(
        case if question.case == "CASE" else question.case,
        question.factual,
        question.changed,
        question.text_a,
    )
    with pytest.raises(UserError, match=part):
        session.texts(asked)


# Answers.
def test_volumes_and_effects_are_those_of_the_command_line(
    answer: Answer, trained_run: TrainedRun, case: str, tmp_path: Path
) -> None:
    words = ("--split", "test", "--how_many", "1", "--seed", "3", "--gpu_ids=-1")
    vary = f"{COLUMN}={CURRENT},{NEVER}"
    done = trained_run.test(tmp_path, *words, "--set", f"{COLUMN}={CURRENT}", "--vary", vary)
    assert done.code == 0, done.text
    results = tmp_path / trained_run.name / "test_latest"
    files = {row["value"]: row["file"] for row in read_csv(results / "volumes.csv")}
    with zipfile.ZipFile(export(answer, ["NIfTI"], tmp_path)) as archive:
        archive.extractall(tmp_path / "out")
    for name, value in (("a", CURRENT), ("b", NEVER)):
        (exported,) = (tmp_path / "out").rglob(f"{name}.nii.gz")
        written = nib.load(results / files[value])
        np.testing.assert_array_equal(nib.load(exported).dataobj, written.dataobj)
        np.testing.assert_array_equal(nib.load(exported).affine, written.affine)
    by_region = {row["region"]: row for row in read_csv(results / "effects.csv")}
    assert len(by_region) == len(answer.effects)
    for row in answer.effects:
        assert row["mean_diff_hu"] == float(by_region[row["region"]]["mean_diff_hu"])
        assert row["draws"] == 2 and row["mc_error_hu"] != ""


def test_the_page_holds_volumes_texts_and_effects(answer: Answer) -> None:
    page = (answer.folder / "index.html").read_text(encoding="utf-8")
    for text in ("real scan", "B minus A", "the same with other noise", "both lungs", NEVER):
        assert text in page
    assert "May mean nothing" not in page
    assert len(list((answer.folder / "web" / "case").glob("*.js"))) == len(answer.panels)


def test_a_known_question_is_not_generated_again(desk: AnswerDesk, answer: Answer) -> None:
    assert ask(desk, answer.question) is answer
    assert desk.known(answer.question) is answer
    with pytest.raises(UserError, match="Click on Generate first"):
        desk.known(Question(answer.question.case, seed=99))


def test_another_seed_is_another_volume(desk: AnswerDesk, answer: Answer, case: str) -> None:
    asked = answer.question
    other = ask(desk, Question(case, asked.factual, asked.changed, seed=4))
    assert (other.volumes["a"] != answer.volumes["a"]).any()


def test_equal_texts_give_one_volume(desk: AnswerDesk, case: str) -> None:
    single = ask(desk, Question(case))
    assert set(single.volumes) == {"real", "a"} and not single.effects
    assert "A and B have the same text" in (single.folder / "index.html").read_text()


def test_what_training_does_not_support_is_said(desk: AnswerDesk, case: str) -> None:
    asked = Question(case, {COLUMN: NEVER, "AGE": "60"}, {COLUMN: "Pipe smoker", "AGE": "130"})
    answer = ask(desk, asked)
    assert "May mean nothing (see below): " in (answer.folder / "index.html").read_text()
    notices = {notice.badge: notice.text for notice in answer.notices}
    assert "has never seen it" in notices["value not seen in training"]
    assert "AGE=130" in notices["outside the range of training"]
    assert "9 scans" in notices["small cohort"]


def test_a_training_case_is_named(desk: AnswerDesk, session: AppSession) -> None:
    trained = session.plan.cohort.split("train")[0].id
    badges = [notice.badge for notice in ask(desk, Question(trained)).notices]
    assert "trained on this case" in badges


def test_a_cancelled_generation_leaves_nothing(desk: AnswerDesk, case: str) -> None:
    cancelled = threading.Event()
    said: list[str] = []

    def progress(share: float, text: str) -> None:
        said.append(text)
        if "tile" in text:
            cancelled.set()

    asked = Question(case, seed=50)
    with pytest.raises(CancelledError):
        desk.answer(asked, GenerationProgress(progress, cancelled))
    assert said[0] == "Reading the case" and said[-1].startswith("Pass 1, tile 1 of")
    assert not (desk.folder / asked.key).exists()
    assert ask(desk, asked).volumes  # and it can be asked again


def test_old_answers_are_forgotten(session: AppSession, case: str, tmp_path: Path) -> None:
    desk = AnswerDesk(session, tmp_path)
    empty = dict.fromkeys(session.columns, "")
    folders = [ask(desk, Question(case, empty, seed=seed)).folder for seed in range(7)]
    assert [folder.exists() for folder in folders] == [False, *[True] * 6]


# A mask alone.
def test_a_dropped_mask_is_a_case(trained_run: TrainedRun, case: str, tmp_path: Path) -> None:
    session = opened(trained_run, tmp_path, None)
    assert session.cases == [] and NEVER in session.columns[COLUMN].values
    mask = trained_run.cohort / "gtlung" / f"{case}.nii.gz"
    name = session.add_mask(mask)
    assert session.cases == [name] and set(session.row(name).values()) == {""}
    answer = ask(AnswerDesk(session, tmp_path), Question(name, {}, {COLUMN: NEVER}))
    assert "real" not in answer.volumes and answer.effects
    other = shutil.copy(trained_run.cohort / "gtlung" / "phantom_001.nii.gz", tmp_path / mask.name)
    assert session.add_mask(Path(other)) != name  # the same file name, another mask


def test_what_is_no_mask_of_the_run_is_refused(
    session: AppSession, trained_run: TrainedRun, tmp_path: Path
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no mask")
    with pytest.raises(UserError, match="not a volume"):
        session.add_mask(text)
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"broken\.nii\.gz"):
        session.add_mask(broken)
    with pytest.raises(UserError, match="img"):
        session.add_mask(sorted((trained_run.cohort / "img").glob("*.nii.gz"))[0])
    labels = nib.load(sorted((trained_run.cohort / "gtlung").glob("*.nii.gz"))[0])
    foreign = tmp_path / "foreign.nii.gz"
    nib.save(nib.Nifti1Image((labels.get_fdata() * 5).astype(np.uint8), labels.affine), foreign)
    with pytest.raises(UserError, match="label"):
        session.add_mask(foreign)


# Exports.
def test_every_format_is_written(answer: Answer, tmp_path: Path) -> None:
    with zipfile.ZipFile(export(answer, list(FORMATS), tmp_path)) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["out"]
    (root,) = (tmp_path / "out").iterdir()
    names = {path.name for path in root.iterdir()}
    volumes = {"a.nii.gz", "b.nii.gz", "difference.nii.gz"}
    assert names >= volumes | {"slices.png", "slices.gif", "page", "effects.csv", "question.json"}
    with Image.open(root / "slices.gif") as film:
        assert len(ImageSequence.all_frames(film)) > 3
    series = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(root / "dicom" / "a"))
    image = sitk.GetArrayFromImage(sitk.ReadImage(series))
    nifti = sitk.GetArrayFromImage(sitk.ReadImage(root / "a.nii.gz"))
    assert sorted(image.ravel()) == sorted(nifti.ravel())
    assert {path.name for path in (root / "dicom").iterdir()} == {"a", "a_mask.dcm", "b"}
    record = json.loads((root / "question.json").read_text())
    assert record["seed"] == 3 and NEVER in record["text_b"] and record["warnings"]
    assert Question.from_query(record["link"].removeprefix("/?")) == answer.question
    assert len(read_csv(root / "effects.csv")) == len(answer.effects)


def test_other_formats_are_refused(answer: Answer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one"):
        export(answer, [], tmp_path)
    with pytest.raises(UserError, match="no format 'DOC'"):
        export(answer, ["PNG", "DOC"], tmp_path)
    assert list(tmp_path.iterdir()) == []
