"""Tasks of the predictor that a run left beside its encoder: which view it means, and whether it is consistent."""

from ssl_equi.evaluation.predictors.action_gain import predictor_gain
from ssl_equi.evaluation.predictors.consistency import predictor_consistency as measure_consistency
from ssl_equi.evaluation.predictors.retrieval import retrieval_result
from ssl_equi.evaluation.predictors.two_views import retrieve_with_predictor
from ssl_equi.evaluation.samples import TaskSkipped
from ssl_equi.evaluation.task import Ask, TaskResult, task
from ssl_equi.export.predictor import TrainedPredictor


def _predictor(ask: Ask) -> TrainedPredictor:
    """Raises TaskSkipped for features that the predictor doesn't read."""
    predictor, width = ask.encoding.predictor, ask.test.features.shape[-1]
    assert predictor is not None, "the task needs a predictor"
    if width != predictor.num_features:
        raise TaskSkipped(
            f"the predictor of {predictor.name} reads {predictor.num_features} features and the part has {width}: ask "
            "it of all features"
        )
    return predictor


@task("action_gain", group="predictor", once=True)
def action_gain(ask: Ask) -> TaskResult:
    """Does the predictor use its actions? How much larger is its error with the actions of other objects?"""
    return predictor_gain(_predictor(ask), ask.test, device=ask.test.features.device)


@task("retrieval", group="predictor", once=True)
def retrieval(ask: Ask) -> TaskResult:
    """Which view does the predictor mean? From view 0 of each evaluated object, as SIE asks."""
    return retrieval_result(retrieve_with_predictor(_predictor(ask), ask.test, device=ask.test.features.device))


@task("predictor_consistency", group="predictor", once=True)
def predictor_consistency(ask: Ask) -> TaskResult:
    """Do two actions in a row lead where their composition does, and an action and its inverse back?"""
    return measure_consistency(_predictor(ask), ask.test, device=ask.test.features.device)
