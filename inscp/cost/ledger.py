"""The cost of each stage: training, evaluation, scoring."""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from inscp.cost.devices import device_name, rated_watts
from inscp.cost.energy import EnergyCounter, co2_intensity, counters
from inscp.errors import UserError

_GIB = 2**30
_SUMS = ("tokens", "flops", "wall_seconds", "device_hours", "energy_kwh", "money", "co2_kg")


@dataclass(frozen=True)
class Cost:
    """The cost of a stage; None for values that are not known.

    Attributes:
        tokens: tokens that were trained on (without padding), or that passed through the model (with padding).
        flops: FLOPs by the formula of `inscp.cost.flops`.
        wall_seconds: wall-clock time from start to end.
        device_hours: wall-clock time times devices; a CPU is one device, however many processes share it.
        peak_memory_gib: peak memory of one process: its tensors on the GPU, else all of its memory.
        energy_kwh: energy of the devices.
        energy_from: `measured (NVML)`, `estimated (1 x 700 W)`, … ; empty if the energy is not known.
        money: device hours times the device's price.
        currency: currency of `money`.
        co2_kg: energy times the country's emissions per kWh, in CO2 equivalent.
        device: number and name of the devices.
        country: country of the electricity.
    """

    tokens: int = 0
    flops: float = 0.0
    wall_seconds: float = 0.0
    device_hours: float = 0.0
    peak_memory_gib: float = 0.0
    energy_kwh: float | None = None
    energy_from: str = ""
    money: float | None = None
    currency: str = ""
    co2_kg: float | None = None
    device: str = ""
    country: str = ""

    def __add__(self, later: "Cost") -> "Cost":
        """The cost of both in succession; a value that is not known for one is not known for the sum."""
        new: dict[str, Any] = {"peak_memory_gib": max(self.peak_memory_gib, later.peak_memory_gib)}
        for name in _SUMS:
            values = getattr(self, name), getattr(later, name)
            new[name] = None if None in values else sum(values)
        for name in ("energy_from", "currency", "device"):
            new[name] = "; ".join(filter(None, dict.fromkeys(
                part for cost in (self, later) for part in getattr(cost, name).split("; "))))  # fmt: skip
        if self.currency and later.currency and self.currency != later.currency:  # cannot be added
            new["money"], new["currency"] = None, ""
        return replace(later, **new)

    def metrics(self, stage: str) -> dict[str, float]:
        """`cost/STAGE/NAME` -> value, where it is known."""
        values = {name: getattr(self, name) for name in (*_SUMS, "peak_memory_gib")}
        return {f"cost/{stage}/{name}": float(value) for name, value in values.items() if value is not None}

    def params(self, stage: str) -> dict[str, str]:
        """`cost/STAGE/NAME` -> how the numbers were obtained."""
        words = {name: getattr(self, name) for name in ("energy_from", "currency", "device", "country")}
        return {f"cost/{stage}/{name}": word for name, word in words.items() if word}

    def plain(self) -> dict[str, Any]:
        """Values for JSON, from which `Cost(**plain)` restores it."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [f"{self.tokens:,} tokens", f"{self.flops:.3g} FLOPs", f"{self.device_hours:.3g} device hours"]
        if self.energy_kwh is not None:
            parts.append(f"{self.energy_kwh:.3g} kWh {self.energy_from}")
        if self.money is not None:
            parts.append(f"{self.money:.3g} {self.currency}")
        if self.co2_kg is not None:
            parts.append(f"{self.co2_kg:.3g} kg CO2")
        return ", ".join(parts)


@dataclass(frozen=True)
class Ledger:
    """Cost accounting of a run, and the prices.

    Energy is measured if the devices have readable counters (NVML, RAPL; `pip install "inscp[cost]"`), else estimated
    as the devices' rated power over the whole time; the results say which.

    Args:
        enabled: false disables cost accounting.
        prices: price per device hour, by part of the device's name (`H100`; `CPU` is the whole CPU).
        currency: currency of the prices.
        country: country of the electricity, for CO2, as a three-letter code (`FIN`); null reports no CO2. Needs
            `inscp[cost]`.
        region: region of the country, if it matters (US states, Canadian provinces, Nordic price areas).
        watts: power of one device, for estimates; by default the rated power of known GPUs, and 5 W per CPU core.
    """

    enabled: bool = True
    prices: dict[str, float] = field(default_factory=dict)
    currency: str = "USD"
    country: str | None = None
    region: str | None = None
    watts: float | None = None

    def __post_init__(self) -> None:
        negative = next((name for name, price in self.prices.items() if price < 0), None)
        if negative or (self.watts is not None and self.watts <= 0):
            where = f"cost.prices.{negative}" if negative else "cost.watts"
            raise UserError(where, "it must be positive", "Give a positive number.")

    def start(self, devices: Sequence[torch.device], nodes: int = 1, earlier: Cost | None = None) -> "CostMeter":
        """Start a stage, or resume one.

        Args:
            devices: devices of this machine.
            nodes: number of machines that do the same.
            earlier: its cost before it was stopped.
        """
        return CostMeter(self, devices, nodes, earlier)

    def price(self, device: str) -> float | None:
        """The price per hour of a device of this name: that of the longest part of the name that has one."""
        fitting = [name for name in self.prices if name.lower() in device.lower()]
        return self.prices[max(fitting, key=len)] if fitting else None


class CostMeter:
    """Measures the cost of a running stage, including earlier attempts; made by `Ledger.start`."""

    def __init__(self, ledger: Ledger, devices: Sequence[torch.device], nodes: int, earlier: Cost | None) -> None:
        self._ledger, self._nodes, self._earlier = ledger, nodes, earlier
        self._intensity = co2_intensity(ledger.country, ledger.region) if ledger.country else None
        self._first = devices[0]
        self._name = device_name(self._first)
        self._count = nodes * (len(devices) if self._first.type == "cuda" else 1)
        self._processes = len(devices)
        self._sources = counters(devices)
        has_own = ("NVML" if self._first.type == "cuda" else "RAPL") in self._sources
        self._counter = EnergyCounter(devices, self._sources) if has_own else None
        self._started = time.perf_counter()

    def cost(self, tokens: int, flops: float) -> Cost:
        """The cost so far.

        Args:
            tokens, flops: those since this attempt began.
        """
        return self._cost(tokens, flops, self._counter.kwh() if self._counter else None)

    def stop(self, tokens: int, flops: float) -> Cost:
        """The final cost; counters are not read any more."""
        return self._cost(tokens, flops, self._counter.stop() if self._counter else None)

    def _cost(self, tokens: int, flops: float, measured: float | None) -> Cost:
        seconds = time.perf_counter() - self._started
        hours = seconds / 3600 * self._count
        energy: float | None
        if measured:  # codecarbon silently skips a counter that fails
            energy, source = measured * self._nodes, f"measured ({', '.join(self._sources)})"
        else:
            watts = self._ledger.watts or rated_watts(self._name, self._processes)
            energy = None if watts is None else hours * watts / 1000
            source = "" if watts is None else f"estimated ({self._count} x {watts:g} W)"
        price = self._ledger.price(self._name)
        now = Cost(
            tokens=tokens,
            flops=flops,
            wall_seconds=seconds,
            device_hours=hours,
            peak_memory_gib=peak_memory_gib(self._first),
            energy_kwh=energy,
            energy_from=source,
            money=None if price is None else hours * price,
            currency="" if price is None else self._ledger.currency,
            co2_kg=None if energy is None or self._intensity is None else energy * self._intensity,
            device=f"{self._count} x {self._name}",
            country=self._ledger.country or "",
        )
        return self._earlier + now if self._earlier else now


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far: of the GPU's tensors, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _GIB
