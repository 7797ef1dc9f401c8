"""The cost of a study's arms, as measured and at other model sizes, and the time that the remaining runs will take."""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import add
from statistics import fmean, median

from inscp.cost.devices import PROJECTED_ON, UTILISATION, find_device, matrix_rate
from inscp.cost.flops import ModelSize, Work, training_flops
from inscp.cost.ledger import Cost
from inscp.errors import UserError
from inscp.evaluation.results import Results
from inscp.experiment.page import Grid
from inscp.experiment.places import Place
from inscp.experiment.study import Stage
from inscp.model.device import best_device
from inscp.model.precision import inference_dtype
from inscp.pretrained import empty_model

_SIZES = {"8 B": 8e9, "70 B": 70e9}
_BEGIN = 15.0
"""Seconds until the first step of a command, where the cost starts to be counted."""
_MEASURES = ("tokens", "flops", "device_hours", "energy_kwh", "money", "co2_kg")


def training_cost(at: Place) -> Cost | None:
    """The cost of all training runs that led to a model; None if none was counted."""
    found = [Cost(**stage.cost) for stage in (at.origin.stages if at.origin else []) if stage.cost]
    return reduce(add, found) if found else None


def evaluation_cost(at: Place) -> Cost | None:
    """The cost of the evaluation; None if it was not counted."""
    cost = Results.read(at.results).environment.get("cost") if at.results.is_file() else None
    return Cost(**cost) if cost else None


def cost_grids(rows: Mapping[str, Sequence[Place]], stages: Mapping[str, Stage]) -> list[Grid]:
    """The cost of each row, a mean over its seeds, and of the same training at other model sizes.

    Args:
        rows: row -> its runs.
        stages: stages that are not run, by name.
    """
    found = {row: [cost for at in places if (cost := training_cost(at))] for row, places in rows.items()}
    trained = {row: costs for row, costs in found.items() if costs}
    if not trained:
        return []
    every = [cost for costs in trained.values() for cost in costs]
    known = [name for name in _MEASURES if all(getattr(cost, name) is not None for cost in every)]
    means = {row: {name: fmean(getattr(c, name) for c in costs) for name in known} for row, costs in trained.items()}
    currencies, devices, energies = (
        "; ".join(dict.fromkeys(getattr(cost, name) for cost in every if getattr(cost, name)))
        for name in ("currency", "device", "energy_from")
    )
    heads = [f"money, {currencies}" if name == "money" else name.replace("_", " ") for name in known]
    what = "All training runs that led to the model, validation included; on"
    note = f"{what} {devices}" + (f", energy {energies}." if energies else ".")
    measured = [[row, *map(_number, of.values()), _evaluation_hours(rows[row])] for row, of in means.items()]
    return [
        Grid("Training cost", note, ["", *heads, "evaluation, device hours"], measured),
        _projected(dict(_trainings(rows, {row: of["tokens"] for row, of in means.items()}, stages))),
    ]


def _evaluation_hours(places: Sequence[Place]) -> str:
    found = [cost.device_hours for at in places if (cost := evaluation_cost(at))]
    return _number(fmean(found)) if found else "–"


_Trainings = Sequence[tuple[float, float]]  # (tokens, forward passes per token) of each run


def _trainings(
    rows: Mapping[str, Sequence[Place]], tokens: Mapping[str, float], stages: Mapping[str, Stage]
) -> Iterator[tuple[str, _Trainings]]:
    """Each row's training runs, followed by the same with each stage that would come after them."""
    for row, count in tokens.items():
        run: _Trainings = [(count, rows[row][0].run.passes)]
        yield row, run
        for name, stage in stages.items():
            if stage.after == rows[row][0].run.arm:
                yield f"{row}, {name} (not run)", [*run, (count * stage.tokens_per_token, stage.passes)]


def _projected(trainings: Mapping[str, _Trainings]) -> Grid:
    device = find_device(PROJECTED_ON)
    assert device is not None
    rows = []
    for row, of in trainings.items():
        cells = [row, f"{sum(tokens for tokens, _ in of):,.0f}"]
        passes_of_tokens = sum(passes * tokens for tokens, passes in of)
        for parameters in _SIZES.values():  # attention scores add less than 3 % at 8 B and 2,048 tokens per row
            flops = 2 * parameters * passes_of_tokens
            cells += [_number(flops), _number(device.hours(flops))]
        rows.append(cells)
    head = ["", "tokens", *(text for size in _SIZES for text in (f"{size}: FLOPs", f"{size}: {PROJECTED_ON} hours"))]
    here = ", ".join(f"{passes:g}" for passes in sorted({passes for of in trainings.values() for _, passes in of}))
    note = (
        "By formula, not measured: FLOPs = passes x 2 x parameters x tokens; 3 passes for training, 2 for adapters or "
        f"new tokens only, more with a teacher or where a stage that was not run says so (here {here}); "
        f"hours = FLOPs / ({device.flops:.3g} FLOP/s x {UTILISATION:.0%}) / 3600."
    )
    return Grid("The same tokens at other model sizes", note, head, rows)


def _number(value: float) -> str:
    whole = value == int(value) or value >= 1000
    return f"{value:.2e}" if value >= 1e9 else f"{value:,.0f}" if whole else f"{value:.3g}"


class Forecast:
    """How long runs take: as the finished ones did, else by formula.

    Args:
        places: places of all runs of a study.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        trained = [cost for at in places if (cost := training_cost(at)) and cost.tokens]
        evaluated = [cost for at in places if (cost := evaluation_cost(at))]
        self._seconds_per_token = median(c.wall_seconds / c.tokens for c in trained) if trained else None
        self._evaluation = median(c.wall_seconds for c in evaluated) if evaluated else None
        self._evaluates = any(at.run.evaluate for at in places)

    @property
    def knows_evaluations(self) -> bool:
        """Whether the duration of evaluations is known, or there are none."""
        return self._evaluation is not None or not self._evaluates

    def seconds(self, at: Place) -> float | None:
        """The remaining time of a run: its training, and its evaluation if another is finished; None if unknown."""
        run, training = at.run, 0.0
        if run.evaluate and self._evaluation is None and (at.model or not run.trains):
            return None
        if run.trains and at.model is None:
            if run.budget is None:
                return None
            if self._seconds_per_token is None:
                self._seconds_per_token = _seconds_per_token(run.original)
            training = run.budget * self._seconds_per_token
            if not training:
                return None
        begins = _BEGIN * (bool(run.command and at.model is None) + bool(run.evaluate))
        return begins + training + (self._evaluation or 0.0) * bool(run.evaluate)


def _seconds_per_token(original: str) -> float:
    """From the FLOPs of training and half the measured rate of a large matrix multiplication on this machine."""
    try:
        size = ModelSize.of(empty_model(original, inference_dtype()))
    except UserError:  # no network, say
        return 0.0
    return 2 * training_flops(size, Work(1, 512)) / matrix_rate(best_device(), inference_dtype())
