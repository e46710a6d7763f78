"""Speed-ups from panels against closed forms, printed tables and scipy's own tests."""

import math

import numpy as np
import pytest
from llmstudy.stats.panels import Comparison, choose, compare, dunnett, pooled_degrees, power, verdict
from scipy import stats

NAMES = "abcdefg"
FAMILY = dict.fromkeys(NAMES, "generate")


def panels(processes=3, rounds=6, names=NAMES, sd=0.05, seed=0):
    """Return blocks in which every next configuration is 10 % slower."""
    rng = np.random.default_rng(seed)
    return [
        {name: 10 * 1.1**i * np.exp(sd * rng.standard_normal(rounds)) for i, name in enumerate(names)}
        for _ in range(processes)
    ]


def interval(comparison):
    return comparison.low, comparison.high


def ends(comparison):
    return comparison.low, comparison.high, comparison.bound_low, comparison.bound_high


# --------------------------------------------------------------------------------------------------------- quantiles


@pytest.mark.parametrize(
    ("degrees", "printed"),
    [
        (5, [2.57, 3.03, 3.29, 3.48, 3.62, 3.73]),
        (10, [2.23, 2.57, 2.76, 2.89, 2.99, 3.07]),
        (20, [2.09, 2.38, 2.54, 2.65, 2.73, 2.80]),
        (60, [2.00, 2.27, 2.41, 2.51, 2.58, 2.64]),
    ],
)
def test_dunnett_s_quantiles_are_those_of_his_table(degrees, printed):
    """Two-sided, 5 % (Dunnett, Biometrics 20, 1964, table II)."""
    assert [dunnett(m, degrees) for m in range(1, 7)] == pytest.approx(printed, abs=0.0051)


@pytest.mark.parametrize("degrees", [1, 2, 5.3, 200])
def test_one_comparison_is_student_s_t_and_more_stay_below_bonferroni(degrees):
    assert dunnett(1, degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-4)
    assert dunnett(1, degrees) < dunnett(6, degrees) < stats.t.ppf(1 - 0.025 / 6, degrees)


def test_pooled_degrees_are_box_s():
    for m in (1, 2, 6):
        covariance = np.full((m, m), 0.5) + 0.5 * np.eye(m)
        box = np.trace(covariance) ** 2 / np.trace(covariance @ covariance)
        assert pooled_degrees(2 * m, m) == pytest.approx(2 * box)
    assert pooled_degrees(12, 6, 1.0) == 2 and pooled_degrees(12, 6, 0.0) == 12


def test_power_is_that_of_the_noncentral_t():
    for processes, ratio in ((3, 1.1), (3, 1.2), (3, 1 / 1.2), (5, 1.2), (5, 1.5)):
        degrees = pooled_degrees(6 * (processes - 1), 6)
        error, critical = 0.088 / math.sqrt(processes), dunnett(6, degrees)
        shift = math.log(ratio) / error
        expected = stats.nct.sf(critical, degrees, shift) + stats.nct.cdf(-critical, degrees, shift)
        assert power(error, degrees, 6, ratio) == pytest.approx(expected, abs=1e-3)
    assert power(0.05, 5.3, 1, 1.0) == pytest.approx(0.05, abs=1e-4)
    assert power(0.003, 5.3, 6, 2.0) == pytest.approx(1.0)  # scipy's is NaN here


# ----------------------------------------------------------------------------------------------------------- panels


def test_a_comparison_by_hand():
    blocks = panels()
    ratios = np.array([[np.median(np.log(b["a"] / b[name])) for name in NAMES[1:]] for b in blocks])
    error = math.sqrt(ratios.var(axis=0, ddof=1).mean() / 3)
    degrees = 2 * 6 / (1 + 5 / 4)
    compared = compare(blocks, "a", FAMILY)
    assert list(compared) == list(NAMES[1:])
    for name, mean in zip(NAMES[1:], ratios.mean(axis=0)):
        adjusted, alone = dunnett(6, math.floor(10 * degrees) / 10) * error, stats.t.ppf(0.95, degrees) * error
        assert compared[name].value == pytest.approx(math.exp(mean))
        assert interval(compared[name]) == pytest.approx((math.exp(mean - adjusted), math.exp(mean + adjusted)))
        assert compared[name].bound_low == pytest.approx(math.exp(mean - alone))
        assert compared[name].bound_high == pytest.approx(math.exp(mean + alone))
        assert (compared[name].processes, compared[name].degrees) == (3, pytest.approx(degrees))
        assert compared[name].error == pytest.approx(error)


def test_a_key_aside_shares_its_spread_and_makes_no_other_interval_wider():
    blocks = panels()
    compared, all_of_them = compare(blocks, "a", FAMILY, aside="g"), compare(blocks, "a", FAMILY)
    for name in "bcdef":
        error = all_of_them[name].error
        assert compared[name].low == pytest.approx(compared[name].value * math.exp(-dunnett(5, 5.3) * error))
        assert ends(compared[name])[2:] == ends(all_of_them[name])[2:]
    alone = math.exp(stats.t.ppf(0.975, 5.3) * all_of_them["g"].error)
    assert interval(compared["g"]) == pytest.approx((compared["g"].value / alone, compared["g"].value * alone))
    fast = [block | {"g": 0.5 * block["g"]} for block in blocks]
    wide, narrow = (choose(fast, "bcdef", FAMILY, dict.fromkeys(NAMES, 1.0), 10, 0.1, aside) for aside in ("", "g"))
    assert wide.taken == narrow.taken and set(narrow.unsettled) <= set(wide.unsettled)


def test_rounds_are_paired():
    """A machine whose speed changes tenfold from round to round, all of it common: the ratio is exact."""
    speed = np.array([1.0, 10, 2, 5, 7, 3])
    blocks = [{"a": 3 * speed, "b": 2 * speed}, {"a": 30 * speed, "b": 20 * speed * 1.01}]
    compared = compare(blocks, "a", {"a": 0, "b": 0})["b"]
    assert compared.value == pytest.approx(1.5 / math.sqrt(1.01))
    assert compared.low > 1.4 / 1.01
    moved = compare([block | {"b": np.roll(block["b"], 1)} for block in blocks], "a", {"a": 0, "b": 0})["b"]
    assert moved.value != pytest.approx(compared.value, rel=0.05)


def test_rounds_that_failed_are_left_out():
    blocks = panels()
    without = [dict(block) for block in blocks]
    for block in without:
        block["b"] = np.where(np.arange(6) % 3 == 1, np.nan, block["b"])
    expected = [np.median(np.log(b["a"] / b["b"])[[0, 2, 3, 5]]) for b in blocks]
    assert compare(without, "a", FAMILY)["b"].value == pytest.approx(math.exp(np.mean(expected)))
    without[0]["b"] = np.full(6, np.nan)
    compared = compare(without, "a", FAMILY)["b"]
    assert compared.value == pytest.approx(math.exp(np.mean(expected[1:]))) and compared.processes == 2


def test_one_process_has_no_interval():
    for compared in compare(panels(processes=1), "a", FAMILY).values():
        assert np.isnan(ends(compared)).all() and compared.processes == 1
        assert verdict(compared, 0.1) == "not enough data"
    blocks = panels()
    del blocks[1]["g"], blocks[2]["g"]
    compared = compare(blocks, "a", FAMILY)
    assert np.isnan(ends(compared["g"])).all() and compared["g"].processes == 1  # no spread is borrowed
    five = compare(blocks, "a", dict.fromkeys(NAMES[:-1], 0))
    assert interval(compared["b"]) == interval(five["b"])  # and it does not count among the comparisons


@pytest.mark.parametrize("blocks", [[], panels(names="bcd"), panels(names="a")])
def test_what_was_not_measured_is_not_compared(blocks):
    for compared in compare(blocks, "a", {"a": 0, "b": 0}).values():
        assert np.isnan((compared.value, *ends(compared))).all() and compared.processes == 0


def test_impossible_times():
    with pytest.raises(ValueError, match="positive"):
        compare([{"a": np.array([1.0, 0.0]), "b": np.array([1.0, 1.0])}], "a", {"a": 0, "b": 0})


def test_many_studies_at_once_are_each_alone():
    studies = [panels(seed=seed) for seed in range(4)]
    together = [{name: np.stack([s[p][name] for s in studies]) for name in NAMES} for p in range(3)]
    family = FAMILY | {"f": "graph", "g": "graph"}
    compared = compare(together, "a", family)
    for i, study in enumerate(studies):
        for name, alone in compare(study, "a", family).items():
            assert ends(alone) == pytest.approx([end[i] for end in ends(compared[name])])
            assert alone.processes == compared[name].processes[i]


# --------------------------------------------------------------------------------------------------------- families


def widths(compared, names):
    return [math.log(compared[name].bound_high / compared[name].bound_low) for name in names]


def test_families_do_not_share_their_spread():
    quiet, noisy = panels(names="abcd", sd=0.001), panels(names="efg", sd=0.2, seed=1)
    family = dict.fromkeys("abcd", "graph") | dict.fromkeys("efg", "generate")
    both = compare([one | other for one, other in zip(quiet, noisy)], "a", family)
    alone = compare(quiet, "a", dict.fromkeys("abcd", "graph"))
    assert widths(both, "bcd") == pytest.approx(widths(alone, "bcd"))
    assert min(widths(both, "efg")) > 50 * max(widths(both, "bcd"))
    assert both["b"].low < alone["b"].low  # six comparisons instead of three


def test_pooling_adds_no_degrees_where_the_noise_is_the_base_s():
    """Four graphs against a noisy base: their ratios are one number, whose spread has two degrees of freedom."""
    blocks = [one | other for one, other in zip(panels(names="a", sd=0.2), panels(names="bcde", sd=1e-6, seed=1))]
    compared = compare(blocks, "a", {"a": "generate"} | dict.fromkeys("bcde", "graph"))
    ratios = [np.median(np.log(block["a"] / block["b"])) for block in blocks]
    expected = 2 * stats.t.ppf(0.95, 2) * np.std(ratios, ddof=1) / math.sqrt(3)
    assert widths(compared, "bcde") == pytest.approx([expected] * 4, rel=1e-3)


def test_pooling_adds_degrees_where_the_noise_is_the_family_s_own():
    """Two whose ratios to a base of another family do not correlate: counted as if by 1/2, never as fewer."""
    errors = {"b": (0.01, -0.01, 0.0), "c": (0.01, 0.01, -0.02)}
    blocks = [{"a": np.ones(6)} | {name: np.exp(np.full(6, e[i])) for name, e in errors.items()} for i in range(3)]
    compared = compare(blocks, "a", {"a": "graph", "b": "generate", "c": "generate"})
    expected = 2 * stats.t.ppf(0.95, 4 / 1.25) * math.sqrt((2e-4 + 6e-4) / 4 / 3)
    assert widths(compared, "bc") == pytest.approx([expected] * 2)


# --------------------------------------------------------------------------------------------------------- unpaired


def alone(blocks):
    """Return a block per configuration: processes of one."""
    return [{name: times} for block in blocks for name, times in block.items()]


def test_processes_of_one_configuration_are_dunnett_s_own_case():
    blocks = panels(processes=5)
    compared = compare(alone(blocks), "a", FAMILY)
    logs = {name: [-np.median(np.log(block[name])) for block in blocks] for name in NAMES}
    test = stats.dunnett(*(logs[name] for name in NAMES[1:]), control=logs["a"], rng=np.random.default_rng(0))
    expected = test.confidence_interval(0.95)
    for i, name in enumerate(NAMES[1:]):
        assert compared[name].value == pytest.approx(math.exp(np.mean(logs[name]) - np.mean(logs["a"])))
        assert np.log(interval(compared[name])) == pytest.approx([expected.low[i], expected.high[i]], abs=2e-3)
        assert compared[name].processes == 5


def test_unpaired_without_pooling_is_the_t_test_of_two_samples():
    compared = compare(alone(blocks := panels(names="ab")), "a", {"a": 0, "b": 0})["b"]
    logs = [[np.median(np.log(block[name])) for block in blocks] for name in "ab"]
    expected = stats.ttest_ind(*logs).confidence_interval(0.90)
    assert np.log([compared.bound_low, compared.bound_high]) == pytest.approx([expected.low, expected.high])
    one = compare(alone(blocks)[:-1] + alone(panels(names="b", seed=5)), "a", {"a": 0, "b": 1})["b"]
    assert one.processes == 3 and one.bound_high > one.value


def test_groups_are_compared_through_the_reference_in_each():
    """Two groups in processes whose speed differs tenfold: by their times alone nothing could be said."""
    blocks = []
    for i, block in enumerate(panels(sd=0.01)):
        blocks.append({name: block[name] for name in "abcd"})
        blocks.append({name: times * 10 ** (i - 1) for name, times in block.items() if name in "aefg"})
    compared = compare(blocks, "b", FAMILY)
    own = np.array([np.median(np.log(block["a"] / block["g"])) for block in blocks[1::2]])
    base = np.array([np.median(np.log(block["a"] / block["b"])) for block in blocks[::2]])
    assert compared["g"].value == pytest.approx(math.exp(own.mean() - base.mean()))
    assert 0.9 < compared["g"].low / compared["g"].value < 1
    assert compared["c"].value == pytest.approx(compare(blocks[::2], "b", FAMILY)["c"].value)
    assert (compared["g"].processes, compared["c"].processes, compared["a"].processes) == (3, 3, 3)
    gap = np.full(6, np.nan)  # the same with one block for each process, whose groups share no round
    joined = [
        {key: np.concatenate([one.get(key, gap), other.get(key, gap)]) for key in NAMES}
        for one, other in zip(blocks[::2], blocks[1::2])
    ]
    for key, its in compare(joined, "b", FAMILY).items():
        assert (its.value, *ends(its), its.processes) == pytest.approx(
            (compared[key].value, *ends(compared[key]), compared[key].processes)
        )


# -------------------------------------------------------------------------------------------------------- decisions


@pytest.mark.parametrize(
    ("simultaneous", "single", "word"),
    [
        ((1.01, 1.60), (1.10, 1.50), "faster"),
        ((0.60, 0.99), (0.65, 0.95), "slower"),
        ((0.90, 1.12), (0.95, 1.05), "same"),
        ((1.01, 1.09), (1.02, 1.08), "same"),  # shown to be faster, and by less than matters
        ((0.80, 1.25), (0.85, 1.20), "not enough data"),
        ((0.85, 1.15), (0.90, 1.05), "not enough data"),  # 1 / 0.9 is more than 1.1
        ((0.95, 1.15), (0.99, 1.11), "not enough data"),
        ((math.nan, math.nan), (math.nan, math.nan), "not enough data"),
    ],
)
def test_verdicts(simultaneous, single, word):
    assert verdict(Comparison(1.0, *simultaneous, *single, 3), 0.1) == word


def choice(ratios, memory, device=10.0, sd=0.01, processes=3, margin=0.1):
    rng = np.random.default_rng(2)
    blocks = [
        {name: ratio * np.exp(sd * rng.standard_normal(6)) for name, ratio in ratios.items()} for _ in range(processes)
    ]
    return choose(blocks, list(ratios), dict.fromkeys(ratios, 0), memory, device, margin)


def test_the_fastest_is_taken():
    chosen = choice({"a": 1.3, "b": 1.0, "c": 1.5}, {"a": 1, "b": 9, "c": 1})
    assert chosen == ("b", ())


def test_what_saves_memory_and_is_shown_to_be_as_good_stands_before_it():
    times = {"a": 1.0, "b": 1.03, "c": 1.04, "d": 1.3}
    assert choice(times, {"a": 9, "b": 6, "c": 5, "d": 1}).taken == "c"
    assert choice(times, {"a": 9, "b": 8.6, "c": 8.6, "d": 1}).taken == "a"  # saves 4 % of the device
    assert choice(times, {"a": 9, "b": 6, "c": math.nan, "d": 1}).taken == "b"
    assert choice(times, {"a": 9, "b": 6, "c": 5, "d": 1}, sd=0.2).taken == "a"  # no evidence that c is as good
    assert choice(times, {"a": 9, "b": 6, "c": 5, "d": 1}, margin=0.01).taken == "a"


def test_what_cannot_be_told_apart_is_named():
    noisy = choice({"a": 1.0, "b": 1.1, "c": 9.0}, {"a": 1, "b": 1, "c": 1}, sd=0.3)
    assert noisy.unsettled == tuple({"a", "b"} - {noisy.taken})
    single = choice({"a": 1.0, "b": 1.1, "c": 9.0}, {"a": 1, "b": 1, "c": 1}, processes=1)
    assert single == ("a", ("b", "c"))
    assert choice({"a": 1.0}, {"a": 1}).unsettled == ()
    assert choice({"a": 1.0, "b": 1.0}, {"a": 1, "b": 1}).unsettled == ()  # the same


def test_candidates_need_not_be_all_that_was_measured():
    blocks, memory = panels(sd=0.01), dict.fromkeys(NAMES, 1.0)
    chosen = choose(blocks, "ce", FAMILY, memory, 10, 0.1)
    assert chosen == ("c", ())
    assert choose(alone(blocks), "ce", FAMILY, memory, 10, 0.1) == chosen


def test_the_estimate_is_against_what_most_processes_hold():
    """Against the first key, which one process held, c would be twice as fast as b; it is slower on the average."""
    blocks = [{"b": np.full(6, 1.0), "c": np.full(6, time)} for time in (0.5, 1.5, 1.5)]
    blocks[0]["a"] = np.full(6, 2.0)
    assert choose(blocks, "abc", dict.fromkeys("abc", 0), dict.fromkeys("abc", 1.0), 10, 0.1).taken == "b"
