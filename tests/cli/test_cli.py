"""The command line as a user meets it: exit codes, one line of error, one JSON object, precedence of settings."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import zmq

from cwd.cli.main import run
from cwd.errors import CwdError


@pytest.fixture(autouse=True)
def no_settings(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("CWD_") and name != "CWD_CACHE_DIR"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CWD_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.chdir(tmp_path)


def call(capfd, *arguments):
    """(exit code, stdout, stderr) of a command, run in this process."""
    code = run([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return code, out, err


def error_line(err):
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("cwd: error: "), err
    return lines[0]


def test_help_imports_nothing_heavy():
    code = ("import sys; from cwd.cli.main import run; run(['--help']); run(['bench', '--help']); run(['sim', '--help']); "
            "print(sorted({'torch', 'numba', 'numpy', 'zmq'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for name in ("up", "controller", "worker", "model", "infer", "status", "replay", "sim", "bench", "compile"):
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("arguments, code, text", [
    (["nosuch"], 2, "nosuch"),
    (["infer"], 2, "MODEL"),
    (["worker", "--page", "sixteen"], 2, "not a size"),
    (["worker", "--device", "gpu:9", "--repo", "."], 1, "gpu:9"),
    (["worker", "--device", "cpu"], 1, "repository"),
    (["controller", "--slo-max", "soon"], 1, "slo_max"),
    (["--config", "nosuch.toml", "status"], 1, "nosuch.toml: No such file"),
    (["model", "ls", "-r", "nosuch"], 1, "nosuch"),
    (["model", "add", "m"], 2, "--folder"),
    (["model", "add", "m", "--factory", "a:b", "--args", "[1]", "-r", "r"], 1, "JSON object"),
    (["model", "add", "m", "--factory", "a:b", "--args", "{", "-r", "r"], 1, "no JSON"),
    (["model", "add", "m", "--zoo", "nosuch", "-r", "r"], 1, "nosuch"),
    (["infer", "m", "-i", "nosuch.npy"], 1, "nosuch.npy: No such file"),
    (["infer", "m", "-i", "x.txt"], 1, ".npy"),
    (["status"], 1, "no connection"),
])
def test_errors_are_one_line_and_a_code(capfd, arguments, code, text):
    found, out, err = call(capfd, *arguments)
    assert found == code and out == ""
    assert text in error_line(err)


def test_missing_packages_name_the_extra(capfd):
    code = textwrap.dedent("""
        import sys
        class Gone:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == sys.argv[1]:
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        sys.meta_path.insert(0, Gone())
        from cwd.cli.main import run
        sys.exit(run(sys.argv[2:]))
    """)
    for gone, extra, arguments in [("torch", "server", ["model", "add", "m", "--zoo", "mlp"]),
                                   ("numba", "server", ["compile"]), ("click", "server", ["status"]),
                                   ("transformers", "zoo", ["model", "add", "m", "--folder", "."])]:
        done = subprocess.run([sys.executable, "-c", code, gone, *arguments], capture_output=True, text=True,
                              timeout=60)
        assert done.returncode == 1 and done.stdout == ""
        line = error_line(done.stderr)
        assert gone in line and f"pip install 'cwd[{extra}]'" in line


def test_precedence_flag_over_variable_over_file(tmp_path, monkeypatch):
    """The worker's record is made by click alone; the controller's own order is tested with the controller."""
    import cwd.cli.daemons as daemons

    seen, loads = [], []
    monkeypatch.setattr(daemons, "become_daemon", lambda: None)
    monkeypatch.setitem(sys.modules, "cwd.worker.daemon", type(sys)("cwd.worker.daemon"))
    sys.modules["cwd.worker.daemon"].run_worker = lambda options, load: seen.append(options) or loads.append(load)
    config = tmp_path / "c.toml"
    config.write_text('[worker]\ndevice = "emulated:2"\npage = "4KiB"\npages = 5\nspin = "3us"\npreload = false\n')
    arguments = ["--config", str(config), "worker"]
    assert run(arguments) == 0
    assert (seen[-1].page_bytes, seen[-1].pages, seen[-1].device, seen[-1].preload) == (4096, 5, "emulated:2", False)
    assert seen[-1].endpoint == f"ipc://{tmp_path}/run/workers.sock" and seen[-1].spin_ns == 3000
    monkeypatch.setenv("CWD_PAGES", "6")
    monkeypatch.setenv("CWD_PAGE", "8KiB")
    assert run(arguments) == 0 and (seen[-1].page_bytes, seen[-1].pages) == (8192, 6)
    (tmp_path / "bad.toml").write_text("[worker]\npagez = 5\n")
    assert run(["--config", str(tmp_path / "bad.toml"), "worker"]) == 1
    assert run([*arguments, "--pages", "7", "--page-bytes", "16384"]) == 0
    assert (seen[-1].page_bytes, seen[-1].pages) == (16384, 7)
    # read again, with the same order
    assert loads[-1]() == seen[-1]
    config.write_text('[worker]\ndevice = "emulated:2"\npage = "4MiB"\nrows_max = 9\nlog-level = "debug"\n')
    again = loads[-1]()
    assert (again.page_bytes, again.pages, again.rows_max, again.log_level) == (16384, 7, 9, "debug")
    assert (again.spin_ns, again.preload) == (50_000, True)
    for text, fault in (("[worker]\npagez = 5\n", "'pagez'"), ("[worker]\nspin = 'soon'\n", "soon"), ("[worker\n", "line 1"),
                        ("worker = 3\n", "wanted a table"), ("[worker]\nrows_max = inf\n", "rows_max"),
                        ("[worker]\nlog_level = 'loud'\ndevice = 'cpu'\n", "loud")):
        config.write_text(text)
        with pytest.raises(CwdError, match=fault):
            loads[-1]()


def test_controller_settings_reach_its_record(tmp_path, monkeypatch):
    import cwd.cli.daemons as daemons

    seen, loads = [], []
    monkeypatch.setattr(daemons, "become_daemon", lambda: None)
    monkeypatch.setitem(sys.modules, "cwd.controller.daemon", type(sys)("cwd.controller.daemon"))
    sys.modules["cwd.controller.daemon"].serve = lambda config, load: seen.append(config) or loads.append(load)
    config = tmp_path / "c.toml"
    config.write_text('[controller]\nslo_max = "1s"\ncredits = 3\nmodels_max = 9\n')
    monkeypatch.setenv("CWD_CREDITS", "4")
    monkeypatch.setenv("CWD_MODELS_MAX", "10")
    assert run(["--config", str(config), "controller", "--models-max", "11", "--no-log"]) == 0
    assert (seen[0].slo_max_ns, seen[0].credits, seen[0].models_max, seen[0].log) == (10**9, 4, 11, False)


def test_repository_life(capfd, tmp_path):
    pytest.importorskip("torch")
    code, out, err = call(capfd, "model", "add", "m", "--zoo", "mlp", "--copies", "2", "--no-profile", "-r", "r",
                          "--json")
    assert code == 0 and json.loads(out)["added"] == ["m-000/1", "m-001/1"] and "2/2" in err
    code, out, err = call(capfd, "model", "add", "m", "--zoo", "mlp", "--copies", "2", "-r", "r")
    assert code == 1 and "exists already" in err.splitlines()[-1]
    (tmp_path / "r" / "broken" / "1").mkdir(parents=True)
    code, out, _ = call(capfd, "model", "ls", "-r", "r", "--json")
    listed = json.loads(out)
    assert [m["name"] for m in listed["models"]] == ["m-000", "m-001"] and not listed["models"][0]["profiled"]
    assert len(listed["unreadable"]) == 1 and "broken" in listed["unreadable"][0]
    code, out, _ = call(capfd, "model", "profile", "-r", "r", "--repeats", "5", "--json")
    assert code == 0 and len(json.loads(out)["profiles"]) == 1
    code, out, _ = call(capfd, "model", "show", "m-001/1", "--verify", "-r", "r", "--json")
    assert code == 0 and json.loads(out)["profiles"]["cpu"]["exec"] and json.loads(out)["verified"]
    weights = tmp_path / "r" / "m-001" / "1" / "weights.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    code, out, err = call(capfd, "model", "show", "m-001", "--verify", "-r", "r")
    assert code == 1 and "sha256" in error_line(err)
    code, out, _ = call(capfd, "model", "rm", "m-000", "-r", "r", "--json")
    assert json.loads(out)["removed"] == ["m-000/1"]
    code, _, err = call(capfd, "model", "rm", "m-000", "-r", "r")
    assert code == 1 and "no model m-000" in error_line(err)


def test_the_status_for_people_has_units_and_says_what_cannot_be_asked():
    from cwd.cli.status import lines_of

    facts = {"uptime_ns": 5_000_000_000, "models": 3, "servable": 1, "in_flight": 4, "counters": {"busy_ns": 1_500_000, "sent": 0},
             "core": {"answered": 7, "price_ns": 5}, "loop": {},
             "workers": {"0": {"name": "w", "heard_ns": 2_000_000, "pages_free": 9}}}
    lines = lines_of(facts)
    assert lines[0] == "serving for 5s: 3 models, 1 workers, 4 requests in flight"
    assert lines[1].startswith("2 of the models cannot be asked") and lines[2:4] == ["counters: busy 1.5ms", "core: answered 7"]
    assert lines[4].split() == ["number", "name", "heard", "pages_free"] and lines[5].split() == ["0", "w", "2ms", "9"]
    assert "cannot" not in "".join(lines_of({**facts, "servable": 3}))


def test_inputs_from_files(tmp_path):
    from cwd.cli.infer import read_inputs
    from cwd.errors import CwdError

    np.save("a.npy", np.arange(3))
    np.savez("b.npz", x=np.ones(2), y=np.zeros(1))
    (tmp_path / "c.json").write_text('{"x": [1, 2]}')
    assert list(read_inputs("a.npy")) == [""] and list(read_inputs("z=a.npy")) == ["z"]
    assert sorted(read_inputs("b.npz")) == ["x", "y"] and read_inputs("c.json") == {"x": [1, 2]}
    (tmp_path / "bad.json").write_text("{")
    np.save("evil.npy", np.array([{}], dtype=object), allow_pickle=True)
    for path in ("bad.json", "evil.npy"):
        with pytest.raises(CwdError, match=path):
            read_inputs(path)


def test_reader_that_goes_away_is_no_traceback():
    done = subprocess.run(f"{sys.executable} -m cwd worker --help | head -1", shell=True, capture_output=True,
                          text=True, timeout=60)
    assert "Traceback" not in done.stderr


def test_interrupt_is_quiet(tmp_path):
    (tmp_path / "run").mkdir()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as nobody:  # hears HELLO, and never answers
        nobody.bind(f"ipc://{tmp_path}/run/admin.sock")
        process = subprocess.Popen([sys.executable, "-m", "cwd", "status"], stderr=subprocess.PIPE, text=True)
        assert nobody.poll(60_000)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert "Traceback" not in err and process.returncode in (1, 130)
