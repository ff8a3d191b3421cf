"""Trials in MLflow, against a real SQLite store: child runs that survive a kill and a server that does not answer."""

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from pipeline.tracking import runs
from pipeline.tracking.trials import PARENT, TrialRun

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning:mlflow")


@pytest.fixture
def search(store):
    """The run of a search, which is being written."""
    with runs.run("derain", "a search", {"fingerprint": "1"}, {}, system_metrics=False) as run:
        yield run


def trial(search: runs.Run) -> TrialRun:
    return TrialRun("derain", search.id, "trial-1", {"learning_rate": 0.002})


def logged(search: runs.Run) -> tuple[mlflow.entities.Run, list[tuple[int, float]]]:
    """The one child run of the search, and step and value of each val_psnr."""
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("derain").experiment_id
    (run,) = client.search_runs([experiment], f"tags.`{PARENT}` = '{search.id}'")
    return run, sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, "val_psnr"))


def test_a_trial_is_a_child_run_with_its_values_metrics_and_outcome(search):
    one = trial(search)
    one.log({"val_psnr": 30.0}, 10)
    one.log({"val_psnr": 31.0}, 20)
    one.end("FINISHED", {"outcome": "done"})
    run, curve = logged(search)
    assert run.data.params == {"learning_rate": "0.002"}
    assert curve == [(10, 30.0), (20, 31.0)]
    assert (run.info.status, run.data.tags["outcome"]) == ("FINISHED", "done")


def test_a_search_that_was_killed_continues_the_run_of_its_trial(search):
    trial(search).log({"val_psnr": 30.0}, 10)
    again = trial(search)
    again.log({"val_psnr": 30.0}, 10)
    again.log({"val_psnr": 31.0}, 20)
    assert logged(search)[1] == [(10, 30.0), (20, 31.0)]


@pytest.mark.parametrize("answers_at", ["the next report", "the end"])
def test_reports_to_a_server_that_does_not_answer_are_sent_later(search, monkeypatch, answers_at):
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("no answer")

    one = trial(search)
    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "search_runs", refuse)
        one.log({"val_psnr": 30.0}, 10)
    expected = [(10, 30.0)]
    if answers_at == "the next report":
        one.log({"val_psnr": 31.0}, 20)
        expected.append((20, 31.0))
    one.end("FINISHED", {})
    run, curve = logged(search)
    assert curve == expected
    assert run.info.status == "FINISHED"
