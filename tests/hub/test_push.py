"""Publishing over a loopback Hub: real pushes, pulls in a process without `wavcse`, and what an interruption leaves behind."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from wavcse import WavCSEModel
from wavcse.hub import push as push_cli
from wavcse.hub import reload
from wavcse.hub.build import build_repository
from wavcse.hub.header import check_header
from wavcse.hub.source import read_source
from wavcse.hub.verify import _without_secrets, verify_repository
from wavcse.hub_repository_wavcse import CODE_FILES, REPLACED, left_out_files, repository_files
from wavcse.tests.helpers.hub_server import EMPTY_TREE, TOKEN, HubServer, Repository
from wavcse.tests.helpers.killed import launched, run_killed
from wavcse.tests.helpers.published_run import REPO_ID, make_run

# Stands before every script: no host but this one, and no waiting between the client's own attempts.
GUARD = """
import socket, sys, time

connect = socket.socket.connect

def connect_here(self, address):
    assert address[0] == "127.0.0.1", f"a connection to {address} was tried"
    return connect(self, address)

socket.socket.connect = connect_here
time.sleep = lambda seconds: None
"""

# A user's Python session that does what it is told, a line of JSON at a time.
CLIENT = """
import contextlib, io, json, os

for line in sys.stdin:
    job = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if job["token"]:
        os.environ["HF_TOKEN"] = job["token"]
    out, err, values = io.StringIO(), io.StringIO(), {}
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        exec(job["code"], values)
    answer = {"result": values.get("result"), "out": out.getvalue(), "err": err.getvalue()}
    print(json.dumps(answer), flush=True)
"""

# A stranger who has no `wavcse`, follows the card, and loads old and new commits.
PULL = """
import runpy
from pathlib import Path

reload_script, repo_id, sha, old_sha, out = sys.argv[1:]
sys.meta_path.insert(0, runpy.run_path(reload_script)["Blocked"])

import numpy as np
import soundfile
import torch
from huggingface_hub import hf_hub_download
from transformers import AutoFeatureExtractor, AutoModel, pipeline

clip, rate = soundfile.read("clip.wav", dtype="float32")
results = {}
for name, revision in (("pinned", sha), ("old", old_sha)):
    model = AutoModel.from_pretrained(repo_id, trust_remote_code=True, revision=revision)
    extractor = AutoFeatureExtractor.from_pretrained(repo_id, trust_remote_code=True, revision=revision)
    with torch.no_grad():
        results[name] = model(**extractor(clip, sampling_rate=rate, return_tensors="pt")).embeddings.numpy()
embed = pipeline("feature-extraction", model=repo_id, trust_remote_code=True)
results["pipeline"] = embed("clip.wav", return_tensors=True).numpy()
np.savez(out, **results)

card = Path(hf_hub_download(repo_id, "README.md", revision=sha)).read_text()
for block in card.split("```python\\n")[1:]:
    exec(block.split("```")[0], {})
"""


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def environment(hub, tmp_path_factory) -> dict[str, str]:
    """Of a user whose Hub is the loopback one."""
    home = tmp_path_factory.mktemp("home")
    dropped = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "PYTHONPATH", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    kept = {name: value for name, value in os.environ.items() if name.upper() not in dropped}
    own = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_MODULES_CACHE": str(home / "modules"),
        "HF_HUB_DISABLE_XET": "1",  # the loopback Hub has no Xet storage; the client then uploads by LFS
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    return kept | own


@pytest.fixture(scope="module")
def client(environment, tmp_path_factory):
    """`client(code, token=TOKEN)`: run code in a user's session; its `result`, stdout and stderr."""
    session = subprocess.Popen(
        [sys.executable, "-c", GUARD + CLIENT],
        env=environment,
        cwd=tmp_path_factory.mktemp("client"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def do(code: str, token: str = TOKEN) -> dict:
        session.stdin.write(json.dumps({"code": code, "token": token}) + "\n")
        session.stdin.flush()
        answer = session.stdout.readline()
        assert answer, "the client has died"
        return json.loads(answer)

    yield do
    session.stdin.close()
    session.wait(timeout=30)


def command(*arguments) -> str:
    """Code for `client` that gives a command line; `result` is the exit code."""
    return f"import wavcse_cli; result = wavcse_cli.main({['push', *map(str, arguments)]!r})"


def upload(folder: Path, repo_id: str, **options) -> str:
    """Code for `client` that uploads a built folder; `result` is the commit, or the one-line error."""
    given = {"private": False, "revision": None, "message": None, **options}
    return (
        "from pathlib import Path\nfrom wavcse.hub.push import upload\n"
        f"try: result = upload(Path({str(folder)!r}), {repo_id!r}, **{given!r})[0].oid\n"
        "except ValueError as error: result = f'refused: {error}'"
    )


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def model(tiny_multi_task_model):
    return tiny_multi_task_model()


@pytest.fixture(scope="module")
def run(model, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), model)


@pytest.fixture(scope="module")
def changed(run, tmp_path_factory) -> Path:
    """What would be pushed after more training: other weights."""
    folder = tmp_path_factory.mktemp("changed")
    build_repository(read_source(run), folder, REPO_ID)
    weights = load_file(folder / "model.safetensors")
    weights["wavcse.downstream.embedding_projection.bias"] += 1.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def dry(run, client, hub, tmp_path_factory) -> dict:
    """What a dry run did, and the folder that it kept."""
    before, out = bytes_of(run), tmp_path_factory.mktemp("dry") / "built"
    answer = client(command(run, "--repo_id", REPO_ID, "--dry_run", "--out", out), token="")
    return {**answer, "built": out, "touched": bytes_of(run) != before, "requests": list(hub.requests)}


@pytest.fixture(scope="module")
def pushed(run, client, hub, dry) -> dict:
    """A real push into a repository that did not exist; then the commit that the Hub has. The dry run has loaded the files."""
    loaded = "from unittest.mock import patch\nwith patch('wavcse.hub.push.verify_repository', return_value=0.0): "
    answer = client(loaded + command(run, "--repo_id", REPO_ID, "--message", "First figures"))
    assert answer["result"] == 0, answer["err"]
    return {**answer, "sha": hub.repositories[REPO_ID].branches["main"]}


@pytest.mark.slow
def test_a_space_is_made_for_the_pushed_commit(run, client, hub, dry):
    loaded = (
        "from unittest.mock import patch\n"
        "with patch('wavcse.hub.push.verify_repository', return_value=0.0), "
        "patch('wavcse.hub.push.gradio_version'), patch('wavcse.hub.space.gradio_version', return_value='6.0.0'): "
    )
    answer = client(loaded + command(run, "--repo_id", "org/shown", "--space", "org/demo", "--private"))
    assert answer["result"] == 0, answer["err"]
    assert f"shown by the Space {hub.url}/spaces/org/demo" in answer["out"]
    repository = hub.repositories["spaces/org/demo"]
    files = repository.commits[repository.branches["main"]]
    assert f'MODEL = "org/shown@{hub.repositories["org/shown"].branches["main"]}"' in files["app.py"].decode()
    assert files["wavcse/app/page.py"] == (Path(push_cli.__file__).parents[1] / "app/page.py").read_bytes()
    assert repository.private
    answer = client(loaded + command(run, "--repo_id", "org/shown", "--space", "foreign/demo"))
    assert answer["result"] == 2
    assert re.search(r"org/shown was pushed, but the upload to the Space foreign/demo failed: ", answer["err"])


@pytest.fixture(scope="module")
def pulled(pushed, client, hub, changed, environment, waves, tmp_path_factory) -> dict:
    """What a stranger gets from the Hub after a second commit: embeddings, and what the card's examples print."""
    newer = client(upload(changed, REPO_ID))["result"]
    assert newer == hub.repositories[REPO_ID].branches["main"] != pushed["sha"]
    place = tmp_path_factory.mktemp("stranger")
    clip = waves(9_000)[0]
    soundfile.write(place / "clip.wav", clip, 16_000, subtype="FLOAT")
    home = {"HF_HOME": str(place), "HF_MODULES_CACHE": str(place / "modules")}
    arguments = [reload.__file__, REPO_ID, newer, pushed["sha"], "out.npz"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", GUARD + PULL, *arguments],
        env={**environment, **home},
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return {**np.load(place / "out.npz"), "clip": clip, "printed": done.stdout}


# ---- dry run and push ----


def test_dry_run_needs_no_token_and_sends_nothing(dry):
    assert (dry["result"], dry["requests"], dry["touched"]) == (0, [], False)
    assert f"dry run: nothing was sent to {REPO_ID}" in dry["out"]


def test_dry_run_lists_the_files_with_their_sizes(dry):
    listed = {name: int(size.replace(",", "")) for size, name in re.findall(r"^ *([\d,]+)  (\S+)$", dry["out"], re.MULTILINE)}
    assert listed == {name: len(content) for name, content in bytes_of(dry["built"]).items()}
    assert {"README.md", "model.safetensors", ".eval_results/keyword.yaml"} <= set(listed)


def test_push_makes_one_commit_with_exactly_the_built_files(pushed, dry, hub):
    repository = hub.repositories[REPO_ID]
    assert [message for _, message in repository.log[:2]] == ["initial commit", "First figures"]
    assert repository.commits[pushed["sha"]] == {**EMPTY_TREE, **bytes_of(dry["built"])}
    assert pushed["sha"] == repository.log[1][0]


def test_push_says_what_it_made_and_how_to_load_it(pushed, hub):
    assert f"commit {hub.url}/{REPO_ID}/commit/{pushed['sha']}" in pushed["out"]
    assert f'AutoModel.from_pretrained("{REPO_ID}", revision="{pushed["sha"]}", trust_remote_code=True)' in pushed["out"]


def test_weights_go_as_the_run_has_them(pushed, run, hub):
    content = hub.repositories[REPO_ID].commits[pushed["sha"]]
    assert content["model.safetensors"] == (run / "hub" / "model.safetensors").read_bytes()


def test_the_same_files_again_are_no_commit(pushed, dry, client, hub):
    before = list(hub.repositories[REPO_ID].branches.items())
    code = upload(dry["built"], "org/again")
    first, second = client(code)["result"], client(code)["result"]
    assert first == second == hub.repositories["org/again"].branches["main"]
    assert len(hub.repositories["org/again"].log) == 2
    assert list(hub.repositories[REPO_ID].branches.items()) == before


# ---- pull, in a process without `wavcse` ----


def test_pull_over_http_embeds_as_the_run(pulled, model, embed):
    (expected,) = embed(model.wavcse, [pulled["clip"]]).numpy()
    np.testing.assert_allclose(pulled["old"][0], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(pulled["pinned"][0], expected + 1.0, rtol=0, atol=1e-5)  # the second commit's weights
    np.testing.assert_array_equal(pulled["pipeline"], pulled["pinned"])


def test_the_cards_examples_run_and_print_what_they_say(pulled, dry):
    blocks = (dry["built"] / "README.md").read_text().split("```python\n")[1:]
    said = [
        line.split(")  # ")[1].split(";")[0] for block in blocks for line in block.splitlines() if line.startswith("print(")
    ]
    assert pulled["printed"].splitlines() == said


# ---- `push_to_hub` of the model ----


def test_push_to_hub_yields_the_same_folder(client, model, hub, tmp_path):
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "built").mkdir()
    build_repository(read_source(tmp_path / "model"), tmp_path / "built", "org/by-method")
    load = f"from wavcse import WavCSEForMultiTask as M; model = M.from_pretrained({str(tmp_path / 'model')!r}); "
    answer = client(f"{load}result = model.push_to_hub('org/by-method').oid")
    repository = hub.repositories["org/by-method"]
    assert answer["result"] == repository.branches["main"]
    assert repository.commits[answer["result"]] == {**EMPTY_TREE, **bytes_of(tmp_path / "built")}

    # The other way to the same method: what else lies in the folder stays at home.
    (tmp_path / "model" / "diary.txt").write_text("mine")
    call = f"model.save_pretrained({str(tmp_path / 'model')!r}, push_to_hub=True, repo_id='org/by-method', private=True)"
    client(load + call)
    assert repository.branches["main"] == answer["result"]  # the same files: nothing to commit

    client(f"{load}model.push_to_hub('org/by-method', tags=['mine'], revision='tagged')")
    assert b"\n- mine\n" in repository.commits[repository.branches["tagged"]]["README.md"]
    assert repository.branches["main"] == answer["result"]


# ---- what can go wrong ----


@pytest.mark.parametrize("fault", ["lfs", "commit"])
def test_an_interruption_leaves_the_old_revision(fault, dry, changed, client, hub):
    repo_id = f"org/interrupted-{fault}"
    old = client(upload(dry["built"], repo_id))["result"]
    repository = hub.repositories[repo_id]
    content = dict(repository.commits[old])
    hub.objects.pop(read_source(changed).sha256, None)  # else it need not be sent again
    hub.fault = fault
    broken = client(upload(changed, repo_id))["result"]
    hub.fault = ""
    assert broken.startswith(f"refused: The upload to {repo_id} failed:")
    assert "\n" not in broken
    assert (repository.branches["main"], len(repository.log)) == (old, 2)
    assert repository.commits[old] == content
    assert client(upload(changed, repo_id))["result"] == repository.log[2][0]  # the same command again


@pytest.mark.parametrize(
    ("token", "message"), [("hf_wrong", "The Hub does not accept the token (HTTP 401)"), ("", "There is no token")]
)
def test_without_a_valid_token_nothing_is_made(token, message, run, client, hub):
    before = set(hub.repositories)
    answer = client(command(run, "--repo_id", "org/forbidden"), token=token)
    assert answer["result"] == 2
    assert message in answer["err"]
    assert answer["err"].count("\n") == 1
    assert set(hub.repositories) == before


@pytest.mark.parametrize(("change", "message"), [("HF_HUB_OFFLINE", "offline"), ("ENDPOINT", "cannot be reached")])
def test_without_a_network_the_error_says_so(change, message, run, client):
    value = {"HF_HUB_OFFLINE": True, "ENDPOINT": "http://127.0.0.1:9"}[change]
    patch = f"from unittest import mock\nwith mock.patch('huggingface_hub.constants.{change}', {value!r}):\n    "
    answer = client(patch + command(run, "--repo_id", REPO_ID))
    assert answer["result"] == 2
    assert message in answer["err"]
    assert answer["err"].count("\n") == 1


def test_a_namespace_of_somebody_else_is_refused(dry, client, hub):
    answer = client(upload(dry["built"], "others/wavcse"))["result"]
    assert answer.startswith("refused: ")
    assert "403" in answer
    assert "others/wavcse" not in hub.repositories


def test_private_and_branch(dry, client, hub):
    sha = client(upload(dry["built"], "org/secret", private=True, revision="trial"))["result"]
    repository = hub.repositories["org/secret"]
    assert repository.private
    assert repository.branches["trial"] == sha
    assert repository.commits[repository.branches["main"]] == EMPTY_TREE


def test_code_of_an_older_version_stays_here(run, tmp_path):
    folder = shutil.copytree(run / "hub", tmp_path / "model")
    (folder / "packing_wavcse.py").write_text("# a file that this version has no more")
    (folder / "notes.py").write_text("# somebody's own")
    (tmp_path / "built").mkdir()
    build_repository(read_source(folder), tmp_path / "built", REPO_ID)
    built = bytes_of(tmp_path / "built")
    assert "packing_wavcse.py" not in built
    assert built["notes.py"] == b"# somebody's own"
    assert set(CODE_FILES) < set(built)


def test_leftovers_of_an_earlier_model_go_and_other_files_stay(dry, client, hub):
    repository = hub.repositories["org/older"] = Repository(private=False)
    leftovers = {pattern.lstrip("/").replace("*", "earlier"): b"old" for pattern in REPLACED}
    kept = {"LICENSE": b"terms", "pictures/old_wavcse.py": b"not ours"}
    repository.commit("main", {**EMPTY_TREE, **leftovers, **kept}, "an earlier model")
    sha = client(upload(dry["built"], "org/older"))["result"]
    assert len(repository.log) == 3
    assert repository.commits[sha] == {**EMPTY_TREE, **kept, **bytes_of(dry["built"])}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "checkpoint.pt", "extras/state.PKL"])
def test_pickles_are_refused(name, run, tmp_path, capsys):
    model = WavCSEModel.from_pretrained(run / "hub")
    model.save_pretrained(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"pickled")
    with pytest.raises(ValueError, match=re.escape(name)):
        repository_files(tmp_path)
    assert push_cli.main([str(tmp_path), "--repo_id", REPO_ID, "--dry_run"]) == 2
    assert name in capsys.readouterr().err


@pytest.mark.parametrize("where", ["model", "upstream"])
def test_weights_that_are_not_finite_are_refused(where, run, tmp_path, capsys):
    shutil.copytree(run / "hub", tmp_path / "hub")
    path = tmp_path / "hub" / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if (".upstream." in name) == (where == "upstream"))
    weights[name].view(-1)[-1] = torch.nan if where == "model" else torch.inf
    save_file(weights, path, metadata={"format": "pt"})
    assert push_cli.main([str(tmp_path / "hub"), "--repo_id", REPO_ID, "--dry_run"]) == 2
    line = capsys.readouterr().err
    assert f"{path}: {name} holds NaN or infinity" in line
    assert line.count("\n") == 1


def test_links_out_of_the_folder_and_hidden_files_stay_here(run, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    folder = shutil.copytree(run / "hub", tmp_path / "hub")
    (folder / "notes.txt").symlink_to(outside / "secret.txt")
    (folder / "more").symlink_to(outside)
    (folder / "kept.txt").write_text("kept")
    (folder / "again.txt").symlink_to("kept.txt")
    (folder / ".env").write_text("HF_TOKEN=hf_x")
    (folder / ".ssh").mkdir()
    (folder / ".ssh" / "id_rsa").write_text("x")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    out = " is a link out of the folder"
    assert left_out_files(folder) == {
        ".env": "is hidden",
        ".ssh/id_rsa": "is hidden",
        "more": out.strip(),
        "notes.txt": out.strip(),
    }
    built = tmp_path / "built"
    built.mkdir()
    build_repository(read_source(folder), built, REPO_ID)
    names = set(bytes_of(built))
    assert {"kept.txt", "again.txt", ".gitattributes"} <= names
    assert not names & {".env", ".ssh/id_rsa", "notes.txt", "more/secret.txt"}
    assert b"secret" not in b"".join(bytes_of(built).values())
    words = push_cli.report(push_cli.Push({}, 0.0, True, left_out_files(folder)), REPO_ID)
    assert "left out: .env is hidden\n" in words
    assert f"left out: notes.txt{out}\n" in words
    shutil.move(folder / "model.safetensors", outside)
    (folder / "model.safetensors").symlink_to(outside / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors: is a link out of the folder; .* Copy the file there"):
        repository_files(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--license", "cc-by-4"], "license is 'cc-by-4', which the Hub does not know"),
        (["--license", "Apache-2.0"], "license is 'Apache-2.0'"),
        (["--license", "other"], "needs a name for it: --license_name NAME"),
        (["--license", "other", "--license_name", "My Own"], "license_name is 'My Own'"),
        (["--license", "mit", "--license_name", "mine"], "it goes with `license: other`"),
        (["--language", "en", "english"], "language is 'english', which is not a code of ISO 639"),
        (["--language", "xx"], "language is 'xx'"),
    ],
)
def test_a_wrong_licence_or_language_is_refused_before_anything_is_sent(run, hub, client, options, message):
    before = list(hub.repositories)
    answer = client(command(run, "--repo_id", "org/wrong", *options))
    assert answer["result"] == 2
    assert message in answer["err"]
    assert answer["err"].count("\n") == 1
    assert list(hub.repositories) == before


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("license: gpl-9", "license is 'gpl-9'"),
        ("license: other\nlicense_name: mine", None),
        ("language: no", "language is False, which is not a code of ISO 639, such as en, pl or yue. Put it in quotes."),
        ("language: ['no', yue, multilingual]", None),
        ("a: [", "its header cannot be read"),
        ("- a", "its header cannot be read"),
    ],
)
def test_the_header_of_a_card_of_ones_own_is_checked_too(tmp_path, header, message):
    card = tmp_path / "README.md"
    card.write_text(f"---\n{header}\n---\n\n# Mine\n")
    if message is None:
        check_header(card)
    else:
        with pytest.raises(ValueError, match=re.escape(message)):
            check_header(card)


def test_the_check_has_no_token(monkeypatch, tmp_path):
    """Neither in its environment nor where a login leaves it."""
    (tmp_path / "home" / "huggingface").mkdir(parents=True)
    (tmp_path / "home" / "huggingface" / "token").write_text("hf_stored")
    (tmp_path / "token").write_text("hf_elsewhere")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "hf_secret")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home" / "huggingface"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    (tmp_path / "place").mkdir()
    environment = _without_secrets(str(tmp_path / "place"))
    assert "hf_secret" not in environment.values()
    assert not any(str(tmp_path / "home") in value or str(tmp_path / "token") in value for value in environment.values())
    assert environment["TOKENIZERS_PARALLELISM"] == "false"
    code = "import os, huggingface_hub as h; print(h.get_token(), os.path.expanduser('~'))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["None", str(tmp_path / "place")], done.stderr


@pytest.mark.parametrize("repo_id", ["two/slashes/here", "org/has space"])
def test_a_wrong_id_is_refused_before_anything(repo_id, run, capsys):
    assert push_cli.main([str(run), "--repo_id", repo_id, "--dry_run"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_existing_out_folder_is_refused(run, tmp_path, capsys):
    assert push_cli.main([str(run), "--repo_id", REPO_ID, "--dry_run", "--out", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.slow
def test_other_weights_are_found_out(changed, run):
    with pytest.raises(ValueError, match="does not give the embeddings"):
        verify_repository(changed, run / "hub")


@pytest.mark.slow
def test_code_that_needs_the_package_is_found_out(run, tmp_path):
    build_repository(read_source(run), tmp_path, REPO_ID)
    code = tmp_path / "configuration_wavcse.py"
    code.write_text(code.read_text().replace("import math\n", "import math\nimport wavcse\n"))
    with pytest.raises(ValueError, match="does not load in a fresh process without wavcse"):
        verify_repository(tmp_path, run / "hub")


def test_the_fixed_clip_tells_models_apart(run, model, embed):
    from wavcse.hub.verify import embed_fixed_clip

    clip, expected = embed_fixed_clip(run / "hub")
    assert torch.allclose(embed(model.wavcse, [clip])[0], torch.from_numpy(expected), atol=1e-6)
    assert np.abs(expected).max() > 1e-3


@pytest.mark.kill
def test_a_push_killed_ten_times_at_random_moments_leaves_the_undisturbed_repository(run, hub, environment, tmp_path):
    code = GUARD + "import sys, wavcse_cli; sys.exit(wavcse_cli.main(sys.argv[1:]))"

    def start(folder: Path) -> int:
        command = [sys.executable, "-c", code, "push", str(run), "--repo_id", f"org/{folder.name}"]
        return launched(command, env={**environment, "HF_TOKEN": TOKEN}, cwd=tmp_path)

    def files_of(name: str) -> dict[str, bytes]:
        repository = hub.repositories[f"org/{name}"]
        assert len(repository.log) == 2  # the initial commit and one with all files
        files = repository.commits[repository.branches["main"]]
        return {path: content.replace(name.encode(), b"") for path, content in files.items()}

    def check(folder: Path) -> None:
        assert files_of(folder.name) == files_of("undisturbed")

    print(run_killed(start, tmp_path, check))
