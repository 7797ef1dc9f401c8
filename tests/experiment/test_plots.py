"""What is drawn together can be compared."""

import pytest

from inscp.evaluation.items import Item
from inscp.evaluation.results import Metric, Results, TaskResult
from inscp.experiment import plots
from inscp.experiment.tables import Comparison, Evaluated


@pytest.mark.parametrize(("tokens", "unit"), [(10.0, "perplexity"), (7.0, "bits a byte")])
def test_texts_that_vocabularies_cut_otherwise_are_compared_by_bits_a_byte(tokens: float, unit: str) -> None:
    def measured(row: str, n_tokens: float) -> Evaluated:
        names = ("held_out/fi/loss", "held_out/fi/bits_per_byte")
        items = [Item(str(n), dict.fromkeys(names, 2.0 + n), {names[0]: n_tokens, names[1]: 40.0}) for n in range(3)]
        return Evaluated(row, 0, Results(row, {}, {}), {"retention": items})

    comparison = Comparison([measured("a", 10.0), measured("b", tokens)], "a")
    figure = plots.perplexity_bands(comparison)
    assert figure is not None
    [axis] = figure.axes
    assert axis.get_title() == f"fi: {unit} of held-out texts"
    middles = [float(line.get_xdata()[0]) for line in axis.lines]
    assert middles == pytest.approx([3.0 if unit == "bits a byte" else 2.718281828**3] * 2)


def test_every_arm_begins_at_the_original_whatever_the_reference_is() -> None:
    def measured(row: str, share: float) -> Evaluated:
        metric = Metric(share, (share - 0.1, share + 0.1), 10)
        found = TaskResult("LanguageAlignment", {"fi/sound_in_language": metric, "fi/ended": metric}, 10, 1, 0.0)
        return Evaluated(row, 0, Results(row, {"language": found}, {}), {})

    budgets = {"all there is": ("all", None), "original": ("instruct", 0), "few": ("InsCP", 30), "many": ("InsCP", 100)}
    comparison = Comparison([measured(row, 0.1 * n + 0.2) for n, row in enumerate(budgets)], "many")
    figure = plots.against_tokens(comparison, budgets, "fi")
    assert figure is not None
    assert plots.against_tokens(comparison, {row: budgets[row] for row in ("original", "many")}, "fi") is None
    for axis in figure.axes[:2]:
        [container] = axis.containers
        assert list(container.lines[0].get_xdata()) == [0, 30, 100]
