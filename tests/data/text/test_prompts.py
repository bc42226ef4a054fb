"""Rows to text: wording, missing values, implications, free text."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from data.cohort import Case, Cohort
from data.text.prompts import Prompt, Template, cohort_prompts, load_template, read_prompts
from data.text.review import write_prompt_table
from options.prompt_options import PromptOptions
from tests.commands import command, refused
from util.cli import UserError
from util.phrasing import strip_phrase

COLUMNS = (
    "Mapping ID",
    "DIAGNOSIS",
    "label",
    "AGE",
    "SEX",
    "TYPE CTD",
    "SMOKING HISTORY",
    "CTD DIAG DATE",
    "PACK-YEARS",
    "SMOKING HISTORY STOP DATE",
    "RISK OCCUPATIONAL",
    "RISK ENVIRONMENTAL",
    "RISK PRECIPITINS",
    "FAMILIAL PF AND/OR RARE VARIANT",
    "TYPE CTD OTHER",
)


def row(**values: str) -> dict[str, str]:
    return {**dict.fromkeys(COLUMNS, ""), **{k.replace("_", " "): v for k, v in values.items()}}


@pytest.fixture
def aiib23() -> Template:
    return load_template("aiib23", COLUMNS, "File Name")


def test_published_wording(aiib23: Template) -> None:
    full = row(
        Mapping_ID="AIIB23_1",
        DIAGNOSIS="IPF",
        label="1.0",
        AGE="76.0",
        SEX="F",
        SMOKING_HISTORY="Never smoker",
        RISK_OCCUPATIONAL="Yes",
        RISK_PRECIPITINS="No",
    )
    assert aiib23.phrases(full).sentence == (
        "Lung CT scan : DIAGNOSIS is IPF, State of (Dead/Alive) within one year is Alive, Patient "
        "age: 76. Gender: Female. SMOKING HISTORY is Never smoker, Occupational exposure present. "
        "RISK PRECIPITINS is No."
    )


@pytest.mark.parametrize(
    "value", ["", " ", "nan", "NaN", "99999", "99999.0", "Not Available", "N/A"]
)
def test_missing_values_leave_the_text(aiib23: Template, value: str) -> None:
    assert aiib23.phrases(dict.fromkeys(COLUMNS, value)) == ()
    assert Prompt().sentence == ""
    known = aiib23.phrases({**dict.fromkeys(COLUMNS, value), "DIAGNOSIS": "IPF"})
    assert known.texts == ["DIAGNOSIS is IPF"]


def test_automatic_template_says_every_column_but_ids() -> None:
    template = load_template(
        "auto", ("File Name", "Pat", "SCANNER", "Drug", "n"), "File Name", "Pat"
    )
    prompt = template.phrases(
        {"File Name": "a", "Pat": "p1", "SCANNER": "GE", "Drug": "None", "n": "3.0", "id": "7"}
    )
    assert prompt.annotated == [
        ("SCANNER is GE", "SCANNER"),
        ("Drug is None", "Drug"),
        ("n is 3", "n"),
    ]
    assert (template.role("SCANNER"), template.role("Pat"), template.role("Drug")) == (
        "acquisition",
        "id",
        "exposure",
    )


def test_unknown_columns_follow_the_template(aiib23: Template) -> None:
    prompt = aiib23.phrases({"Kernel": "B30f", "AGE": "60"})
    assert prompt.texts == ["Patient age: 60.", "Kernel is B30f"]


def test_a_change_drops_what_it_contradicts(aiib23: Template) -> None:
    smoker = row(
        DIAGNOSIS="CTD-ILD", TYPE_CTD="RA", CTD_DIAG_DATE="-300", SMOKING_HISTORY="Ex-smoker"
    )
    smoker |= {"PACK-YEARS": "20", "SMOKING HISTORY STOP DATE": "-900"}
    never = aiib23.change(smoker, "SMOKING HISTORY", "Never smoker")
    assert never.dropped == ("PACK-YEARS", "SMOKING HISTORY STOP DATE")
    assert not any("smoking 9" in p or "PACK" in p for p in aiib23.phrases(never.row).texts)
    current = aiib23.change(smoker, "SMOKING HISTORY", "Current smoker")
    assert current.dropped == ("SMOKING HISTORY STOP DATE",) and current.row["PACK-YEARS"] == "20"
    ipf = aiib23.change(smoker, "DIAGNOSIS", "IPF")
    assert ipf.dropped == ("TYPE CTD", "CTD DIAG DATE")
    assert smoker["TYPE CTD"] == "RA"  # the row itself is untouched


def test_the_changed_column_wins(aiib23: Template) -> None:
    changed = aiib23.change(row(SMOKING_HISTORY="Never smoker"), "PACK-YEARS", "20")
    assert changed.dropped == ("SMOKING HISTORY",) and changed.row["PACK-YEARS"] == "20"


def test_a_null_edit_changes_nothing_even_in_a_contradictory_row(aiib23: Template) -> None:
    odd = row(SMOKING_HISTORY="Never smoker", DIAGNOSIS="IPF", TYPE_CTD="RA") | {"PACK-YEARS": "3"}
    same = aiib23.change(odd, "SMOKING HISTORY", "Never smoker")
    assert aiib23.phrases(same.row) == aiib23.phrases(odd)
    assert set(aiib23.consistent(odd).dropped) == {"PACK-YEARS", "TYPE CTD"}


def test_an_empty_value_removes_the_attribute(aiib23: Template) -> None:
    changed = aiib23.change(row(AGE="60", SEX="M"), "AGE", "")
    assert aiib23.phrases(changed.row).texts == ["Gender: Male."] and changed.dropped == ()


def test_codes_and_their_meaning_say_the_same(aiib23: Template) -> None:
    assert aiib23.phrases(row(label="0")) == aiib23.phrases(row(label="Dead"))
    assert aiib23.known_values([row(AGE="7"), row(AGE="55.0"), row(AGE="")], "AGE") == ("7", "55")


def test_bad_values_and_columns_name_themselves(aiib23: Template) -> None:
    with pytest.raises(UserError, match=r"AGE.*'old'"):
        aiib23.phrases(row(AGE="old"))
    with pytest.raises(UserError, match="no column 'Smoking'"):
        aiib23.change(row(), "Smoking", "x")
    with pytest.raises(UserError, match="identifier"):
        aiib23.change(row(), "Mapping ID", "x")
    with pytest.raises(UserError, match="aiib23, lesions, osic"):
        load_template("nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("columns: {AGE: {kind: age}}", "AGE.*kind is 'age'"),
        ("columns: {AGE: {phrases: {Yes: x}}}", "AGE.*quotes"),
        ("columns: {AGE: text}", "AGE.*mapping"),
        ("columns: {AGE: {implies: [{drop: [SEX]}]}}", "AGE.*implies"),
        ("columns: {AGE: {implies: [{when: Never, drop: [SEX]}]}}", "AGE.*list"),
        ("columns: [AGE]", "columns"),
        ("columns: {AGE", "YAML"),
    ],
)
def test_bad_template_says_where(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_template(str(path))


def test_osic_template() -> None:
    prompt = load_template("osic").phrases(
        {
            "Patient": "ID1",
            "Weeks": "-4",
            "FVC": "2315",
            "Percent": "58.253648",
            "Age": "79",
            "Sex": "Male",
            "SmokingStatus": "Ex-smoker",
        }
    )
    assert "Patient age: 79." in prompt.texts and "58.3" in prompt.sentence
    assert "ID1" not in prompt.sentence


def test_free_text_is_split_into_phrases_and_back(aiib23: Template) -> None:
    prompt = aiib23.phrases(row(DIAGNOSIS="IPF", AGE="76", SEX="F", label="1"))
    again = Prompt.from_free_text(prompt.sentence)
    assert list(map(strip_phrase, again.texts)) == list(map(strip_phrase, prompt.texts))
    assert again.sentence == prompt.sentence
    text = "Nodule of 1.5 mm, approx. 3 cm from hilum; no effusion\nFVC 2,5 l."
    pieces = ["Nodule of 1.5 mm", "approx. 3 cm from hilum", "no effusion", "FVC 2,5 l."]
    assert Prompt.from_free_text(text).texts == pieces
    assert Prompt.from_free_text("  ") == ()
    asked = "Lung CT scan : Smoker? is yes, Biopsy? Yes. Is well."
    assert Prompt.from_free_text(asked).texts == ["Smoker? is yes", "Biopsy?", "Yes.", "Is well."]


def test_prompts_csv_stands_instead_of_the_template(tmp_path: Path, aiib23: Template) -> None:
    (tmp_path / "prompts.csv").write_text('File Name,Prompt\na.nii.gz,"Old man, smoker"\n')
    cases = tuple(Case(c, None, tmp_path / c, row(AGE="60")) for c in "ab")
    prompts = cohort_prompts(Cohort(tmp_path, cases, {}, (0, 1), COLUMNS), aiib23)
    assert prompts["a"].annotated == [("Old man", ""), ("smoker", "")]
    assert prompts["b"].texts == ["Patient age: 60."]
    (tmp_path / "prompts.csv").write_text("File,Prompt\na,b\n")
    with pytest.raises(UserError, match="File Name"):
        read_prompts(tmp_path / "prompts.csv")


def test_make_prompts_writes_a_table(tmp_path: Path) -> None:
    (tmp_path / "clinical.csv").write_text(
        "File Name,AGE,PACK-YEARS,SMOKING HISTORY\nc1.nii.gz,55.0,9,Never smoker\nc2,,,\n"
    )
    out = write_prompt_table(PromptOptions(str(tmp_path), "aiib23", out=str(tmp_path / "out.csv")))
    lines = list(csv.DictReader(out.read_text().splitlines()))
    assert lines[0]["Prompt"] == "Lung CT scan : Patient age: 55. SMOKING HISTORY is Never smoker."
    assert (lines[0]["Left out"], lines[1]["Prompt"]) == ("PACK-YEARS", "")


def test_make_prompts_judges_columns_by_the_scans(tmp_path: Path) -> None:
    """As training does: eight notes may all differ by chance, and the others have no scan."""
    (tmp_path / "gtlung").mkdir()
    rows = [f"c{k},finding {k}" for k in range(20)]
    (tmp_path / "clinical.csv").write_text("\n".join(["File Name,FINDING", *rows]))
    for k in range(9):
        (tmp_path / "gtlung" / f"c{k}.nii.gz").touch()
    (tmp_path / "review.csv").write_text("case,mark,note\nc8,reject,\n")
    out = write_prompt_table(PromptOptions(str(tmp_path), out=str(tmp_path / "out.csv")))
    assert "FINDING is finding 0." in out.read_text()


def test_make_prompts_names_a_column_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "clinical.csv").write_text("File Name,Person,AGE\nc1,P1,55\n")
    words = ("scripts/make_prompts.py", "--dataroot", str(tmp_path), "--patient_column", "Persn")
    refused(command(*words), "--patient_column", "'Persn'", "mean Person")


def test_make_prompts_without_a_table_is_one_message(tmp_path: Path) -> None:
    refused(command("scripts/make_prompts.py", "--dataroot", str(tmp_path)), "clinical.csv")


@pytest.mark.parametrize(
    ("columns", "suggested"),
    [(("File Name", *COLUMNS[1:10]), True), (("File Name", "AGE", "SEX", "FEV1"), False)],
)
def test_auto_suggests_the_template_that_was_written_for_the_table(
    columns: tuple[str, ...], suggested: bool, caplog: pytest.LogCaptureFixture
) -> None:
    load_template("auto", columns, "File Name")
    assert ("--template aiib23" in caplog.text) == suggested
    assert "--template osic" not in caplog.text
