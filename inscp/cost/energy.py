"""The energy that devices take: read from their counters (NVML of GPUs, RAPL of CPUs) by codecarbon, or estimated."""

import logging
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch

from inscp.errors import UserError
from inscp.optional import library

_SECONDS = 15
"""Between two readings; RAPL's counters begin anew after some minutes."""


def counters(devices: Sequence[torch.device]) -> list[str]:
    """Which counters of the devices can be read here: `NVML`, `RAPL`, or none of them."""
    if find_spec("codecarbon") is None:
        return []
    _silence()
    has_gpus = any(device.type == "cuda" for device in devices) and torch.version.cuda is not None
    has_cpu = library("codecarbon.core.cpu", "cost").is_rapl_available()
    return ["NVML"] * has_gpus + ["RAPL"] * has_cpu


class EnergyCounter:
    """Adds up what the devices take from now on, in two threads that sleep most of the time.

    GPUs are those given, or all that CUDA_VISIBLE_DEVICES names where it is set. The CPU is counted whole, with what
    else runs on it, where RAPL can be read. Memory, fans and power supplies are not counted.

    Args:
        devices: of this machine, what computes.
        sources: the `counters` to read.
    """

    def __init__(self, devices: Sequence[torch.device], sources: Sequence[str]) -> None:
        _silence()
        self._sources, self._totals = sources, None
        indices = [device.index for device in devices if device.type == "cuda"]
        which = {} if "CUDA_VISIBLE_DEVICES" in os.environ else {"gpu_ids": indices}
        self._tracker = library("codecarbon", "cost").OfflineEmissionsTracker(
            measure_power_secs=_SECONDS, log_level="critical", allow_multiple_runs=True, output_handlers=[self],
            save_to_file=False, save_to_api=False, save_to_logger=False, **which,
        )  # fmt: skip
        self._tracker.start()

    def kwh(self) -> float:
        """What they have taken so far."""
        self._tracker.flush()
        return self._sum()

    def stop(self) -> float:
        """What they have taken; nothing is added any more."""
        self._tracker.stop()
        return self._sum()

    def _sum(self) -> float:
        if self._totals is None:
            return 0.0
        parts = {"NVML": self._totals.gpu_energy, "RAPL": self._totals.cpu_energy}
        return sum(float(parts[source]) for source in self._sources)

    def out(self, total: Any, delta: Any) -> None:
        """Receives codecarbon's totals."""
        self._totals = total

    live_out = out

    def exit(self) -> None:
        """Nothing is left to write."""


def co2_intensity(country: str, region: str | None) -> float:
    """Kilograms of CO2 equivalent a kWh of a country's electricity, as codecarbon's tables have it.

    Args:
        country: three letters (ISO 3166-1 alpha-3).
        region: of the United States, Canada, China or a Nordic country.

    Raises:
        UserError: no such country in the tables.
    """
    emissions = library("codecarbon.core.emissions", "cost")
    _silence()
    data = library("codecarbon.input", "cost").DataSource()
    if country.upper() not in data.get_global_energy_mix_data():
        raise UserError("cost.country", f"{country} is not known", "Give a three-letter code, such as FIN, TWN or USA.")
    kwh = library("codecarbon.core.units", "cost").Energy.from_energy(1.0)
    place = library("codecarbon.external.geography", "cost").GeoMetadata(country, region=region)
    return float(emissions.Emissions(data).get_private_infra_emissions(kwh, place))


def _silence() -> None:
    """Silence what codecarbon logs on its import and setup."""
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
