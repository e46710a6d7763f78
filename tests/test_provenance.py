"""provenance.json: where numbers come from, each environment once, and what is missing; the limits of a process."""

import json

import hand_made
import pytest
from llmstudy.report import provenance as report
from llmstudy.runner.provenance import cpu_quota
from llmstudy.tables import provenance
from table_kit import write_record


def record(folder, repeat, commit="a", started="2026-01-01T00:00:00", **changes):
    where = {"git_commit": commit, "packages": {"torch": "1"}, "started": started, "wall_s": 30.0, "waited_s": 12.5}
    return write_record(folder, "probe", {}, provenance=where, repeat=repeat, **changes)


def write_model(folder, architecture):
    """Write a fetched model's manifest, and return its path."""
    folder.mkdir()
    manifest = {"name": "m", "real": True, "source": {"type": "path"}, "architecture": architecture}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder / "manifest.json"


def test_provenance_counts_each_environment_once(tmp_path):
    paths = [
        record(tmp_path, 1, started="2026-01-02T00:00:00"),
        record(tmp_path, 2),
        record(tmp_path, 3, commit="b", status="oom"),
    ]
    manifest = write_model(tmp_path / "model", hand_made.ARCHITECTURES["llama-2-7b"])
    unseen = {"name": "n", "source": {"type": "hub", "repo": "a/b"}}
    config = {"study": "s", "models": [{"name": "m", "source": {"type": "path"}}, unseen]}
    missing = [f"results/s/records/probe/{name}/{number}.json" for name in "mn" for number in range(2)]
    provenance.write(paths, missing, [str(manifest)], config, {"m": {}, "n": {}}, tmp_path / "provenance.json")
    content = json.loads((tmp_path / "provenance.json").read_text())
    assert [environment["records"] for environment in content["environments"]] == [2, 1]
    assert content["environments"][0]["first_started"] == "2026-01-01T00:00:00"
    assert content["missing"] == {"probe of m": 2, "probe of n": 2}
    assert content["headline"] == {"m": {}}  # of n nothing was measured yet
    assert content["statuses"] == {"ok": 2, "oom": 1} and content["wall_s"] == 90 - 3 * 12.5  # without waiting
    assert content["models"]["m"]["architecture"]["hidden_size"] == 4096
    assert content["config_sha256"] == provenance.config_hash(dict(reversed(config.items())))


def test_provenance_keeps_what_it_knew_of_a_model_whose_weights_are_not_here(tmp_path):
    paths = [record(tmp_path, 1), record(tmp_path, 1, model="n")]
    models = [{"name": name, "source": {"type": "hub", "repo": "a/b"}} for name in "mn"]
    output = tmp_path / "provenance.json"
    output.write_text(json.dumps({"models": {"m": {"parameters": 5}}}))
    provenance.write(paths, [], [], {"study": "s", "models": models}, {"m": {}, "n": {}}, output)
    content = json.loads(output.read_text())["models"]
    assert content["m"] == {"parameters": 5}
    assert content["n"]["real"] and content["n"]["architecture"] == {} and content["n"]["source"]["repo"] == "a/b"


V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "33 25 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct"
SET = "34 25 0:30 / /sys/fs/cgroup/cpuset rw shared:10 - cgroup cgroup rw,cpuset"
DISK = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,cpu"


@pytest.mark.parametrize(
    ("mounts", "groups", "files", "expected"),
    [
        ([V2], "0::/job", {"cgroup/job": "100000 100000"}, 1.0),
        ([V2], "0::/a/job", {"cgroup/a/job": "max 100000", "cgroup/a": "150000 100000"}, 1.5),  # the group above binds
        ([V2], "0::/a/job", {"cgroup/a/job": "300000 100000", "cgroup/a": "200000 100000"}, 2.0),
        ([V2], "0::/a/job", {"cgroup/a/job": "50000 100000", "cgroup/b": "10000 100000"}, 0.5),
        ([V2], "0::/", {"cgroup": "200000 50000"}, 4.0),  # a container that sees its group as the top one
        ([V2], "0::/", {"cgroup": "max 100000"}, None),
        ([V2], "0::/../other", {"cgroup": "200000 50000"}, 4.0),  # a group outside of the container
        ([V1, SET], "4:cpuset:/\n3:cpu,cpuacct:/job", {"cgroup/cpu,cpuacct/job": (100000, 100000)}, 1.0),
        ([V1], "3:cpu,cpuacct:/job", {"cgroup/cpu,cpuacct/job": (-1, 100000)}, None),
        ([V1], "3:cpu,cpuacct:/docker/f00", {"cgroup/cpu,cpuacct": (250000, 100000)}, 2.5),  # a path of the host
        ([V1.replace("0:29 /", "0:29 /docker/f00")], "3:cpu,cpuacct:/docker/f00/job",
         {"cgroup/cpu,cpuacct/job": (100000, 100000), "cgroup/cpu,cpuacct": (200000, 100000)}, 1.0),
        ([V1, V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")], "3:cpu,cpuacct:/job\n0::/job",
         {"cgroup/cpu,cpuacct/job": (200000, 100000), "cgroup/unified/job": "max 100000"}, 2.0),
        ([SET, DISK], "4:cpuset:/job", {"cgroup/cpuset/job": (100000, 100000)}, None),
        ([], "", {}, None),
    ],
)  # fmt: skip
def test_the_smallest_cpu_quota_binds(tmp_path, mounts, groups, files, expected):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("\n".join(mounts))
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, quota in files.items():
        folder = tmp_path / "sys/fs" / name
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(quota, str):
            (folder / "cpu.max").write_text(f"{quota}\n")
        else:
            (folder / "cpu.cfs_quota_us").write_text(f"{quota[0]}\n")
            (folder / "cpu.cfs_period_us").write_text(f"{quota[1]}\n")
    assert cpu_quota(tmp_path) == expected


def test_a_system_without_control_groups_has_no_quota(tmp_path):
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, "EPYC, 2 of 2 cores"),  # of a record that does not say
        ({"host_cores": 2, "cpu_quota": None}, "EPYC, 2 of 2 cores"),
        ({"host_cores": 64, "cpu_quota": 1.5}, "EPYC, 2 of 2 cores, pinned to 2 of 64, a CPU quota of 1.5 cores"),
        ({"host_cores": 2, "cpu_quota": 1.0}, "EPYC, 2 of 2 cores, a CPU quota of 1 core"),
    ],
)
def test_the_report_names_pinned_cores_and_a_quota(limits, expected):
    assert report.place({"cpu": "EPYC", "threads": 2, "cores": 2} | limits) == expected
    gpu = {"name": "H100", "count": 2, "memory_gib": 79.2, "driver": "580"}
    assert (
        report.place({"cpu": "EPYC", "threads": 2, "cores": 2, "gpu": gpu})
        == "2 × H100, 79.2 GiB, driver 580; EPYC, 2 of 2 cores"
    )
