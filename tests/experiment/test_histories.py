"""Curves of trainings are drawn together where they measure the same."""

from inscp.experiment.histories import History, side_by_side


def test_losses_a_token_of_another_vocabulary_are_left_out_and_reported() -> None:
    curves = {measure: [(0.0, 3.0), (100.0, 2.0)] for measure in ("train/loss", "val/x/loss", "alignment/fi/ended")}
    histories = {"more": History(curves, "another"), "InsCP": History(curves), "CP": History(curves)}
    found, others = side_by_side(histories)
    assert others == ["more"]
    assert {measure: list(rows) for measure, rows in found.items()} == {
        "train/loss": ["InsCP", "CP"],
        "val/x/loss": ["InsCP", "CP"],
        "alignment/fi/ended": ["more", "InsCP", "CP"],
    }
    assert side_by_side({}) == ({}, [])
    assert side_by_side({"more": histories["more"]}) == ({name: {"more": of} for name, of in curves.items()}, [])
