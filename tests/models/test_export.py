"""Networks that torch.export has traced once answer at other numbers of inputs and frames, and at other sizes."""

import io

import pytest
import torch
from tiny_models import clip, off_by, toy

OPTIONS = [
    pytest.param(2, {}, id="image"),
    pytest.param(2, {"padding": "border"}, id="image border"),
    pytest.param(3, {}, id="clip"),
    pytest.param(3, {"appearance": False}, id="clip motion alone"),
    pytest.param(3, {"motion": False}, id="clip without motion"),
]


@pytest.mark.parametrize(("ndim", "options"), OPTIONS)
def test_an_exported_network_has_free_axes_after_a_round_trip(ndim, options):
    model, x = toy(ndim, **options), clip(ndim)
    free = {axis: torch.export.Dim.DYNAMIC for axis in range(x.ndim) if axis != 1}
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=(free,), strict=False)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    network = torch.export.load(file).module()
    for batch, frames, height, width in ((1, 1, 36, 48), (3, 9, 36, 48), (2, 4, 64, 37), (5, 6, 5, 90)):
        other = clip(ndim, batch=batch, frames=frames, height=height, width=width)
        with torch.no_grad():
            assert off_by(network(other), model(other)) < 1e-5


def test_exported_features_say_where_the_network_looked():
    class Where(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model.forward_features(x)

    model, x = toy(3), clip(3)
    with torch.no_grad():
        features = torch.export.export(Where(model), (x,), strict=False).module()(x)
        wanted = model.forward_features(x)
    assert [points.shape for points in features.points] == [points.shape for points in wanted.points]
    for got, expected in zip(features.points + features.rois, wanted.points + wanted.rois, strict=True):
        assert off_by(got, expected) < 1e-5
