"""Tasks of the suite about the predictor that a run left beside its encoder.

Nothing is drawn or trained, so each is asked once; and they need all features, which the predictor reads its own from.
"""

from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.predictors.consistency import TASK as CONSISTENCY
from ssl_equi.evaluation.predictors.consistency import predictor_consistency
from ssl_equi.evaluation.predictors.retrieval import TASK as RETRIEVAL
from ssl_equi.evaluation.predictors.retrieval import retrieval_result
from ssl_equi.evaluation.predictors.two_views import check_width, retrieve_with_predictor
from ssl_equi.evaluation.protocol import ProbeProtocol
from ssl_equi.evaluation.task_results import Task, TaskResult
from ssl_equi.export.predictor import TrainedPredictor

PREDICTOR_TASKS = (RETRIEVAL, CONSISTENCY)


def predictor_tasks(predictor: TrainedPredictor) -> dict[str, Task]:
    """Which view does the predictor mean (from view 0 of each evaluated object, as SIE asks), and is it consistent?"""

    def retrieval(
        train: FeatureCache, test: FeatureCache, num_classes: int, protocol: ProbeProtocol, seed: int
    ) -> TaskResult:
        check_width(predictor, test)
        return retrieval_result(retrieve_with_predictor(predictor, test, device=test.features.device))

    def consistency(
        train: FeatureCache, test: FeatureCache, num_classes: int, protocol: ProbeProtocol, seed: int
    ) -> TaskResult:
        check_width(predictor, test)
        return predictor_consistency(predictor, test, device=test.features.device)

    return {RETRIEVAL: retrieval, CONSISTENCY: consistency}
