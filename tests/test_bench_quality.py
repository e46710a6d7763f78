"""The quality benchmark measures what it says: the same windows, alternately, and prints both ways."""

import sys

import bench_quality
import tiny


def test_prints_a_ratio_for_each_way(tmp_path, monkeypatch, capsys):
    tiny.save_model(tmp_path / "source")
    model = tiny.fetch({"type": "path", "folder": str(tmp_path / "source")}, tmp_path / "model")
    corpus = tiny.save_corpus(tmp_path / "corpus")
    sizes = ["--tokens", "90", "--window", "32", "--stride", "16", "--rounds", "2"]
    arguments = [str(model), str(corpus), "--precision", "fp32", "--device", "cpu", "--threads", "1", *sizes]
    monkeypatch.setattr(sys, "argv", ["bench_quality.py", *arguments])
    bench_quality.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if "ratio" in line]
    assert [line.split(":")[0] for line in lines] == ["NLL", "NLL, KL and agreement"]


def test_rounds_alternate_and_the_first_only_warms_up(tmp_path):
    class Session:
        def synchronize(self):
            """No device."""

    calls = []
    seconds = bench_quality.pair(Session(), lambda: calls.append("bare"), lambda: calls.append("full"), rounds=2)
    assert calls == ["bare", "full"] * 3
    assert [len(taken) for taken in seconds] == [2, 2]
