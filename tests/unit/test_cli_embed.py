"""`embedmill embed` from the file to the exit code, against the API in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cli.__main__ import exit_code_of
from cli.client.types import Model
from cli.commands.embed_file import EmbedRequest, _lines, default_target, digest_corpus, embed_file
from cli.commands.model_selection import choose_model
from cli.errors import CliError, UsageError
from cli.files.open_corpus import open_corpus
from cli.output.progress import job_progress
from cli.output.terminal import err
from tests.cli_fake_api import JOB_ID, FakeApi


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeApi:
    monkeypatch.chdir(tmp_path)
    return FakeApi()


def embedded(api: FakeApi, file: str, **options: Any) -> int:
    """The exit code of `embedmill embed` against this API."""
    return exit_code_of(lambda: embed_file(EmbedRequest(file=Path(file), **options), api.client()))


def test_all_good(api: FakeApi, capfd: pytest.CaptureFixture[str]) -> None:
    Path("texts.jsonl").write_text('{"id": "a", "text": "one"}\n"two"\n')
    assert embedded(api, "texts.jsonl") == 0
    assert np.load("texts.npy").tolist() == [[0.0] * 4, [1.0] * 4]
    assert api.inputs == ["one", "two"]
    printed = capfd.readouterr()
    assert printed.out == "2 × 4 → texts.npy\n"
    assert printed.err.startswith("model tiny\n")
    assert "completed" in printed.err


def test_a_bad_line_is_exit_code_three(api: FakeApi, capfd: pytest.CaptureFixture[str]) -> None:
    Path("texts.txt").write_text("one\n\nthree\n")
    assert embedded(api, "texts.txt", target=Path("v.npy"), dimensions=4, truncate="end") == 3
    vectors = np.load("v.npy")
    assert np.isnan(vectors[1]).all()
    assert (vectors[2] == 2).all()
    assert dict(api.requests[1].url.params) == {"model": "tiny", "dimensions": "4", "truncate": "end"}
    said = capfd.readouterr().err
    assert "1 × invalid_input" in said
    assert f"embedmill jobs errors {JOB_ID}" in said


@pytest.mark.parametrize("status", ["failed", "cancelled", "expired"])
def test_a_job_that_fails_is_exit_code_one(api: FakeApi, capfd: pytest.CaptureFixture[str], status: str) -> None:
    api.final_status = status
    Path("texts.txt").write_text("one\n")
    assert embedded(api, "texts.txt") == 1
    assert f"error: {JOB_ID} ended as {status}" in capfd.readouterr().err
    assert not Path("texts.npy").exists()


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("missing.txt", {}),
        ("texts.txt", {"target": Path("v.docx")}),
        ("texts.txt", {"target": Path("nowhere/v.npy")}),
        ("texts.txt", {"text_column": "body"}),
        ("texts.txt", {"model": "huge"}),
    ],
)
def test_wrong_usage_is_exit_code_two_and_nothing_is_sent(api: FakeApi, file: str, options: dict[str, Any]) -> None:
    Path("texts.txt").write_text("one\n")
    assert embedded(api, file, **options) == 2
    assert api.bodies == []


def test_ctrl_c_leaves_the_job_running(api: FakeApi, capfd: pytest.CaptureFixture[str]) -> None:
    def interrupt(request: httpx.Request) -> None:
        if request.url.path.endswith(JOB_ID):
            raise KeyboardInterrupt

    api.on_request = interrupt
    Path("texts.txt").write_text("one\n")
    assert embedded(api, "texts.txt") == 1
    said = capfd.readouterr().err
    assert f"embedmill jobs wait {JOB_ID}" in said
    assert f"embedmill jobs results {JOB_ID} --out" in said
    assert not any(request.url.path.endswith("cancel") for request in api.requests)


def test_a_dry_run_tells_and_saves_nothing(api: FakeApi, capfd: pytest.CaptureFixture[str]) -> None:
    Path("texts.txt").write_text("one\none\n\n")
    assert embedded(api, "texts.txt", dry_run=True) == 3
    assert dict(api.requests[-1].url.params) == {"model": "tiny", "dry_run": "true"}
    assert "idempotency-key" not in api.requests[-1].headers
    assert capfd.readouterr().out.splitlines() == [
        "model   tiny, 4 wide",
        "inputs  3, 1 of them duplicates that cost nothing",
        "tokens  about 1,234",
        "calls   1",
        "cost    about $0.0246; each duplicate for itself: $0.05",
        "time    2 min 05 s by quota",
        "refused 1",
        "        1 × empty_input, first at index 2: no",
    ]
    assert not Path("texts.npy").exists()


@pytest.mark.parametrize(
    ("ceiling", "within", "refused", "code", "line"),
    [("0.01", False, 0, 1, "ceiling $0.01 is not enough: the job would be paused after about 40 %"),
     ("0.01", False, 1, 1, "ceiling $0.01 is not enough"),
     ("0.025", False, 0, 1, "ceiling $0.025 may not be enough, by the margin"),
     ("1", True, 0, 0, "ceiling $1 is enough"), ("1", True, 1, 3, "ceiling $1 is enough")],
)  # fmt: skip
def test_a_dry_run_ends_as_the_job_would(
    api: FakeApi,
    capfd: pytest.CaptureFixture[str],
    ceiling: str,
    within: bool,
    refused: int,
    code: int,
    line: str,
) -> None:
    """It ended with 0, or 3, and said nothing of --max-cost."""
    answer: dict[str, object] = {"max_cost_usd": ceiling, "within_max_cost": within, "refused_inputs": refused}
    api.estimate |= answer
    Path("texts.txt").write_text("one\n")
    assert embedded(api, "texts.txt", dry_run=True, max_cost=ceiling) == code
    assert api.requests[-1].url.params["max_cost_usd"] == ceiling
    assert line in capfd.readouterr().out


def test_a_ceiling_is_sent_and_a_job_that_reached_it_is_left(api: FakeApi, capfd: pytest.CaptureFixture[str]) -> None:
    api.final_status, api.waiting_on = "paused", "budget"
    Path("texts.txt").write_text("one\n")
    assert embedded(api, "texts.txt", max_cost="0.5") == 1
    assert api.requests[1].url.params["max_cost_usd"] == "0.5"
    assert f"embedmill jobs resume {JOB_ID} --max-cost" in capfd.readouterr().err


def test_ctrl_c_in_a_pause_says_how_to_resume(api: FakeApi, capfd: pytest.CaptureFixture[str]) -> None:
    polls = []

    def interrupt(request: httpx.Request) -> None:
        if request.url.path.endswith(JOB_ID):
            polls.append(request)
            if len(polls) == 1:
                api.faults.append(httpx.Response(200, json=api.job("paused", done=0)))
            else:
                raise KeyboardInterrupt

    api.on_request = interrupt
    Path("texts.txt").write_text("one\n")
    assert embedded(api, "texts.txt") == 1
    said = capfd.readouterr().err
    assert f"{JOB_ID} is paused by its caller (`embedmill jobs resume {JOB_ID}` lets it go on)" in said


def keys(api: FakeApi) -> list[str]:
    return [each.headers["idempotency-key"] for each in api.requests if each.method == "POST"]


def test_the_same_file_and_options_are_the_same_job(api: FakeApi, capfd: pytest.CaptureFixture[str]) -> None:
    Path("a.txt").write_text("one\ntwo\n")
    Path("b.txt").write_text("one\r\ntwo\n\n")  # the same records under another name
    for file in ("a.txt", "a.txt", "b.txt"):
        assert embedded(api, file) == 0
    assert len(set(keys(api))) == 1
    assert embedded(api, "a.txt", dimensions=4) == 0
    Path("a.txt").write_text("one\nthree\n")
    assert embedded(api, "a.txt") == 0
    assert embedded(api, "a.txt", new=True) == 0
    assert embedded(api, "a.txt", new=True) == 0
    assert len(set(keys(api))) == 5
    capfd.readouterr()
    api.replayed = True
    assert embedded(api, "a.txt") == 0
    assert f"{JOB_ID} is this file with these options; --new would embed it again" in capfd.readouterr().err


def test_a_job_that_ended_badly_before_is_not_paid_again_in_silence(
    api: FakeApi, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("texts.txt").write_text("one\n")
    api.replayed, api.final_status = True, "cancelled"
    assert embedded(api, "texts.txt") == 1
    assert "ended as cancelled (`embedmill embed` with --new starts another)" in capfd.readouterr().err


def test_a_file_that_changes_while_it_is_sent_makes_no_job(api: FakeApi, capfd: pytest.CaptureFixture[str]) -> None:
    Path("texts.txt").write_text("one\n")

    corpus = open_corpus(Path("texts.txt"))
    content = digest_corpus(corpus, job_progress(err))
    Path("texts.txt").write_text("one\ntwo\n")
    with pytest.raises(CliError, match="changed while it was read"):
        api.client().create_job(_lines(corpus, content, job_progress(err)), {}, "key")
    assert api.bodies == []


def test_vectors_to_stdout_leave_everything_else_on_stderr(api: FakeApi, capfd: pytest.CaptureFixture[str]) -> None:
    Path("texts.txt").write_text("one\n\nthree\n")
    assert embedded(api, "texts.txt", target=Path("-")) == 3
    printed = capfd.readouterr()
    assert [json.loads(line)["index"] for line in printed.out.splitlines()] == [0, 1, 2]
    assert "3 × 4 → stdout, 1 of them without a vector" in printed.err


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_a_file_without_texts_makes_no_job(api: FakeApi, capfd: pytest.CaptureFixture[str], content: str) -> None:
    Path("texts.txt").write_text(content)
    assert embedded(api, "texts.txt") == 1
    assert "texts.txt holds no texts" in capfd.readouterr().err
    assert keys(api) == []


def test_a_file_that_goes_wrong_late_makes_no_job(api: FakeApi, capfd: pytest.CaptureFixture[str]) -> None:
    Path("texts.csv").write_text("id,text\n" + "1,a\n" * 50_000 + '2,"never closed\n')
    assert embedded(api, "texts.csv") == 1
    assert "line 50,002 opens a quote" in capfd.readouterr().err
    assert keys(api) == []


def test_several_models_are_asked_about_before_anything_is_read(
    api: FakeApi, capfd: pytest.CaptureFixture[str]
) -> None:
    api.models = ["paid", "local/wordllama-256"]
    Path("texts.txt").write_text("one\n")
    assert embedded(api, "texts.txt") == 2
    assert "several models (choose with --model: local/wordllama-256, paid)" in capfd.readouterr().err
    assert keys(api) == []


def test_ctrl_c_while_sending_says_so(api: FakeApi, capfd: pytest.CaptureFixture[str]) -> None:
    def interrupt(request: httpx.Request) -> None:
        if request.method == "POST":
            raise KeyboardInterrupt

    api.on_request = interrupt
    Path("texts.txt").write_text("one\n")
    assert embedded(api, "texts.txt") == 1
    assert "before the whole corpus was sent" in capfd.readouterr().err


def test_model_choice() -> None:
    def offered(*names: str) -> list[Model]:
        return [Model(id=name) for name in names]

    assert choose_model(offered("a"), None) == "a"
    assert choose_model(offered("a", "b"), "b") == "b"
    with pytest.raises(UsageError, match=r"several models.*--model: a, b"):
        choose_model(offered("b", "a"), None)
    with pytest.raises(UsageError, match=r"no model 'c'.*--model: a"):
        choose_model(offered("a"), "c")
    with pytest.raises(CliError, match="no model"):
        choose_model([], None)


def test_where_vectors_go_by_default() -> None:
    assert default_target(Path("/data/texts.jsonl.gz")) == Path("texts.npy")
    assert default_target(Path("v1.2.txt")) == Path("v1.2.npy")
