"""What a stage has cost: time, energy, money, CO2; what is not known is left out; parts add up."""

import time
from pathlib import Path

import psutil
import pytest
import torch

from inscp.cost import ledger as ledgers
from inscp.cost.energy import co2_intensity, counters
from inscp.cost.ledger import Cost, Ledger, peak_memory_gib
from inscp.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def no_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "counters", lambda devices: [])


def test_an_estimate_is_power_times_time_and_says_so(no_counters: None) -> None:
    ledger = Ledger(prices={"CPU": 0.36, "C": 9.0}, currency="EUR", watts=100.0)
    cost = ledger.start([CPU, CPU], nodes=2).stop(10, 5.0)
    assert cost.device_hours == pytest.approx(2 * cost.wall_seconds / 3600)  # a CPU is one device for all processes
    assert cost.energy_kwh == pytest.approx(0.1 * cost.device_hours)
    assert cost.energy_from == "estimated (2 x 100 W)"
    assert cost.money == pytest.approx(0.36 * cost.device_hours)
    assert cost.metrics("training").keys() == {
        f"cost/training/{name}"
        for name in ("tokens", "flops", "wall_seconds", "device_hours", "energy_kwh", "money", "peak_memory_gib")
    }
    assert cost.params("training") == {
        "cost/training/energy_from": "estimated (2 x 100 W)",
        "cost/training/currency": "EUR",
        "cost/training/device": "2 x CPU",
    }


def test_without_a_price_there_is_no_money_and_a_cpu_has_a_rated_power(no_counters: None) -> None:
    cost = Ledger(prices={"H100": 2.0}).start([CPU]).stop(0, 0.0)
    assert cost.money is None
    assert "cost/x/money" not in cost.metrics("x")
    assert cost.energy_from == f"estimated (1 x {5 * torch.get_num_threads()} W)"


def test_parts_add_up_and_keep_what_they_are(no_counters: None) -> None:
    first = Cost(10, 1.0, 2.0, 3.0, 4.0, 5.0, "measured (RAPL)", 6.0, "USD", None, "1 x CPU")
    both = first + Cost(1, 1.0, 1.0, 1.0, 1.0, 1.0, "estimated (1 x 10 W)", None, "", 2.0, "1 x CPU", "FIN")
    assert (both.tokens, both.flops, both.wall_seconds, both.device_hours, both.energy_kwh) == (11, 2.0, 3.0, 4.0, 6.0)
    assert both.peak_memory_gib == 4.0
    assert both.energy_from == "measured (RAPL); estimated (1 x 10 W)"
    assert both.money is None  # not that of the first part alone
    assert both.co2_kg is None
    assert both.device == "1 x CPU"
    assert Cost(**both.plain()) == both


def test_co2_is_that_of_the_country_s_electricity(no_counters: None) -> None:
    assert 0 < co2_intensity("SWE", None) < co2_intensity("POL", None) < 1.5
    assert co2_intensity("USA", "washington") != co2_intensity("USA", None)
    cost = Ledger(country="POL").start([CPU]).stop(0, 0.0)
    assert cost.energy_kwh is not None
    assert cost.co2_kg == pytest.approx(cost.energy_kwh * co2_intensity("POL", None))
    with pytest.raises(UserError, match="three-letter code"):
        Ledger(country="Atlantis").start([CPU])


def test_the_peak_of_a_process_is_no_less_than_what_it_holds_now() -> None:
    held = psutil.Process().memory_info().rss / 2**30
    assert 0.9 * held < peak_memory_gib(CPU) < psutil.virtual_memory().total / 2**30


def test_counters_are_read_where_there_are_any(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A RAPL counter of our own: a file, as the kernel shows it, is what the energy comes from."""
    package = tmp_path / "intel-rapl" / "intel-rapl:0"
    package.mkdir(parents=True)
    (package / "name").write_text("package-0")
    (package / "max_energy_range_uj").write_text("262143328850")
    (package / "energy_uj").write_text("1000000")
    import codecarbon.core.cpu as cpu

    monkeypatch.setattr(cpu, "_get_candidate_bases", lambda rapl_dir: [str(tmp_path)])
    monkeypatch.setattr(cpu.IntelRAPL, "_setup_rapl", cpu.IntelRAPL._fetch_rapl_files)
    assert counters([CPU]) == ["RAPL"]
    running = Ledger(watts=1e6).start([CPU], nodes=2)  # which are taken to be alike
    assert running.cost(0, 0.0).energy_from == "estimated (2 x 1e+06 W)", "a counter that stands still has failed"
    (package / "energy_uj").write_text(str(1_000_000 + 36_000_000))
    time.sleep(0.1)  # a reading that is no older than half of that is taken again
    assert running.cost(0, 0.0).energy_kwh == pytest.approx(2 * 36 / 3.6e6, rel=1e-3)
    (package / "energy_uj").write_text(str(1_000_000 + 72_000_000))
    time.sleep(0.1)
    cost = running.stop(0, 0.0)
    assert cost.energy_kwh == pytest.approx(2 * 72 / 3.6e6, rel=1e-3)
    assert cost.energy_from == "measured (RAPL)"


@pytest.mark.parametrize("wrong", [{"prices": {"H100": -1.0}}, {"watts": 0.0}])
def test_what_cannot_be_is_reported(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="positive"):
        Ledger(**wrong)  # type: ignore[arg-type]


def test_money_of_two_currencies_is_not_added_and_devices_are_distinguished() -> None:
    one, other = Cost(money=2.0, currency="USD", device="11 x CPU"), Cost(money=3.0, currency="EUR", device="1 x CPU")
    both = one + other
    assert (both.money, both.currency, both.device) == (None, "", "11 x CPU; 1 x CPU")
    assert (one + one).device == "11 x CPU"
    assert ((one + one).money, (one + one).currency) == (4.0, "USD")


def test_the_power_of_a_cpu_is_that_of_all_processes_that_share_it(no_counters: None) -> None:
    one, two = (Ledger().start([CPU] * processes).cost(0, 0.0) for processes in (1, 2))
    assert [cost.energy_from for cost in (one, two)] == [
        f"estimated (1 x {5 * torch.get_num_threads() * processes:g} W)" for processes in (1, 2)
    ]
