from dataclasses import replace

from tests.fakes import random_batch


def test_a_batch_moves_but_for_indices() -> None:
    batch = replace(random_batch(), seconds_waited=1.5)
    moved = batch.to("meta")
    assert moved.images.device.type == moved.labels.device.type == moved.latents.device.type == "meta"
    assert moved.object_indices.device.type == moved.view_indices.device.type == "cpu"
    assert moved.seconds_waited == 1.5
    assert moved.known_on_cpu is not None and moved.known_on_cpu[0] is batch.latents
    assert moved.to("meta").known_on_cpu is moved.known_on_cpu
    assert batch.to("cpu").images.data_ptr() == batch.images.data_ptr()
