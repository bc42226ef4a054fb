"""Teaching: the quiz with its case sets, differentials, similar cases, attention maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.attention_maps import DERIVED, NO_PHRASE, phrase_maps
from models.networks.fusion import AttentionFusion
from models.text.base_encoder import TextEmbedding
from options.base_options import DataOptions
from options.clip_options import ClipCommand, ClipOptions
from options.train_options import GeneratorOptions
from pipelines.app.answer import AnswerDesk
from pipelines.app.attention import attention_page
from pipelines.app.differential import columns_of, compare_values
from pipelines.app.progress import GenerationProgress
from pipelines.app.question import Question
from pipelines.app.quiz import (
    CASES_FILE,
    QuizItem,
    choices,
    judge,
    open_case_set,
    pictures,
    suggest_case_set,
    zone_changes,
)
from pipelines.app.quiz_page import write_question_page
from pipelines.app.session import AppSession
from pipelines.app.similar_cases import CaseIndex
from pipelines.clip_pretraining import VOLUME_FILE, Clip, pretrain_clip
from tests.commands import TrainedRun
from tests.pipelines.app.test_answer import COLUMN, CURRENT, NEVER, ask, opened
from util.cli import UserError


@pytest.fixture(scope="module")
def session(trained_run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> AppSession:
    return opened(trained_run, tmp_path_factory.mktemp("app"), trained_run.cohort)


@pytest.fixture(scope="module")
def desk(session: AppSession, tmp_path_factory: pytest.TempPathFactory) -> AnswerDesk:
    return AnswerDesk(session, tmp_path_factory.mktemp("answers"))


@pytest.fixture(scope="module")
def case(session: AppSession) -> str:
    return session.plan.cohort.split("test")[0].id


# The quiz.
def test_a_case_set_is_written_for_a_start_and_read_again(
    session: AppSession, tmp_path: Path
) -> None:
    case_set = open_case_set(session, str(tmp_path / "set"))
    assert (tmp_path / "set" / CASES_FILE).read_text().startswith("# A case set")
    assert case_set == open_case_set(session, str(tmp_path / "set")) == suggest_case_set(session)
    assert len(case_set.items) == 8 and {item.shown for item in case_set.items} <= {
        "generated",
        "real",
    }
    for item in case_set.items:
        assert item.column in choices(item, session) and item.start != item.end


def test_a_teacher_writes_a_case_set(session: AppSession, case: str, tmp_path: Path) -> None:
    (tmp_path / CASES_FILE).write_text(
        f"title: Smoking\ncases:\n- {{case: {case}, column: {COLUMN}, from: {NEVER}, "
        f"to: {CURRENT}, note: Look at the bases.}}\n"
    )
    case_set = open_case_set(session, str(tmp_path))
    assert case_set.title == "Smoking"
    assert case_set.items == (QuizItem(case, COLUMN, NEVER, CURRENT, note="Look at the bases."),)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("cases: {", "cannot be read"),
        ("title: nothing", "must hold `cases`"),
        ("cases: [1]", "case 1 must be a mapping"),
        ("cases: [{case: C, column: AGE, from: 50}]", "lacks 'to'"),
        ("cases: [{case: nobody, column: AGE, from: 50, to: 60}]", "no case 'nobody'"),
        ("cases: [{case: C, column: SIZE, from: 1, to: 2}]", "no column 'SIZE'"),
        ("cases: [{case: C, column: AGE, from: 50, to: old}]", "must hold a number"),
        ("cases: [{case: C, column: AGE, from: 50, to: 50}]", "same value"),
        ("cases: [{case: C, column: AGE, from: 50, to: 60, shown: both}]", "generated or real"),
        ("cases: [{case: C, column: AGE, from: 1, to: 60, shown: real}]", "own value"),
        ("cases: [{case: C, column: AGE, from: 50, to: 60, seed: x}]", "seed"),
        ("cases: [{case: C, column: AGE, from: 50, to: 60, colour: red}]", "'colour'"),
    ],
)
def test_other_case_sets_are_refused(
    session: AppSession, case: str, tmp_path: Path, text: str, part: str
) -> None:
    (tmp_path / CASES_FILE).write_text(text.replace("case: C,", f"case: {case},"))
    with pytest.raises(UserError, match=part):
        open_case_set(session, str(tmp_path))


def voxel_of(session: AppSession, case: str, region: str) -> Sequence[int]:
    mask = session.open_case(case).regions[region]
    return [int(k) for k in np.argwhere(mask)[len(np.argwhere(mask)) // 2]]


def test_an_answer_is_judged_by_attribute_and_place(
    desk: AnswerDesk, session: AppSession, case: str
) -> None:
    item = QuizItem(case, COLUMN, NEVER, CURRENT, note="Look at the bases.")
    answer = ask(desk, item.question)
    # A change of a known place: 100 HU in the left lung.
    left = session.open_case(case).regions["left_lung"]
    change = np.where(left, np.float32(100), np.float32(0))
    answer = replace(answer, volumes={**answer.volumes, "difference": change})
    assert {round(hu) for name, hu in zone_changes(answer, session).items() if "left" in name} == {
        100
    }
    right_place = voxel_of(session, case, "left_lung")
    both = judge(item, answer, session, COLUMN, right_place)
    assert both.points == 2 and "Look at the bases." in both.texts
    place = judge(item, answer, session, "AGE", right_place)
    assert place.points == 1 and f"It was {COLUMN}" in place.texts[0]
    elsewhere = judge(item, answer, session, COLUMN, voxel_of(session, case, "right_lung"))
    assert elsewhere.points == 1 and "+100 HU" in elsewhere.texts[1]
    outside = judge(item, answer, session, COLUMN, [0, 0, 0])
    assert outside.points == 1 and "outside the lungs" in outside.texts[1]
    assert judge(item, answer, session, "AGE", None).points == 0
    with pytest.raises(UserError, match="Choose the attribute"):
        judge(item, answer, session, "", right_place)
    with pytest.raises(UserError, match="outside the volume"):
        judge(item, answer, session, COLUMN, [999, 0, 0])


def test_a_scan_is_shown_with_the_difference(
    desk: AnswerDesk, session: AppSession, case: str, tmp_path: Path
) -> None:
    own = session.row(case)["AGE"]
    item = QuizItem(case, "AGE", own, "85", "real")
    answer = ask(desk, item.question)
    first, second = pictures(item, answer)
    np.testing.assert_array_equal(first, answer.volumes["real"])
    np.testing.assert_allclose(second - first, answer.volumes["difference"], atol=30)
    page = write_question_page(tmp_path, item, answer).read_text()
    assert "a real scan" in page and "B minus A" not in page and "AGE" not in page


# Differentials and similar cases.
@pytest.fixture(scope="module")
def with_clip(
    session: AppSession, trained_run: TrainedRun, tmp_path_factory: pytest.TempPathFactory
) -> AppSession:
    """The session of the tiny run with a CLIP of a few steps."""
    folder = tmp_path_factory.mktemp("clip") / "clip"
    data = DataOptions(dataroot=str(trained_run.cohort), template="aiib23")
    pretrain_clip(
        ClipCommand(
            data=data, clip=ClipOptions(out=str(folder), clip_steps=40, clip_size=(8, 8, 8))
        )
    )
    options = session.plan.options
    options = replace(options, model=replace(options.model, text_encoder=str(folder)))
    return AppSession(replace(session.plan, options=options), session.folder)


def test_scans_are_found_by_themselves_and_by_text(with_clip: AppSession, case: str) -> None:
    index = CaseIndex(with_clip)
    index.fill()
    opened_case = with_clip.open_case(case).sample
    assert opened_case.image is not None
    hu = opened_case.to_hu(opened_case.image[0])
    query = index.embed(hu, opened_case.labels, opened_case.case.mask)
    nearest = index.nearest(query)
    assert nearest[0].case == case and nearest[0].similarity == pytest.approx(1.0, abs=1e-3)
    assert case not in [one.case for one in index.nearest(query, without=case)]
    by_text = index.nearest(index.embed_text(with_clip.plan.prompts[case].texts), count=99)
    assert len(by_text) == len(index.scans) and by_text[0].similarity >= by_text[-1].similarity
    assert "chance" in index.caution
    with pytest.raises(UserError, match="text is empty"):
        index.embed_text([])


def test_a_patient_under_each_value(with_clip: AppSession, case: str, tmp_path: Path) -> None:
    desk = AnswerDesk(with_clip, tmp_path)
    column = columns_of(with_clip)[0]
    made = compare_values(desk, Question(case), column, GenerationProgress())
    own = with_clip.row(case)[column]
    values = [value for value in with_clip.columns[column].values if value != own]
    assert list(made.volumes) == ["own text", *values] == list(made.similar)
    assert {row["to"] for row in made.effects} == set(values)
    lungs = next(row for row in made.effects if row["region"] == "lungs")
    change = made.volumes[lungs["to"]] - made.volumes["own text"]
    inside = with_clip.open_case(case).regions["lungs"]
    assert lungs["draws"] == 2 and abs(lungs["mean_diff_hu"] - change[inside].mean()) < 30
    page = (made.folder / "index.html").read_text()
    assert f"{values[0]} minus own text" in page and "nearest to the volume" in page
    with pytest.raises(UserError, match="no values to compare"):
        compare_values(desk, Question(case), "AGE", GenerationProgress())


def test_a_run_without_a_clip_says_why(desk: AnswerDesk, case: str) -> None:
    made = compare_values(desk, Question(case), "DIAGNOSIS", GenerationProgress())
    page = (made.folder / "index.html").read_text()
    assert not made.similar and "need the cohort's own CLIP" in page.replace("&#x27;", "'")


def test_a_differential_of_a_training_case_says_so(desk: AnswerDesk, session: AppSession) -> None:
    """As the answer to a question does."""
    trained = session.plan.cohort.split("train")[0].id
    made = compare_values(desk, Question(trained), "DIAGNOSIS", GenerationProgress())
    assert "Training cases of the run" in (made.folder / "index.html").read_text()


def test_a_clip_without_its_image_side_says_why(with_clip: AppSession, tmp_path: Path) -> None:
    folder = Path(with_clip.plan.options.model.text_encoder)
    for path in folder.iterdir():
        if path.name != VOLUME_FILE:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="no image encoder"):
        Clip.load(tmp_path, 4)
    with pytest.raises(UserError, match="cannot be read"):
        Clip.load(folder, 7)


# Attention.
def test_recorded_attention_is_that_of_the_unit() -> None:
    torch.manual_seed(0)
    unit = AttentionFusion(8, 6, GeneratorOptions(attention_heads=2))
    tokens = torch.randn(1, 3, 6)
    valid = torch.tensor([[True, True, False]])
    text = TextEmbedding(tokens, valid, tokens.sum(1))
    x, seen = torch.randn(1, 8, 4, 3, 2), list[torch.Tensor]()
    unit.on_weights = seen.append
    unit.residual(x, text)
    (weights,) = seen
    assert weights.shape == (1, 4, 4, 3, 2) and torch.allclose(weights.sum(1), torch.ones(1))
    assert (weights[:, 3] == 0).all()  # a token that is not valid
    # By the definition, head by head.
    voxels = unit.norm(x.movedim(1, -1).reshape(1, -1, 8))
    q = unit._split_heads(unit.query(voxels))
    k = unit._split_heads(unit.key(torch.nn.functional.pad(tokens, (0, 0, 1, 0))))
    logits = q @ k.transpose(-1, -2) / 2.0
    logits[..., 3] = -torch.inf
    expected = logits.softmax(-1).mean(1)[0].T.reshape(4, 4, 3, 2)
    assert torch.allclose(weights[0], expected, atol=1e-6)
    # Guidance runs the network without text, too, which would count as "no phrase".
    unit.residual(x, TextEmbedding(0 * tokens, torch.zeros_like(valid), torch.zeros(1, 6)))
    assert len(seen) == 1


def test_each_phrase_has_a_map(desk: AnswerDesk, session: AppSession, case: str) -> None:
    sample = session.open_case(case).sample
    texts = session.plan.prompts[case].texts
    maps = phrase_maps(session.run.generator, sample, texts)
    names = [one.phrase for one in maps]
    assert names[: 1 + len(texts)] == [NO_PHRASE, *texts]
    assert set(names[1 + len(texts) :]) <= {DERIVED}
    total = sum(one.share for one in maps)
    assert torch.allclose(torch.as_tensor(total), torch.ones(()), atol=1e-4)
    units = [m for m in session.run.network.modules() if isinstance(m, AttentionFusion)]
    assert all(unit.on_weights is None for unit in units)
    folder = attention_page(desk, Question(case), GenerationProgress())
    page = (folder / "index.html").read_text()
    assert NO_PHRASE in page and "does not show what the phrase changes" in page
    with pytest.raises(UserError, match="text is empty"):
        phrase_maps(session.run.generator, sample, [])
