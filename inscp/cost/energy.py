"""The energy of devices, read by codecarbon from their counters (NVML for GPUs, RAPL for CPUs), and its emissions."""

import logging
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch

from inscp.errors import UserError
from inscp.optional import library

_SECONDS = 15
"""Seconds between two readings; RAPL's counters wrap around after some minutes."""


def counters(devices: Sequence[torch.device]) -> list[str]:
    """The counters of the devices that can be read on this machine: `NVML`, `RAPL`, both or neither."""
    if find_spec("codecarbon") is None:
        return []
    _silence()
    has_gpus = any(device.type == "cuda" for device in devices) and torch.version.cuda is not None
    has_cpu = library("codecarbon.core.cpu", "cost").is_rapl_available()
    return ["NVML"] * has_gpus + ["RAPL"] * has_cpu


class EnergyCounter:
    """Adds up the energy of the devices from now on, in two threads that sleep most of the time.

    GPUs are the given ones, or all those in CUDA_VISIBLE_DEVICES if it is set. If RAPL can be read, the whole CPU is
    counted, including other programs on it. Memory, fans and power supplies are not counted.

    Args:
        devices: the devices of this machine that compute.
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
        """The energy so far."""
        self._tracker.flush()
        return self._sum()

    def stop(self) -> float:
        """Stop counting; returns the total in kWh."""
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
        """Called by codecarbon; there is nothing left to write."""


def co2_intensity(country: str, region: str | None) -> float:
    """Kilograms of CO2 equivalent per kWh of a country's electricity, from codecarbon's tables.

    Args:
        country: three-letter code (ISO 3166-1 alpha-3).
        region: region of the United States, Canada, China or a Nordic country.

    Raises:
        UserError: the country is not in the tables.
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
    """Silence codecarbon's log messages on import and setup."""
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
