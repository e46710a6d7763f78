"""The sentences that tie background chapters to the tables: right row, right numbers, no crash on a partial study."""

import numpy as np
import pandas as pd
import pytest
from llmstudy.errors import StudyError
from llmstudy.report.ties import MISSING, TIES, sentence

SEVEN_B = {"study": "h200", "model": "llama-7b", "weights": "synthetic", "device": "NVIDIA H200"}
SMALL_GPU = {"study": "h200", "model": "smol", "weights": "real", "device": "NVIDIA H200"}
SMALL_CPU = {"study": "default", "model": "smol", "weights": "real", "device": "cpu"}


def cell(place, precision="bf16", runtime="generate", attention="sdpa-flash", status="ok", **values):
    kind = {"precision": precision, "runtime": runtime, "attention": attention}
    return place | kind | {"status": status, "reason": "" if status == "ok" else "why"} | values


def latency(place, tpot, repeat=0, batch=1, prompt=512, new=128, **values):
    defaults = {"ttft_ms": 20.0, "mbu": 0.5, "bandwidth_gb_s": 4280.0}
    workload = {"batch": batch, "prompt_tokens": prompt, "new_tokens": new, "repeat": repeat, "tpot_ms": tpot}
    return cell(place, **(defaults | workload | values))


def quality(place, precision, **values):
    defaults = {"corpus": "wiki", "protocol": "w1024-s512", "tokens": 20479, "nll": 3.0, "ppl": 20.99}
    return cell(place, precision, **(defaults | values))


@pytest.fixture
def tables():
    """A GPU study of a synthetic 7B shape and a real small model, and a CPU study; means are 20.0, 4.0, 104.0 …"""
    speed = [
        *(latency(SEVEN_B, tpot, repeat) for repeat, tpot in enumerate((16.0, 20.0, 25.0))),
        latency(SEVEN_B, 30.0, attention="eager", ttft_ms=28.0),
        latency(SEVEN_B, 25.0, batch=8),
        latency(SEVEN_B, 4.0, runtime="graph", mbu=0.8),
        latency(SEVEN_B, 2.0, runtime="graph", precision="int8-fused", mbu=0.75),
        latency(SEVEN_B, 104.0, precision="llm-int8", mbu=0.015),
        latency(SEVEN_B, 62.0, precision="llm-int8-t0", mbu=np.nan, ttft_ms=64.0),
        latency(SMALL_GPU, 9.0),
        latency(SMALL_CPU, 500.0, mbu=np.nan),
        latency(SEVEN_B, np.nan, precision="nf4", status="oom"),
    ]
    stored = [
        cell(SEVEN_B, batch=1, prompt_tokens=512, new_tokens=128, weights_gib=12.5, kv_cache_gib=0.3125),
        cell(SEVEN_B, "int8-fused", batch=1, prompt_tokens=512, new_tokens=128, weights_gib=6.5, kv_cache_gib=0.3125),
        cell(SEVEN_B | {"model": "llama-70b"}, batch=1, prompt_tokens=512, new_tokens=128, weights_gib=128.0),
        cell(SEVEN_B | {"model": "llama-70b"}, status="oom", batch=8, prompt_tokens=2048, new_tokens=8),
        cell(SEVEN_B | {"model": "llama-70b"}, "nf4", batch=8, prompt_tokens=2048, new_tokens=8, weights_gib=35.0),
        cell(SEVEN_B | {"model": "llama-70b"}, "int8", batch=1, prompt_tokens=512, new_tokens=128, weights_gib=65.0),
    ]
    for row, peak in zip(stored, (13.0, 7.0)):
        row["peak_prefill_gib"] = peak
    stored.append(stored[0] | {"attention": "sdpa-math", "peak_prefill_gib": 17.5})
    scored = [
        quality(SMALL_CPU, "fp32", kl_nats=0.0, top1_agreement=1.0, ppl_ratio=1.0),
        quality(
            SMALL_CPU,
            "llm-int8",
            kl_nats=0.0183,
            top1_agreement=0.921,
            ppl_ratio=1.0185,
            ppl_ratio_low=1.017,
            ppl_ratio_high=1.02,
        ),
        quality(SMALL_CPU, "nf4", kl_nats=0.278, top1_agreement=0.715, ppl_ratio=1.281),
        quality(SEVEN_B, "int8-fused", kl_nats=0.0001, top1_agreement=1.0, ppl_ratio=0.9),
    ]
    texts = [
        cell(SMALL_CPU, "fp32", prompts=4, new_tokens=24, distinct_2_mean=0.95),
        cell(SMALL_CPU, "nf4", prompts=4, new_tokens=24, distinct_2_mean=0.8, exact_match=0.0)
        | {"identical_tokens_mean": 5.25},
        cell(SMALL_CPU, prompts=4, new_tokens=24, distinct_2_mean=0.94, exact_match=0.75, identical_tokens_mean=21.0),
    ]
    extras = {
        "profile": [
            cell(SEVEN_B, "llm-int8", launches_per_token=5000, syncs_per_token=224, device_busy_share=0.2)
            | {"operators_per_token": 6400, "tpot_ms": 104.0},
            cell(SEVEN_B, runtime="graph", launches_per_token=1, syncs_per_token=1, device_busy_share=0.99)
            | {"operators_per_token": 0, "tpot_ms": 4.0},
        ],
        "outliers": [
            cell(SMALL_CPU, "llm-int8", layer=layer, linear=linear, threshold=threshold, column_share=share)
            | {"entry_share": share / 100, "tokens": 16327}
            for layer, linear, threshold, share in (
                (0, "q_proj", 6.0, 0.01),
                (7, "down_proj", 6.0, 0.03),
                (7, "down_proj", 2.0, 0.5),
            )
        ],
        "attention": [
            cell(SEVEN_B, attention=kernel, prompt_tokens=length, time_ms=time, tflops=100.0, extra_mib=extra, heads=32)
            for kernel, length, time, extra in (
                ("sdpa-math", 512, 0.2, 80.0),
                ("sdpa-flash", 512, 0.02, 4.0),
                ("sdpa-math", 4096, 13.2, 5120.0),
                ("sdpa-flash", 4096, 0.51, 32.5),
                ("sdpa-flash", 16384, 6.4, 128.0),
            )
        ]
        + [
            cell(SEVEN_B, attention=kernel, phase="decode", context=4096, time_ms=time, gb_s=rate)
            for kernel, time, rate in (("sdpa-math", 0.21, 320.0), ("sdpa-flash", 0.025, 2700.0))
        ],
        "sensitivity": [
            cell(SMALL_CPU, "fp32", layer="3", linear="all", delta_nll=-0.001, kl_nats=0.002, kl_se_nats=0.0004),
            cell(SMALL_CPU, "fp32", layer="4", linear="all", delta_nll=0.004, kl_nats=0.001),
            cell(SMALL_CPU, "fp32", layer="all", linear="down_proj", delta_nll=0.01, kl_nats=0.03),
            cell(SMALL_CPU, "fp32", layer="all", linear="all", delta_nll=0.02, kl_nats=0.05),
        ],
    }
    listed = {"speed": speed, "memory": stored, "quality": scored, "text": texts, **extras}
    return {name: pd.DataFrame(rows) for name, rows in listed.items()}


@pytest.mark.parametrize("name", TIES)
def test_every_sentence_is_whole_and_says_where_it_comes_from(name, tables):
    text = sentence(name, tables)
    assert text != MISSING
    assert text.endswith(".") and "nan" not in text
    assert "](results/" in text
    assert "llama-" not in text or "synthetic weights" in text


@pytest.mark.parametrize("name", TIES)
def test_every_name_says_what_its_sentence_must_say(name):
    assert TIES[name].__doc__.splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", TIES)
def test_missing_tables_columns_and_rows_give_the_stock_sentence(name, tables):
    assert sentence(name, {}) == MISSING
    assert sentence(name, {key: table.iloc[:0] for key, table in tables.items()}) == MISSING
    assert (
        sentence(name, {key: table.drop(columns="status") for key, table in tables.items() if key != "speed"})
        == MISSING
    )


@pytest.mark.parametrize("name", TIES)
def test_a_study_in_which_everything_failed_still_renders(name, tables):
    failed = {key: table.assign(status="error") for key, table in tables.items()}
    text = sentence(name, failed)
    assert text == MISSING or name == "failed_cells"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("weights_memory", ["12.5 GiB", "0.312 GiB", "batch 1, 512 + 128 tokens"]),
        ("kv_cache", ["512 KiB"]),
        (
            "does_not_fit",
            ["`llama-70b`", "batch 8, 2048 + 8 tokens): `bf16` ends as `oom`, `nf4` runs with 35 GiB"],
        ),
        ("int8_memory", ["12.5 GiB", "6.5 GiB", "52%"]),
        ("score_matrix_memory", ["5 GiB above the weights with `sdpa-math`", "0.5 GiB with `sdpa-flash`"]),
        ("prefill_against_decode", ["0.0391 ms", "decode 4 ms", "102 times"]),
        ("decode_bandwidth", ["4 ms", "80%", "4,280 GB/s", "`graph`"]),
        ("batching", ["from batch 1 to 8", "20 ms to 25 ms", "8 times the tokens"]),
        ("bitsandbytes_slow", ["104 ms", "MBU 1.5%", "20 ms", "5.2 times"]),
        ("threshold_zero", ["104 ms", "62 ms", "1.68 times"]),
        ("int8_fused_fast", ["4 ms", "2 ms", "2 times"]),
        ("int8_activations", ["512 + 128 tokens): a first token takes `llm-int8-t0` 64 ms and `bf16` 20 ms"]),
        ("attention_decode", ["over 4096 tokens", "`sdpa-flash` 25 µs (2,700 GB/s), `sdpa-math` 210 µs (320 GB/s) ("]),
        (
            "launches",
            [
                "`llm-int8` in `eager` 5,000 launches and 224 synchronisations, device busy 20%, 6,400 operators of "
                "16.2 µs each",
                "`bf16` in `graph` 1 launch and 1 synchronisation, device busy 99% (",
            ],
        ),
        (
            "attention_growth",
            ["512 to 4096 tokens: `sdpa-flash` from 0.02 to 0.51 ms, `sdpa-math` from 0.2 to 13.2 ms ("],
        ),
        # Two studies: what every row of the one has, and what the other's one row has.
        ("bandwidth_spread", ["4,280 to 4,280 GB/s ([processes.csv](results/h200", "(results/default"]),
        ("attention_time", ["for 4096 tokens", "`sdpa-flash` 0.51 ms (100 TFLOP/s), `sdpa-math` 13.2 ms"]),
        # 16, 20 and 25 ms: twice 25 %, and 56.25 %
        ("same_against_same", ["25.0% in the median and", "56.2% at most (study `h200`, `llama-7b`", "over 3 pairs"]),
        ("failed_cells", ["1 ended as `oom`"]),
        ("reference_perplexity", ["20,479 tokens", "20.99", "`fp32`"]),
        (
            "greedy_agreement",
            [
                "4 greedy texts of 24 tokens",
                "`bf16` for 21.0 tokens, 75% of the texts to the end, distinct-2 0.94; `nf4` for 5.2 tokens, 0% of",
                "own distinct-2: `fp32` 0.95",
            ],
        ),
        ("top1_agreement", ["`fp32` 100.0%, `llm-int8` 92.1%, `nf4` 71.5%"]),
        ("rulers", ["`fp32` 0, `llm-int8` 0.0183, `nf4` 0.278"]),
        ("int8_quality", ["`llm-int8` 1.0185 [1.0170, 1.0200]"]),
        ("nf4_quality", ["`llm-int8` 1.0185 [1.0170, 1.0200], `nf4` 1.2810"]),
        ("outliers", ["16,327 tokens, 2.00%", "0.020% of their values", "`down_proj` of layer 7", "3.00% of the"]),
        ("sensitivity", ["layer 3 moves", "0.002 nats of KL divergence per token (standard error 0.0004)"]),
    ],
)
def test_numbers(name, expected, tables):
    text = sentence(name, tables)
    for part in expected:
        assert part in text


def test_every_sentence_has_its_numbers_tested():
    tested = {case[0] for case in test_numbers.pytestmark[0].args[1]}
    assert tested == set(TIES)


def test_quality_never_speaks_of_synthetic_weights(tables):
    tables["quality"] = tables["quality"].assign(weights="synthetic")
    assert sentence("int8_quality", tables) == MISSING


def test_prefill_peaks_of_a_cpu_are_not_compared(tables):
    on_cpu = tables["memory"].assign(device="cpu")
    assert sentence("score_matrix_memory", {"memory": on_cpu}) == MISSING


def test_without_prefill_peaks_of_models_those_of_the_kernels_are_told(tables):
    """32 heads x 4096 x 4096 scores of 2 bytes are 1 024 MiB."""
    text = sentence("score_matrix_memory", {"attention": tables["attention"]})
    assert "4096 tokens and 32 heads, whose 16-bit scores are 1,024 MiB" in text
    assert "`sdpa-math` 5,120 MiB, `sdpa-flash` 32.5 MiB" in text


def test_other_models_say_how_much_of_the_factor_they_reach(tables):
    more = [latency(SMALL_GPU, 3.0, runtime="graph", mbu=0.9)]
    more.append(latency(SMALL_GPU, 2.0, runtime="graph", precision="int8-fused", mbu=0.6))
    text = sentence("int8_fused_fast", {"speed": pd.concat([tables["processes"], pd.DataFrame(more)])})
    assert text.startswith("Measured (study `h200`, `llama-7b`") and "2 times as long" in text
    assert text.endswith("other models: `smol` 1.5 times (batch 1, 512 + 128 tokens, MBU 90% against 60%).")


def test_what_any_change_of_a_16_bit_model_does_stands_beside_its_sensitivity(tables):
    parts = tables["sensitivity"].assign(precision="bf16")
    at_protocol = pd.DataFrame([quality(SMALL_CPU, "fp32", kl_nats=0.0012), quality(SMALL_CPU, "fp16", kl_nats=0.5)])
    text = sentence("sensitivity", {"sensitivity": parts, "quality": at_protocol})
    assert "any change of a model in bf16 moves it by about 0.0012, as far as fp32 lies away" in text
    assert "any change" not in sentence("sensitivity", {"sensitivity": parts})
    assert "any change" not in sentence("sensitivity", tables)  # of fp32


def test_a_link_names_the_line_of_its_row(tables):
    numbered = {name: table.assign(line=range(2, len(table) + 2)) for name, table in tables.items()}
    assert "memory.csv](results/h200/memory.csv?plain=1#L2)" in sentence("weights_memory", numbered)
    assert "processes.csv?plain=1#L7)" in sentence("decode_bandwidth", numbered)  # the first of its processes


def test_gpu_comes_before_cpu_though_the_cpu_is_slower(tables):
    eager = tables["processes"][tables["processes"]["runtime"] == "eager"]
    assert "NVIDIA H200" in sentence("prefill_against_decode", {"speed": eager})
    only_cpu = eager[eager["device"] == "cpu"]
    assert "on `cpu`" in sentence("prefill_against_decode", {"speed": only_cpu})


def test_each_study_has_its_own_same_against_same(tables):
    again = latency(SMALL_CPU, 501.0, repeat=1)
    text = sentence("same_against_same", {"speed": pd.concat([tables["processes"], pd.DataFrame([again])])})
    assert "over 3 pairs" in text and "over 1 pair of processes" in text and "by 0.2% at most (study `default`" in text
    pairs = [
        latency(SMALL_GPU, tpot, repeat, prompt=prompt)
        for prompt in range(1, 201)
        for repeat, tpot in enumerate((100.0, 100.0 + prompt / 20))
    ]
    text = sentence("same_against_same", {"speed": pd.DataFrame(pairs)})
    assert "5.0% in the median, by at most 9.5% in 95 of 100 pairs and by 10.0% at most" in text  # 5.025, 9.5025


def test_unknown_name_is_a_one_line_error():
    with pytest.raises(StudyError, match="'typo'.*decode_bandwidth") as caught:
        sentence("typo", {})
    assert "\n" not in str(caught.value)
