import pytest

from resnet_jax.data.decode import turbojpeg


@pytest.fixture(params=["turbojpeg", "pillow"])
def decoder(request, monkeypatch):
    """Both ways to decode; without the library, the first is the second."""
    if request.param == "pillow":
        monkeypatch.setattr(turbojpeg, "library", lambda: None)
    return request.param
