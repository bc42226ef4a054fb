"""Words, units and names of other modalities, in sentences, tables and pages."""

from __future__ import annotations

from dominate import tags

from util.modality import CT, MODALITIES

MR = MODALITIES["mr"]


def test_sentences_have_the_unit_and_the_words_of_the_modality() -> None:
    text = "SEX, M against F: +3.1 HU in the lungs; denser in 3 of 4 patients; 0.2 HU."
    assert MR.text(text) == (
        "SEX, M against F: +3.1 a.u. in the labelled region; brighter in 3 of 4 patients; 0.2 a.u."
    )
    assert MR.text("Lung density of both lungs") == (
        "Intensity of the labelled region of the labelled region"
    )
    assert MR.text("HUNT, ACHU and lungfish stay; val_lung_mae_hu does not") == (
        "HUNT, ACHU and lungfish stay; val_mae does not"
    )


def test_tables_name_no_hu_and_hold_no_limit_in_hu() -> None:
    assert MR.columns(["region", "mean_diff_hu", "change_share_below_-950_hu", "mc_error_hu"]) == [
        "region",
        "mean_diff",
        "mc_error",
    ]
    rows = [
        {"region": "lungs", "metric": "mean_lung_attenuation_hu", "value": 1.0},
        {"region": "lungs", "metric": "share_below_-950_hu", "value": 0.0},
        {"region": "label_5", "metric": "real_percentile_15_hu", "value": 2.0},
    ]
    assert MR.rows(rows) == [
        {"region": "labelled", "metric": "mean_intensity", "value": 1.0},
        {"region": "label_5", "metric": "real_percentile_15", "value": 2.0},
    ]


def test_chest_ct_stays_as_it_is() -> None:
    rows = [{"region": "lungs", "metric": "share_below_-950_hu", "value": 0.0}]
    assert CT.rows(rows) == rows
    assert CT.columns(["mean_diff_hu"]) == ["mean_diff_hu"]
    assert CT.text("-3 HU in the lungs") == "-3 HU in the lungs"


def test_a_page_is_changed_but_not_the_text_of_its_user() -> None:
    page = tags.div(
        tags.p("+3 HU in the lungs & airways", title="HU"),
        tags.p("Lung CT scan : lungs of 4 HU.", cls="prompt"),
        tags.div(tags.span("hu_window"), cls="option-groups"),
    )
    MR.document(page)
    text = page.render(pretty=False)
    assert "+3 a.u. in the labelled region &amp; airways" in text and 'title="a.u."' in text
    assert ">lungs of 4 HU.<" in text
    assert "hu_window" in text
