"""What a fetched checkpoint really is: every architecture that the study supports passes, every kind of fault is
refused in one line that names it, and no precision runs another model than the files hold."""

import json
import os
import shutil

import pytest
import tiny
import torch
import transformers
from fetch_toolkit import manifest, one_line
from llmstudy import config as study_config
from llmstudy import kinds
from llmstudy.errors import StudyError, Unsupported
from llmstudy.fetch.layout import fingerprint
from llmstudy.fetch.weights import open_weights
from llmstudy.models import loading, precisions
from llmstudy.tables.records import read_records
from safetensors.torch import load_file, save_file
from table_kit import write_record

IDS = torch.tensor([[5, 9, 200, 31, 77, 8, 19, 40]])
ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
LLAMA = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 256, "initializer_range": 0.2} | ENDS  # fmt: skip
GROUPED = LLAMA | {"num_key_value_heads": 2, "head_dim": 16}
ARCHITECTURES = {
    "Llama": GROUPED,
    "Mistral": GROUPED | {"sliding_window": 32},
    "Qwen2": LLAMA | {"num_key_value_heads": 2},
    "Qwen3": GROUPED,
    "Gemma": GROUPED,
    "Gemma2": GROUPED | {"sliding_window": 32},
    "Gemma3Text": GROUPED | {"sliding_window": 32, "architectures": ["Gemma3ForCausalLM"]},
    "Phi": LLAMA,
    "GPTNeoX": LLAMA,
    "GPT2": {"vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256} | ENDS,
    "OPT": {"vocab_size": 320, "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 256, "word_embed_proj_dim": 64, "init_std": 0.2} | ENDS,
    "Falcon": {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
               "initializer_range": 0.2} | ENDS,
    "Bloom": {"vocab_size": 320, "hidden_size": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.2} | ENDS,
    "Mixtral": GROUPED | {"num_local_experts": 4},
    "Qwen3Moe": GROUPED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
}  # fmt: skip


def save(folder, architecture="Llama", **changes):
    """Save a tiny model of an architecture with a tokenizer; return the model."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**(ARCHITECTURES[architecture] | changes))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    tiny.save_tokenizer(folder)
    return model


@pytest.fixture
def theirs(tmp_path):
    """The user's folder with a tiny LLaMA."""
    save(tmp_path / "theirs", tie_word_embeddings=False)
    return tmp_path / "theirs"


def fetch(tmp_path, context=256):
    from llmstudy.fetch.models import fetch_weights

    source = {"type": "path", "folder": str(tmp_path / "theirs")}
    model = {"name": "tiny", "source": source, "context": context, "as_published": True}
    fetch_weights(model, tmp_path / "ours", tmp_path / "downloads")
    return tmp_path / "ours"


def load(ours, precision, attention="eager"):
    request = precisions.LoadRequest(weights=open_weights(ours), device="cpu", attention=attention)
    return precisions.get(precision).load(request)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits.float()


def configure(folder, **changes):
    """Change keys of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change(folder, **changes):
    """Change tensors of the one safetensors file: a tensor, or None to leave it out; ``__`` is a dot in a name."""
    file = folder / "model.safetensors"
    changes = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    kept = {name: tensor for name, tensor in (load_file(file) | changes).items() if tensor is not None}
    save_file({name: tensor.contiguous() for name, tensor in kept.items()}, file, metadata={"format": "pt"})


# ------------------------------------------------------------------------------------------------------- what it says


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_passes_and_the_library_and_our_loader_give_its_logits(tmp_path, architecture):
    """Ours may refuse it by name instead, but not give other logits."""
    original = save(tmp_path / "theirs", architecture)
    ours = fetch(tmp_path)
    found = manifest(ours)
    assert found["parameters"] == original.num_parameters()
    assert found["dtypes"] == {"float32": original.num_parameters()}
    assert found["model_type"] == original.config.model_type and found["quantization"] is None
    heads = ARCHITECTURES[architecture].get("num_key_value_heads", 1 if architecture == "Falcon" else 4)
    assert found["architecture"]["num_key_value_heads"] == heads
    assert found["sliding_window"] == ARCHITECTURES[architecture].get("sliding_window")
    assert ("sdpa" in found["attention"]) == (architecture not in ("Gemma2", "Bloom"))
    torch.testing.assert_close(logits(load(ours, "fp32")), logits(original))
    weights = open_weights(ours)
    request = precisions.LoadRequest(weights=weights, device="cpu", attention="eager")
    try:
        layerwise = loading.layer_by_layer(request, torch.float32)
    except Unsupported as error:
        assert architecture in ("Mixtral", "Qwen3Moe", "GPTNeoX") and "only the library joins them" in str(error)
    else:
        assert not [name for name, one in [*layerwise.named_parameters(), *layerwise.named_buffers()] if one.is_meta]
        torch.testing.assert_close(logits(layerwise), logits(original))


def test_the_manifest_says_what_a_checkpoint_is_in_one_line(tmp_path, theirs):
    found = manifest(fetch(tmp_path))
    assert found["tokenizer"] == {"size": 320, "bos": 0, "eos": 1, "pad": None, "adds_bos": False, "fast": True}
    assert found["tied_in_file"] == {"head": True, "equal": False} and found["notes"] == []
    assert found["rope"] == {"rope_theta": 10000.0, "rope_type": "default"}
    assert found["summary"] == (
        "llama, 0.1 M parameters, float32, not quantized, head of its own, tokenizer of 320, BOS not added, "
        "context 256, attention eager, sdpa, flash_attention_2, flash_attention_3"
    )


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("Llama", ["model.layers.0.self_attn.rotary_emb.inv_freq"]),
        ("GPT2", ["transformer.h.0.attn.bias"]),
        ("GPTNeoX", ["gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.masked_bias"]),
    ],
)
def test_buffers_of_older_versions_are_harmless_and_told(tmp_path, architecture, names):
    original = save(tmp_path / "theirs", architecture)
    old = torch.ones((1, 1, 256, 256), dtype=torch.uint8)
    change(tmp_path / "theirs", **{name: old if name.endswith(".bias") else old[0, 0, 0].float() for name in names})
    ours = fetch(tmp_path)
    assert manifest(ours)["notes"] == [
        f"{len(names)} tensor{'s' * (len(names) > 1)} that the library computes or does not use ({names[0]})"
    ]
    assert manifest(ours)["dtypes"] == {"float32": original.num_parameters()}
    torch.testing.assert_close(logits(load(ours, "fp32")), logits(original))


def test_names_without_the_prefix_of_the_base_model_are_read_by_both_loaders(tmp_path):
    """GPT-2's published files have ``wte.weight``, and the library renames it."""
    original = save(tmp_path / "theirs", "GPT2")
    stored = load_file(tmp_path / "theirs/model.safetensors")
    short = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    save_file(short, tmp_path / "theirs/model.safetensors", metadata={"format": "pt"})
    ours = fetch(tmp_path)
    request = precisions.LoadRequest(weights=open_weights(ours), device="cpu", attention="eager")
    for model in (load(ours, "fp32"), loading.layer_by_layer(request, torch.float32)):
        torch.testing.assert_close(logits(model), logits(original))


# ---------------------------------------------------------------------------------------------------- tied in the file


@pytest.mark.parametrize("stored", ["another head", "the same head", "the head alone", "the embedding alone"])
def test_a_tied_model_has_one_head_in_every_precision(tmp_path, stored):
    """The library keeps a head that differs from the embedding, whatever config.json says; so does every loader."""
    original = save(tmp_path / "theirs", tie_word_embeddings=True)
    embedding = original.model.embed_tokens.weight.detach()
    head = 0.2 * torch.randn(embedding.shape) if stored == "another head" else embedding.clone()
    if stored != "the embedding alone":
        change(tmp_path / "theirs", lm_head__weight=head)
    if stored == "the head alone":
        change(tmp_path / "theirs", model__embed_tokens__weight=None)
    ours = fetch(tmp_path)
    with torch.no_grad():
        expected = original.model(IDS).last_hidden_state.float() @ head.T
    library, own = load(ours, "fp32"), load(ours, "int8-fused")
    torch.testing.assert_close(logits(library), expected)
    assert torch.cosine_similarity(logits(own).flatten(), expected.flatten(), dim=0) > 0.99
    tied = stored != "another head"
    for model in (library, own):
        assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
        assert model.config.tie_word_embeddings == tied
    found = manifest(ours)
    assert found["architecture"]["tie_word_embeddings"] == tied
    assert [note for note in found["notes"] if "the files store another head" in note] == found["notes"]
    assert len(found["notes"]) == (not tied)


# -------------------------------------------------------------------------------------------------- what is refused


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            lambda folder: change(folder, lm_head__weight=None),
            "lm_head.weight is missing, which LlamaForCausalLM needs;",
        ),
        (lambda folder: change(folder, **{UP: None}), f"{UP} is missing, which LlamaForCausalLM needs;"),
        (
            lambda folder: change(folder, **{UP: None, "lm_head.weight": None, "surplus.weight": torch.ones(2)}),
            "lm_head.weight is missing, which LlamaForCausalLM needs; 3 faults in all;",
        ),
        (
            lambda folder: change(folder, **{UP: torch.ones(128, 63)}),
            f"{UP} has shape (128, 63), and config.json asks for",
        ),
        (
            lambda folder: configure(folder, vocab_size=319),
            "has shape (320, 64), and config.json asks for (319, 64); 2",
        ),
        (
            lambda folder: configure(folder, num_hidden_layers=1),
            "is no tensor of LlamaForCausalLM as config.json describes",
        ),
        (lambda folder: configure(folder, num_hidden_layers=3), "model.layers.2.input_layernorm.weight is missing"),
        (
            lambda folder: change(folder, model__layers__0__self_attn__q_proj__bias=torch.ones(64)),
            "model.layers.0.self_attn.q_proj.bias is no tensor of LlamaForCausalLM",
        ),
        (
            lambda folder: change(folder, **{UP: torch.ones(128, 64, dtype=torch.int8)}),
            f"{UP} has dtype int8, as 1 tensor of quantized weights, but config.json has no quantization_config",
        ),
        (
            lambda folder: change(folder, **{UP: torch.ones(128, 64).to(torch.float8_e4m3fn)}),
            f"{UP} has dtype float8_e4m3fn, as 1 tensor of quantized weights",
        ),
        (
            lambda folder: configure(folder, quantization_config={"quant_method": "fp8"}),
            "quantization_config says fp8, but no tensor is quantized; remove the key",
        ),
        (
            lambda folder: configure(folder, model_type="strange"),
            "config.json: transformers cannot read this architecture",
        ),
        (lambda folder: configure(folder, model_type="t5"), "model_type 't5' is not a causal language model"),
        (
            lambda folder: configure(folder, architectures=["BertForMaskedLM"], model_type="bert"),
            "architectures says BertForMaskedLM, which is not a causal language model",
        ),
        (
            lambda folder: configure(folder, architectures=["LlamaForSequenceClassification"]),
            "architectures says LlamaForSequenceClassification",
        ),
        (lambda folder: configure(folder, hidden_size=65, head_dim=None), "transformers cannot"),
        (
            lambda folder: (folder / "tokenizer.json").write_text("{}"),
            "transformers cannot read the tokenizer",
        ),
    ],
)
def test_a_checkpoint_that_is_not_its_config_is_refused(tmp_path, theirs, fault, message):
    fault(theirs)
    with one_line(message):
        fetch(tmp_path)
    assert not (tmp_path / "ours/manifest.json").exists()


def test_an_expert_that_is_missing_is_named(tmp_path):
    save(tmp_path / "theirs", "Mixtral")
    change(tmp_path / "theirs", model__layers__1__block_sparse_moe__experts__2__w1__weight=None)
    with one_line("model.layers.1.block_sparse_moe.experts.2.w1.weight is missing"):
        fetch(tmp_path)


def test_custom_code_is_not_run_and_told_where_the_library_knows_the_architecture(tmp_path, theirs):
    configure(theirs, auto_map={"AutoModelForCausalLM": "modeling.Model"})
    (theirs / "modeling.py").write_text("raise SystemExit")
    assert (
        "code of its own (auto_map), which is not run: the library's LlamaForCausalLM"
        in manifest(fetch(tmp_path))["notes"][0]
    )


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "adapter_model.safetensors"),
            "a LoRA adapter of someone/base; merge it first (merge_and_unload)",
        ),
        (lambda folder: None, "a LoRA adapter of someone/base; merge it first (merge_and_unload)"),
    ],
)
def test_a_lora_adapter_is_to_be_merged(tmp_path, theirs, layout, message):
    layout(theirs)
    (theirs / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/base"}))
    with one_line(message):
        fetch(tmp_path)


@pytest.mark.parametrize("adapter", [False, True])
def test_a_folder_of_training_checkpoints_is_not_one(tmp_path, theirs, adapter):
    shutil.move(theirs, tmp_path / "checkpoint-500")
    theirs.mkdir()
    shutil.move(tmp_path / "checkpoint-500", theirs / "checkpoint-500")
    (theirs / "training_args.bin").touch()
    if adapter:
        about = json.dumps({"base_model_name_or_path": "someone/base"})
        (theirs / "checkpoint-500/adapter_config.json").write_text(about)
    with one_line("a LoRA adapter of someone/base" if adapter else "name one of them: checkpoint-500"):
        fetch(tmp_path)


def test_shards_of_other_names_are_read_where_the_index_names_them(tmp_path):
    original = tiny.save_model(tmp_path / "theirs", shard="40KB")
    index = tmp_path / "theirs/model.safetensors.index.json"
    content = json.loads(index.read_text())
    stale = tmp_path / "theirs/model-00001-of-00099.safetensors"
    stale.write_bytes(b"of another save, and in no index")
    for name in set(content["weight_map"].values()):
        os.rename(tmp_path / "theirs" / name, tmp_path / "theirs" / f"part-{name}")
    content["weight_map"] = {name: f"part-{file}" for name, file in content["weight_map"].items()}
    index.write_text(json.dumps(content))
    ours = fetch(tmp_path)
    assert stale.name not in manifest(ours)["files"]
    torch.testing.assert_close(logits(load(ours, "fp32")), logits(original))
    index.unlink()
    with one_line("holds safetensors under other names (model-00001-of-00099.safetensors, part-model-"):
        fetch(tmp_path)


def test_a_pointer_of_git_lfs_is_no_file_of_weights(tmp_path, theirs):
    (theirs / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    with one_line("a pointer of Git LFS, not the weights; run git lfs pull"):
        fetch(tmp_path)


@pytest.mark.parametrize("special", [True, False])
def test_tokens_beyond_the_embedding_are_told_if_added_and_refused_if_words(tmp_path, theirs, special):
    if special:
        tokenizer = transformers.AutoTokenizer.from_pretrained(theirs)
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
        tokenizer.save_pretrained(theirs)
        found = manifest(fetch(tmp_path))
        assert found["tokenizer"]["size"] == 321 and found["tokenizer"]["pad"] == 320
        assert "1 added token of the tokenizer beyond the embedding's 320 rows (<pad>)" in found["notes"][0]
        return
    stored = load_file(theirs / "model.safetensors")
    configure(theirs, vocab_size=300)
    change(theirs, **{name: stored[name][:300] for name in ("lm_head.weight", "model.embed_tokens.weight")})
    with one_line("and 19 more lie beyond the embedding's 300 rows; the tokenizer is that of another model"):
        fetch(tmp_path)


def test_another_bos_in_config_and_tokenizer_is_told(tmp_path, theirs):
    configure(theirs, bos_token_id=1)
    assert manifest(fetch(tmp_path))["notes"] == ["config.json has 1 as BOS, the tokenizer 0"]


@pytest.mark.parametrize(("context", "allowed"), [(1024, True), (1025, False)])
def test_a_context_may_be_as_long_as_yarn_allows(tmp_path, context, allowed):
    scaling = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 256}
    save(tmp_path / "theirs", rope_parameters=scaling)
    if allowed:
        assert manifest(fetch(tmp_path, context))["context"] == context
        assert manifest(fetch(tmp_path, None))["context"] == 256
        return
    with one_line("context 1025 is longer than the model's 1024 tokens"):
        fetch(tmp_path, context)


# ---------------------------------------------------------------------------------------------------- quantized before


QUANTIZED = {
    "fp8": ({"quant_method": "fp8", "weight_block_size": [64, 64]}, 8, None, torch.float8_e4m3fn, "weight_scale_inv"),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {
            "input_activations": {"num_bits": 8}, "weights": {"num_bits": 4}}}},
        4, "compressed-tensors", torch.int8, "weight_scale"),
    "bitsandbytes": ({"load_in_8bit": True}, 8, "bitsandbytes", torch.int8, "SCB"),
    "gptq": ({"quant_method": "gptq", "bits": 4}, 4, "gptqmodel", torch.int32, "scales"),
    "awq": ({"quant_method": "awq", "bits": 4}, 4, "gptqmodel", torch.int32, "scales"),
}  # fmt: skip


@pytest.mark.parametrize("method", QUANTIZED)
def test_what_is_quantized_already_is_said_with_bits_and_package(tmp_path, theirs, method):
    config, bits, package, dtype, scale = QUANTIZED[method]
    packed = "qweight" if dtype == torch.int32 else "weight"
    module = UP.removesuffix(".weight")
    codes = torch.ones(128, 64).to(dtype)
    change(theirs, **{UP: None} | {f"{module}.{packed}": codes, f"{module}.{scale}": torch.ones(2)})
    configure(theirs, quantization_config=config)
    found = manifest(fetch(tmp_path))
    assert found["quantization"] == {"method": method, "bits": bits, "package": package}
    assert found["dtypes"][str(dtype).removeprefix("torch.")] == 128 * 64
    assert f"quantized: {method}, {bits} bits" in found["summary"]
    change(theirs, **{f"{module}.{packed}": None, f"{module}.{scale}": None})
    with one_line("no tensor is quantized"):
        fetch(tmp_path)


def test_a_quantized_checkpoint_that_lacks_a_module_is_refused(tmp_path, theirs):
    change(theirs, lm_head__weight=None, **{UP: torch.ones(128, 64, dtype=torch.int8)})
    configure(theirs, quantization_config={"load_in_8bit": True})
    with one_line("lm_head.weight is missing"):
        fetch(tmp_path)


# ------------------------------------------------------------------------------------------------- loading and changes


def test_a_tensor_that_was_lost_after_the_fetch_is_not_drawn_at_random(tmp_path, theirs):
    weights = open_weights(fetch(tmp_path))
    change(theirs, **{UP: None})
    with pytest.raises(StudyError, match=f"{UP} is missing .* the library would draw it at random"):
        precisions.get("bf16").load(precisions.LoadRequest(weights=weights, device="cpu", attention="sdpa"))


@pytest.mark.parametrize("precision", ["fp32", "nf4", "int8-fused"])
def test_an_attention_that_the_class_lacks_is_unsupported_before_loading(tmp_path, precision):
    save(tmp_path / "theirs", "Gemma2")
    ours = fetch(tmp_path)
    with pytest.raises(
        Unsupported, match="attention 'sdpa': this model's class does not support it; allowed: eager, fla"
    ):
        load(ours, precision, "sdpa")


def test_weights_rewritten_in_place_with_the_same_size_are_noticed(tmp_path, theirs):
    ours = fetch(tmp_path)
    source, file = manifest(ours)["source"], theirs / "model.safetensors"
    before, about = fingerprint(source), file.stat()
    data = bytearray(file.read_bytes())
    (theirs / "README.md").write_text("no file of the model")
    assert fingerprint(source) == before
    data[-100] ^= 1
    file.write_bytes(data)
    assert file.stat().st_size == about.st_size and fingerprint(source) != before
    for written in (about.st_mtime_ns, about.st_mtime_ns + 10**9):  # an old time of writing hides nothing
        os.utime(file, ns=(written, written))
        with one_line("model.safetensors: is not the file of manifest.json, it was changed since; run the study again"):
            open_weights(ours)
    data[-100] ^= 1
    file.write_bytes(data)
    open_weights(ours)  # the same bytes, written again


def test_of_many_gguf_files_the_one_that_is_read_is_watched_with_its_parts(tmp_path):
    for name in ("a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "b.gguf", "README.md"):
        (tmp_path / name).touch()
    parts, first = ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"], str(tmp_path / "a-00001-of-00002.gguf")

    def watched(folder, **more):
        return [name for name, *_ in fingerprint({"type": "path", "folder": str(folder)} | more)]

    assert watched(tmp_path, file=parts[0]) == watched(first) == parts
    assert watched(tmp_path, file="b.gguf") == ["b.gguf"] and len(watched(tmp_path)) == 3
    assert watched(tmp_path / "absent") == fingerprint({"type": "hub"}) == []


def test_records_on_weights_that_were_replaced_meanwhile_are_not_tabulated_together(tmp_path, theirs):
    """Weights replaced, some records measured again, and then ``measure: nothing``."""
    old = open_weights(fetch(tmp_path)).digest
    configure(theirs, transformers_version="5.0.0")
    assert open_weights(fetch(tmp_path)).digest == old  # the same weights
    change(theirs, **{UP: torch.ones(128, 64)})
    new = open_weights(fetch(tmp_path)).digest
    assert tiny.session(tiny.job("probe", tmp_path / "ours"), tmp_path / "artifacts").weights.digest == new
    records = [write_record(tmp_path, "probe", {}, provenance={"weights": old}, repeat=number) for number in range(2)]
    assert len(read_records(records)) == 2
    other = write_record(tmp_path, "probe", {}, provenance={"weights": new}, repeat=2, model="other")
    assert len(read_records([*records, other])) == 3
    again = write_record(tmp_path, "probe", {}, provenance={"weights": new}, repeat=3)
    with one_line("are of different weights under one name"):
        read_records([*records, again])


# ---------------------------------------------------------------------------------------------------- what is requested


def test_requests_take_the_size_from_the_manifest_else_from_the_headers_else_from_the_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny.study(tmp_path)
    config["models"][0] |= {"name": "tiny", "parameters_millions": 7000}

    def parameters():
        return study_config.complete(config).model("tiny").parameters

    stored = load_file(tmp_path / "model/model.safetensors")
    assert parameters() == sum(tensor.numel() for tensor in stored.values())
    folder = tmp_path / "resources/models/tiny"
    tiny.fetch(config["models"][0]["source"], folder)
    content = manifest(folder)
    (folder / "manifest.json").write_text(json.dumps(content | {"parameters": 5}))
    assert parameters() == 5
    (line,) = kinds.fetched(study_config.complete(config))
    assert line == f"tiny: {content['summary']}"
    (folder / "manifest.json").write_text(json.dumps(content | {"source": {"type": "hub"}, "parameters": 5}))
    assert parameters() == sum(tensor.numel() for tensor in stored.values())  # it is of another source
    (tmp_path / "model/model.safetensors").unlink()
    assert parameters() == 7e9 and kinds.fetched(study_config.complete(config)) == []
