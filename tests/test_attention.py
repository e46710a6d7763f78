"""Attention: the configured kernel is the one that ran, and any other is unsupported."""

import pytest
import tiny
import torch
from llmstudy.errors import StudyError, Unsupported
from llmstudy.models import attention
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

FLASH, MATH = "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a tiny model whose attention implementation is that of a choice."""
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    tiny.save_model(folder)

    def run(name: str):
        model = LlamaForCausalLM.from_pretrained(folder, attn_implementation=attention.get(name).implementation)
        ids = torch.tensor([[5, 9, 200, 31, 8]])

        def forward():
            with torch.inference_mode():
                return model(ids).logits

        return forward

    return run


@pytest.mark.parametrize(
    ("name", "kernel"), [("eager", "matmul-softmax"), ("sdpa", FLASH), ("sdpa-math", MATH), ("sdpa-flash", FLASH)]
)
def test_the_kernel_that_ran_is_proven(run, name, kernel):
    with attention.forced(name):
        assert attention.prove(name, run(name)) == [kernel]


@pytest.mark.parametrize(
    ("name", "operator"),
    [("flash_attention_2", "flash_attn::_flash_attn_forward"), ("flash_attention_3", "flash_attn_3::fwd")],
)
def test_a_package_s_kernel_is_known_by_its_operators(name, operator):
    """Under the names that flash-attn 2.8 and 3 register; the packages themselves need a GPU."""
    namespace, function = operator.split("::")
    library = torch.library.Library(namespace, "FRAGMENT")
    library.define(f"{function}(Tensor q) -> Tensor")
    library.impl(function, lambda q: q + 1, "CPU")
    call = getattr(getattr(torch.ops, namespace), function)
    other = {"flash_attention_2", "flash_attention_3"} - {name}
    assert attention.prove(name, lambda: call(torch.ones(2))) == [namespace]
    with pytest.raises(Unsupported, match=f"{namespace} ran instead"):
        attention.prove(other.pop(), lambda: call(torch.ones(2)))


def test_all_kernels_compute_the_same(run):
    logits = []
    for name in ("eager", "sdpa", "sdpa-math", "sdpa-flash"):
        with attention.forced(name):
            logits.append(run(name)())
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "ran", "kernel"),
    [
        ("sdpa-math", "sdpa-flash", FLASH),
        ("sdpa-flash", "sdpa-math", MATH),
        ("sdpa-flash", "eager", "matmul-softmax"),
        ("sdpa-cudnn", "sdpa", FLASH),
        ("eager", "sdpa", FLASH),
        ("flash_attention_2", "sdpa", FLASH),
    ],
)
def test_a_fallback_is_unsupported(run, name, ran, kernel):
    with attention.forced(ran), pytest.raises(Unsupported, match=f"{name}.*{kernel}"):
        attention.prove(name, run(ran))


def test_a_forced_backend_without_a_kernel_raises_instead_of_falling_back():
    q = torch.randn(1, 2, 4, 8)
    with pytest.raises(Unsupported, match="'sdpa-cudnn'.*no such kernel"), attention.forced("sdpa-cudnn"):
        scaled_dot_product_attention(q, q, q)
    with pytest.raises(RuntimeError, match="own mistake"), attention.forced("sdpa-cudnn"):
        raise RuntimeError("own mistake")


def test_nothing_stays_forced():
    q = torch.randn(1, 2, 4, 8)
    with attention.forced("sdpa-math"):
        assert attention.kernels_that_ran(lambda: scaled_dot_product_attention(q, q, q)) == {MATH}
    assert attention.kernels_that_ran(lambda: scaled_dot_product_attention(q, q, q)) == {FLASH}


def test_this_torch_has_every_backend():
    backends = [choice.backend for choice in attention.CHOICES.values() if choice.backend]
    assert len(backends) == 4 and all(hasattr(SDPBackend, backend) for backend in backends)


def test_an_unknown_choice_is_refused():
    with pytest.raises(StudyError, match="'flash'.*sdpa-flash"):
        attention.get("flash")


def test_a_wrong_kernel_becomes_an_unsupported_workload(measuring, monkeypatch):
    """Through the measurement: the model uses eager attention while the record says sdpa-flash."""
    import dataclasses

    from llmstudy.measure import measure

    wrong = dataclasses.replace(attention.CHOICES["sdpa-flash"], implementation="eager")
    monkeypatch.setitem(attention.CHOICES, "sdpa-flash", wrong)
    entry = measure(measuring("probe", attention="sdpa-flash"))["workloads"][0]
    assert entry["status"] == "unsupported" and "matmul-softmax ran instead" in entry["reason"]
