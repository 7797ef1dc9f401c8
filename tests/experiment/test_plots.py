"""What is drawn together can be compared."""

import pytest

from inscp.evaluation.items import Item
from inscp.evaluation.results import Results
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
