"""What is drawn together can be compared."""

import pytest

from inscp.evaluation.items import Item
from inscp.evaluation.results import Metric, Results, TaskResult
from inscp.experiment import plots
from inscp.experiment.plots import Amount
from inscp.experiment.tables import Comparison, Evaluated


@pytest.mark.parametrize(("tokens", "unit"), [(10.0, "perplexity"), (7.0, "bits per byte")])
def test_texts_that_vocabularies_cut_otherwise_are_compared_by_bits_a_byte(tokens: float, unit: str) -> None:
    def measured(row: str, n_tokens: float) -> Evaluated:
        names = ("held_out/fi/loss", "held_out/fi/bits_per_byte")
        items = [Item(str(n), dict.fromkeys(names, 2.0 + n), {names[0]: n_tokens, names[1]: 40.0}) for n in range(3)]
        return Evaluated(row, 0, Results(row, {}, {}), {"retention": items})

    def lacking(row: str, n_tokens: float) -> Evaluated:
        items = [Item(str(n), {"held_out/fi/loss": 2.0 + n}, {"held_out/fi/loss": n_tokens}) for n in range(3)]
        return Evaluated(row, 0, Results(row, {}, {}), {"retention": items})

    comparison = Comparison([measured("a", 10.0), measured("b", tokens), lacking("c", 10.0)], "a")
    figure = plots.perplexity_bands(comparison)
    assert figure is not None
    [axis] = figure.axes
    assert axis.get_title() == f"fi: {unit} of held-out texts"
    middles = [float(line.get_xdata()[0]) for line in axis.lines]
    assert middles == pytest.approx([3.0] * 2 if unit == "bits per byte" else [2.718281828**3] * 3)
    assert [text.get_text() for text in axis.texts] == (["no bits per byte"] if unit == "bits per byte" else [])


def of_shares(shares: dict[str, float]) -> Comparison:
    """Rows of which so many answers to Finnish are sound and ended; the last is the reference."""

    def measured(row: str, share: float) -> Evaluated:
        metric = Metric(share, (share - 0.1, share + 0.1), 10)
        found = TaskResult("LanguageAlignment", {"fi/sound_in_language": metric, "fi/ended": metric}, 10, 1, 0.0)
        return Evaluated(row, 0, Results(row, {"language": found}, {}), {})

    return Comparison([measured(row, share) for row, share in shares.items()], [*shares][-1])


def test_every_arm_begins_at_the_original_whatever_the_reference_is() -> None:
    amounts = {"all there is": Amount("all", None), "original": Amount("instruct", 0), "few": Amount("InsCP", 30),
               "many": Amount("InsCP", 100)}  # fmt: skip
    comparison = of_shares({row: 0.1 * n + 0.2 for n, row in enumerate(amounts)})
    figure = plots.against_tokens(comparison, amounts, "fi")
    assert figure is not None
    assert plots.against_tokens(comparison, {row: amounts[row] for row in ("original", "many")}, "fi") is None
    for axis in figure.axes[:2]:
        marked = {container.get_label(): list(container.lines[0].get_xdata()) for container in axis.containers}
        assert marked == {"instruct": [0], "InsCP": [30, 100]}
        assert [0, 30, 100] in [list(line.get_xdata()) for line in axis.lines]


def test_an_arm_of_several_trainings_begins_where_the_one_before_it_ends() -> None:
    amounts = {
        "original": Amount("instruct", 0),
        "CP, 30": Amount("CP", 30),
        "CP, 100": Amount("CP", 100),
        "CP then SFT, 60": Amount("CP then SFT", 60, "CP, 30"),
        "CP then SFT, 200": Amount("CP then SFT", 200, "CP, 100"),
        "alone, 60": Amount("alone", 60, "not measured"),
    }
    shares = {row: 0.1 * n + 0.2 for n, row in enumerate(amounts)}
    figure = plots.against_tokens(of_shares(shares), amounts, "fi")
    assert figure is not None
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].lines]
    rows = [["original", "CP, 30", "CP, 100"], ["CP, 30", "CP then SFT, 60"], ["CP, 100", "CP then SFT, 200"]]
    joined = [([amounts[row].tokens for row in line], [shares[row] for row in line]) for line in rows]
    assert all(line in lines for line in joined)
    assert all(tokens == [60] for tokens, of in lines if shares["alone, 60"] in of)
