"""Fixtures shared by all tests: tiny LLaMA models that are built in milliseconds."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


def tiny_llama_config(**changes):
    """A LLaMA config of about 100 000 parameters with grouped-query attention and odd sizes."""
    from transformers import LlamaConfig

    settings = {
        "vocab_size": 199,
        "hidden_size": 48,
        "intermediate_size": 104,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaConfig(**(settings | changes))


def llama_with(make_linear=None, dtype=None, device="cpu", architecture="Llama", **changes):
    """Return a seeded tiny LLaMA, or another architecture of its sizes, whose decoder linears are ``make_linear(weight,
    bias)`` if that is given. Norms and biases are random too: as they begin, a model without them would be the same."""
    import torch
    import transformers
    from torch import nn

    torch.manual_seed(0)
    settings = tiny_llama_config().to_diff_dict() | {"initializer_range": 0.2} | changes
    settings.pop("model_type")
    config = getattr(transformers, f"{architecture}Config")(**settings)
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    model = model.to(device, dtype)
    for path, module in list(model.named_modules()) if make_linear else ():
        if isinstance(module, nn.Linear) and path != "lm_head":
            bias = None if module.bias is None else module.bias.data
            model.set_submodule(path, make_linear(module.weight.data, bias))
    return model


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def tiny_llama(request):
    """An fp32 tiny LLaMA on the CPU in eval mode, once with untied and once with tied embeddings."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_llama_config(tie_word_embeddings=request.param)).eval()


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A folder with two finished hand-made studies below ``results/``, h200 of three models and default of one; their
    tables are not to be changed."""
    import hand_made

    folder = tmp_path_factory.mktemp("finished")
    hand_made.write_study(folder / "results/h200")
    hand_made.write_study(folder / "results/default", models=("smollm2-135m",), bandwidth=28.0)
    return folder


@pytest.fixture
def h200(finished):
    """The study of three models, loaded; what a test replaces in its tables stays in that test."""
    from llmstudy.report.study import load

    return load(finished / "results/h200")


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """The folder of a fetched tiny model (real weights from a ``path`` source); not to be changed."""
    import tiny

    folder = tmp_path_factory.mktemp("tiny-weights")
    tiny.save_model(folder / "source")
    return tiny.fetch({"type": "path", "folder": str(folder / "source")}, folder / "model")


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory) -> Path:
    """The folder of a fetched tiny corpus; not to be changed."""
    import tiny

    return tiny.save_corpus(tmp_path_factory.mktemp("tiny-corpus"))


@pytest.fixture
def measuring(tiny_weights, tiny_corpus, tmp_path):
    """Sessions on the tiny model: ``measuring(kind, **changes)``, changes as for ``tiny.job``. ``session.saved`` has
    the results at each save; a reference is looked for in ``tmp_path / "reference"``."""
    import json

    import tiny

    def make(kind: str, folder: str = "artifacts", model=tiny_weights, corpus=tiny_corpus, **changes):
        changes.setdefault("reference_folder", str(tmp_path / "reference"))
        saved = []
        session = tiny.session(
            tiny.job(kind, model, corpus, **changes),
            tmp_path / folder,
            lambda results: saved.append(json.loads(json.dumps(results))),
        )
        session.saved = saved
        return session

    return make


def pytest_collection_modifyitems(items):
    """Skip ``gpu`` tests where there is no CUDA device; torch is imported only if such a test was collected."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device; run `make test-gpu` on a machine with a GPU"))
