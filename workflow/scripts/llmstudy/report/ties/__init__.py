"""Sentences that tie the background chapters to what the study measured.

A chapter calls ``tie('decode_bandwidth')``; the sentence carries numbers, their study, model and device, and a link to
the table. ``TIES`` maps each name to its function, whose docstring says what the sentence must say. Where several cells
could serve, accelerators come before CPUs, small batches before large, and the model with the slowest unquantised step
(the largest) before others. Of several attention kernels the fastest speaks for its precision and runtime.

Besides the promised tables four may be there, each with the identity columns and ``status``: ``profile``
(launches_per_token, syncs_per_token, operators_per_token, tpot_ms, device_busy_share), ``outliers`` (layer, linear,
threshold, column_share, entry_share, tokens), ``attention`` (context, phase, prompt_tokens, time_ms, tflops, gb_s,
extra_mib, heads) and
``sensitivity`` (layer, linear, kl_nats).
"""

from llmstudy.errors import StudyError
from llmstudy.report.ties import memory, quality, speed
from llmstudy.report.ties.rows import Tables

MISSING = "This study's records hold no such measurement yet."

TIES = {
    function.__name__: function
    for function in (
        memory.weights_memory,
        memory.kv_cache,
        memory.does_not_fit,
        memory.int8_memory,
        memory.score_matrix_memory,
        speed.prefill_against_decode,
        speed.decode_bandwidth,
        speed.batching,
        speed.bitsandbytes_slow,
        speed.threshold_zero,
        speed.int8_fused_fast,
        speed.int8_activations,
        speed.launches,
        speed.attention_growth,
        speed.attention_decode,
        speed.attention_time,
        speed.same_against_same,
        speed.bandwidth_spread,
        speed.failed_cells,
        quality.reference_perplexity,
        quality.greedy_agreement,
        quality.top1_agreement,
        quality.rulers,
        quality.int8_quality,
        quality.nf4_quality,
        quality.outliers,
        quality.sensitivity,
    )
}


def sentence(name: str, tables: Tables) -> str:
    """The sentence called ``name``, or ``MISSING`` where the tables cannot support it. Raises StudyError if unknown."""
    if name not in TIES:
        raise StudyError(f"tie {name!r}: unknown sentence; allowed: {', '.join(TIES)}")
    return TIES[name](tables) or MISSING
