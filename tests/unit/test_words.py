"""What the project calls things: words that match what is measured, and text of files that can do no harm."""

from mst.saliency import metrics
from mst.words import LABELS, MEASURES, SHORT_LABELS, clipped, duration, measured, percent, short_label


def test_words_match_what_is_measured() -> None:
    assert tuple(MEASURES) == metrics.MEASURES
    assert f"within {metrics.TOLERANCE_MM:g} mm of the lesion" in MEASURES["pointing_game"]
    assert f"strongest {100 * (1 - metrics.QUANTILE):.1f}%" in MEASURES["dice"]
    assert measured("share_inside", 0.345) == "34.5%"
    assert measured("average_surface_distance_mm", None) == "none"
    assert measured("average_surface_distance_mm", 2.25) == "2.2 mm"
    assert measured("pointing_game", True) == "yes"
    assert measured("dice", 0.5) == "0.500"


def test_a_model_keeps_its_own_name_where_room_is_short() -> None:
    assert short_label("mst", LABELS["mst"]) == SHORT_LABELS["mst"]
    assert short_label("resnet") == "3D ResNet"
    # In the MST's place, but not to be taken for it.
    assert short_label("mst", "Medical Slice Transformer with a 2D ResNet") == "MST (2D ResNet)"
    assert short_label("other", "Another model") == "Another model"


def test_a_probability_is_never_said_to_be_certain() -> None:
    shares = (0.0, 0.004, 0.006, 0.5, 0.81, 0.994, 0.996, 1.0)
    assert [percent(share) for share in shares] == [
        "under 1%",
        "under 1%",
        "1%",
        "50%",
        "81%",
        "99%",
        "over 99%",
        "over 99%",
    ]


def test_a_time_is_told_roughly() -> None:
    assert [duration(seconds) for seconds in (0.3, 1, 3.2, 41.7)] == [
        "under 1 s",
        "about 1 s",
        "about 3 s",
        "about 42 s",
    ]


def test_text_of_files_is_clipped_to_one_line_that_can_be_written() -> None:
    assert clipped("a  name\n of\ttwo lines ") == "a name of two lines"
    assert len(clipped("W" * 100_000, 160)) == 160
    assert clipped("W" * 100_000, 160).endswith("W…")
    assert clipped("W" * 160, 160) == "W" * 160
    assert clipped(" " * 100_000 + "end", 10).endswith("…")
    for odd in ("\udcff\ud800", "\x00\x1b[31m", "a\u202eb"):
        found = clipped(odd)
        assert found.encode("utf-8")
        assert not set(found) & {"\x00", "\x1b", "\u202e"}
